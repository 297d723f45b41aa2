"""What a run has cost, computed by hand; records that must survive odd numbers, gaps and races."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from trainer.contract import Document
from trainer.run_folder import (
    Attempt,
    AttemptEnd,
    AttemptFiles,
    Heartbeat,
    Phases,
    RunFolder,
)
from trainer.spent import charged_until, controller_usd, spent_usd
from trainer.store import DamagedError, NotFoundError, local_store_url, open_store

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(open_store(local_store_url(tmp_path)), "run")


def attempt(number: int, begins_min: int, price: str, ends_min: float | None = None) -> AttemptFiles:
    """An attempt by minutes after noon; no end: its machine vanished, or it runs."""
    record = Attempt(number=number, document=Document.TRAIN, billed_from=NOON + timedelta(minutes=begins_min),
                     price_usd_per_hour=Decimal(price), offer="", host="h")
    end = None if ends_min is None else AttemptEnd(
        at=NOON + timedelta(minutes=ends_min), exit_code=75, preempted=False, reason="")
    return AttemptFiles(attempt=record, end=end)


def heartbeat(**changes: object) -> Heartbeat:
    values = {"at": NOON, "step": 5, "total_steps": 12, "resumed_from_step": 0, "durable_step": 4,
              "durable_train_s": 1.5, "durable_evaluate_s": 0.0, "phases": Phases(train_s=2.0),
              "tokens_per_s": 10.0, "spent_usd": Decimal("0.0123456789"), "metrics": {}}
    return Heartbeat.model_validate(values | changes)


# -- dollars ---------------------------------------------------------------------------------------


def test_each_attempt_is_charged_at_its_own_price_up_to_its_end() -> None:
    run = [attempt(1, 0, "0.60", ends_min=30), attempt(2, 40, "1.20", ends_min=45)]
    # 30 min at $0.60 and 5 min at $1.20; the ten minutes between them cost nothing.
    assert spent_usd(run, NOON + timedelta(hours=9)) == Decimal("0.40")



def test_supervision_is_charged_from_each_start_to_its_end_at_the_price_told_then(folder: RunFolder) -> None:
    def after(hours: float, kind: str, **detail: str) -> None:
        folder.add_event(kind, NOON + timedelta(hours=hours), **detail)

    after(0, "submitted", controller_usd_per_hour="0.01")
    after(1, "preempted")  # in between it is paid for as well
    after(2, "ended")  # a day in which it is no run's
    after(26, "resumed", controller_usd_per_hour="0.05")
    after(27, "stop_requested")
    after(30, "resumed", infra="local")  # from here on nobody is paid
    assert controller_usd(folder.events(), NOON + timedelta(days=9)) == Decimal("0.22")  # 2 h and 4 h
    assert controller_usd(folder.events()[:1], NOON + timedelta(hours=3)) == Decimal("0.03")
    assert controller_usd(folder.events()[:1], NOON - timedelta(hours=3)) == 0  # a clock that is slow
    assert controller_usd([], NOON) == 0


def test_the_running_attempt_is_charged_up_to_now_set_up_included() -> None:
    run = [attempt(1, 0, "0.60", ends_min=30), attempt(2, 40, "1.20")]
    assert spent_usd(run, NOON + timedelta(minutes=60)) == Decimal("0.70")  # 0.30 + 20 min at 1.20


def test_a_machine_that_vanished_is_charged_until_the_next_one_begins() -> None:
    run = [attempt(1, 0, "0.60"), attempt(2, 40, "1.20", ends_min=45), attempt(3, 50, "3.00")]
    now = NOON + timedelta(minutes=51)
    assert charged_until(run, now) == [NOON + timedelta(minutes=minutes) for minutes in (40, 45, 51)]
    assert spent_usd(run, now) == Decimal("0.55")  # 0.40 + 0.10 + 0.05


def test_nothing_is_spent_before_the_first_attempt_and_dollars_are_not_rounded() -> None:
    assert spent_usd([], NOON) == 0
    one_second = [attempt(1, 0, "0.36", ends_min=1 / 60)]
    assert spent_usd(one_second, NOON) == Decimal("0.0001")


def test_where_the_clock_of_the_end_is_behind_the_heartbeat_tells_how_long_an_attempt_was() -> None:
    first, second = attempt(1, 0, "1.20", ends_min=1), attempt(2, 10, "1.20", ends_min=9)
    assert spent_usd([first, second], NOON) == Decimal("0.02")
    told = heartbeat(at=NOON + timedelta(minutes=5), phases=Phases(setup_s=60, train_s=240))
    assert spent_usd([first, second.model_copy(update={"heartbeat": told})], NOON) == Decimal("0.12")


# -- records ---------------------------------------------------------------------------------------


def test_attempts_are_in_the_order_of_their_numbers(folder: RunFolder) -> None:
    for number in (10, 2, 1):
        folder.write(f"attempts/{number}/attempt.json", attempt(number, number, "1").attempt)
    folder.write("attempts/2/heartbeat.json", heartbeat())

    found = folder.attempts()

    assert [files.attempt.number for files in found] == [1, 2, 10]
    assert [files.heartbeat is not None for files in found] == [False, True, False]


def test_a_claim_that_never_came_to_a_record_blocks_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """A disk that was full at a claim may keep the folder without the file."""
    folder.write("attempts/1/attempt.json", attempt(1, 0, "1").attempt)
    (tmp_path / "run/attempts/2").mkdir()

    assert [files.attempt.number for files in folder.attempts()] == [1]
    claimed = folder.claim_attempt(Document.BENCH, billed_from=NOON, offer="o", host="h",
                                   price_usd_per_hour=Decimal("0.5"))
    assert claimed.number == 3
    assert [files.attempt for files in folder.attempts()][-1] == claimed


def test_numbers_that_json_cannot_say_come_back(folder: RunFolder) -> None:
    folder.write("h.json", heartbeat(metrics={"loss": math.nan, "rate": math.inf}, tokens_per_s=-math.inf))

    read = folder.read("h.json", Heartbeat)

    assert math.isnan(read.metrics["loss"]) and read.metrics["rate"] == math.inf
    assert read.tokens_per_s == -math.inf
    assert b"NaN" in folder.read_bytes("h.json") and folder.read_json("h.json")["metrics"]["loss"] == "NaN"


def test_money_and_time_come_back_exactly(folder: RunFolder) -> None:
    folder.write("h.json", heartbeat())
    read = folder.read("h.json", Heartbeat)
    assert (read.spent_usd, read.at, read.phases.train_s) == (Decimal("0.0123456789"), NOON, 2.0)


def test_events_are_in_the_order_of_time_and_keep_their_details(folder: RunFolder) -> None:
    folder.add_event("ended", NOON + timedelta(seconds=2), outcome="finished")
    folder.add_event("submitted", NOON, task_digest="abc")
    folder.add_event("resumed", NOON + timedelta(microseconds=5))
    folder.add_event("resumed", (NOON + timedelta(seconds=1)).astimezone(UTC))

    events = folder.events()

    assert [event.kind for event in events] == ["submitted", "resumed", "resumed", "ended"]
    assert (events[0].detail, events[-1].detail) == ({"task_digest": "abc"}, {"outcome": "finished"})
    assert events[1].at == NOON + timedelta(microseconds=5)


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "is not a valid Attempt: "),
    (b'{"number": 1', "is not a valid Attempt: "),
    (b'{"number": "one"}', "is not a valid Attempt: number: Input should be a valid integer"),
    (b"\xff\xfe", "is not a valid Attempt: "),
])
def test_a_record_that_does_not_parse_is_named(folder: RunFolder, content: bytes, problem: str) -> None:
    folder.write_bytes("attempts/1/attempt.json", content)

    with pytest.raises(DamagedError) as caught:
        folder.attempts()

    assert caught.value.problem.startswith(problem) and "\n" not in caught.value.problem
    assert str(caught.value.place).endswith("/run/attempts/1/attempt.json")
    assert "restore it from a backup" in str(caught.value.fix)


def test_json_that_is_none_and_json_that_is_not_there_are_told_apart(folder: RunFolder) -> None:
    folder.write_bytes("plan.json", b"{")
    with pytest.raises(DamagedError, match="plan.json: is not JSON"):
        folder.read_json("plan.json")
    with pytest.raises(NotFoundError):
        folder.read_json("recipe.json")
    assert folder.find("h.json", Heartbeat) is None
    assert not folder.exists()
    folder.write_bytes("recipe.json", b"{}")
    assert folder.exists()


def test_a_record_of_a_newer_version_may_say_more(folder: RunFolder) -> None:
    folder.write_bytes("h.json", heartbeat().model_dump_json().replace("{", '{"new_word": 1, ', 1).encode())
    assert folder.read("h.json", Heartbeat) == heartbeat()
