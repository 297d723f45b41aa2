"""What a node does under SkyPilot's managed jobs: what it closes, what it tells, what it writes."""

import threading
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from trainer.contract import Document, ExitCode, Name, Outcome, RankEnd
from trainer.machine import MachineError
from trainer.notices import ASKED, MOVED
from trainer.rented import Rented, wrong_rentals
from trainer.run_folder import Event, Heartbeat, Phases, RunFolder, RunOutcome, StopWish
from trainer.store import open_store

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SAVED = RankEnd(ExitCode.RECOVER, "asked to stop; step 7 is durable")
DONE = RankEnd(ExitCode.FINISHED, "finished: 12 steps")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(open_store(f"file://{tmp_path}/store"), "run")
    made.write_bytes(Name.RECIPE, b"{}")
    made.add_event("submitted", NOON)
    return made


def claim(folder: RunFolder, document: Document = Document.TRAIN, *, seen_after_s: int = 60) -> int:
    """An attempt that trains, and has been seen alive."""
    attempt = folder.claim_attempt(document, billed_from=NOON, price_usd_per_hour=Decimal(1), offer="",
                                   host="")
    folder.write(f"attempts/{attempt.number}/heartbeat.json", Heartbeat(
        at=NOON + timedelta(seconds=seen_after_s), step=9, total_steps=12, resumed_from_step=0,
        durable_step=7, durable_train_s=1, durable_evaluate_s=0, phases=Phases(), tokens_per_s=1,
        spent_usd=Decimal(0)))
    return attempt.number


def node(folder: RunFolder, document: Document = Document.TRAIN, number: int = 0) -> Rented:
    return Rented(folder, document, node=number)


def outcome(folder: RunFolder) -> Outcome | None:
    found = folder.find(Name.OUTCOME, RunOutcome)
    return found and found.outcome


def wish(folder: RunFolder, at: datetime) -> None:
    folder.write(Name.STOP, StopWish(at=at))


def kinds(folder: RunFolder) -> list[str]:
    return [event.kind for event in folder.events()]


def test_an_attempt_whose_machine_vanished_is_closed_by_the_next_one_when_it_was_last_seen(folder) -> None:
    number = claim(folder)
    node(folder, number=1)
    assert folder.attempt(number).end is None
    node(folder)
    end = folder.attempt(number).end
    assert (end.preempted, end.exit_code, end.at) == (True, None, NOON + timedelta(seconds=60))


@pytest.mark.parametrize(("end", "told", "ends_as"), [
    (DONE, 0, None),  # the benchmark follows
    (SAVED, 75, None),
    (RankEnd(1, "a rank died"), 75, None),  # a crash: once more; the next node counts them
    (RankEnd(78, "no such text"), 78, Outcome.BAD_CONFIG),
    (RankEnd(70, "NaN in step 5"), 70, Outcome.DIVERGED)])
def test_training_tells_skypilot_what_follows_and_records_an_end(folder, end, told, ends_as) -> None:
    claim(folder)
    assert node(folder).conclude(end) == told
    assert outcome(folder) == ends_as
    assert kinds(folder)[1:] == (["ended"] if ends_as else [])
    if ends_as:
        written = folder.read(Name.OUTCOME, RunOutcome)
        assert (written.step, written.reason) == (7, end.reason)


def test_only_the_first_node_writes(folder) -> None:
    assert node(folder, number=1).conclude(RankEnd(70, "NaN")) == 70
    assert outcome(folder) is None and kinds(folder) == ["submitted"]


def test_a_wish_to_stop_turns_a_saved_state_into_the_end_on_every_node(folder) -> None:
    first, second = node(folder), node(folder, number=1)
    wish(folder, NOON + timedelta(hours=1))
    assert first.is_stop_wished()
    # The second has not looked yet; a signal has reached its ranks through the first one's.
    assert second.conclude(SAVED) == first.conclude(SAVED) == ExitCode.STOPPED == 77
    assert outcome(folder) is Outcome.STOPPED


def test_who_supervises_may_have_a_run_with_a_course_save_and_go_on_elsewhere(folder) -> None:
    folder.write(Name.MOVE, StopWish(at=datetime.now(UTC) - timedelta(seconds=1)))  # of the machine before
    now = [0.0]
    moving = Rented(folder, Document.TRAIN, node=0, has_course=True, clock=lambda: now[0])
    assert moving.wish() is None
    folder.write(Name.MOVE, StopWish(at=datetime.now(UTC)))
    now[0] = 5.0
    assert moving.wish() == MOVED and node(folder).wish() is None
    assert moving.conclude(SAVED) == ExitCode.RECOVER and outcome(folder) is None
    wish(folder, NOON + timedelta(hours=1))
    now[0] = 10.0
    assert moving.wish() == ASKED and moving.conclude(SAVED) == ExitCode.STOPPED


def test_a_wish_from_before_the_run_was_resumed_says_nothing(folder) -> None:
    wish(folder, NOON + timedelta(hours=1))
    folder.add_event("resumed", NOON + timedelta(hours=2))
    again = node(folder)
    assert not again.is_stop_wished()
    assert again.conclude(SAVED) == ExitCode.RECOVER


def test_it_looks_for_a_wish_every_five_seconds_and_a_store_that_is_away_says_nothing(folder) -> None:
    now = [0.0]
    watching = Rented(folder, Document.TRAIN, node=0, clock=lambda: now[0])
    assert not watching.is_stop_wished()
    folder.write_bytes(Name.STOP, b"torn")
    now[0] = 5.0
    assert not watching.is_stop_wished()
    wish(folder, NOON + timedelta(hours=1))
    now[0] = 9.9
    assert not watching.is_stop_wished()
    now[0] = 10.0
    assert watching.is_stop_wished()


def test_a_resumed_run_forgets_its_old_end_unless_training_has_finished(folder) -> None:
    old = RunOutcome(outcome=Outcome.STOPPED, at=NOON, step=7, reason="")
    folder.write(Name.OUTCOME, old)
    assert not node(folder).has_finished_before() and outcome(folder) is None
    folder.write(Name.OUTCOME, old.model_copy(update={"outcome": Outcome.FINISHED}))
    assert node(folder).has_finished_before()
    assert not node(folder, Document.BENCH).has_finished_before()


def test_a_finished_benchmark_ends_the_run_and_training_s_own_outcome_stands(folder) -> None:
    folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.LIMIT, at=NOON, step=7, reason="cap"))
    assert node(folder, Document.BENCH).conclude(DONE) == 0
    assert outcome(folder) is Outcome.LIMIT
    assert folder.events()[-1].detail == {"outcome": "limit", "reason": DONE.reason, "bench": "finished"}


def test_an_end_that_cannot_be_recorded_is_told_all_the_same(folder, monkeypatch, capsys) -> None:
    from trainer.contract import StoreError

    def away(*_args: object, **_keys: object) -> None:
        raise StoreError("is away", place="store")

    found = node(folder)
    monkeypatch.setattr(folder, "write", away)
    assert found.conclude(RankEnd(70, "NaN")) == 70
    assert "the end of the run is not recorded" in capsys.readouterr().out


WRONG = MachineError("the plan pays for RTX5090:1, this machine has no GPU", place="host-7", fix="")


def test_another_machine_is_asked_for_where_one_is_wrong_three_in_all(folder) -> None:
    ends = [node(folder).refuse(WRONG) for _ in range(2)]
    assert [end.code for end in ends] == [75, 75]
    assert ends[1].reason == f"wrong machine (2 of 3): {WRONG}"
    last = node(folder)
    end = last.refuse(WRONG)
    assert end == (70, f"3 machines were wrong since this run was started; the last: {WRONG.problem}")
    assert last.conclude(end) == 70 and outcome(folder) is Outcome.NO_CAPACITY
    told = [event.detail for event in folder.events() if event.kind == "wrong_machine"]
    assert told == 3 * [{"problem": WRONG.problem, "host": "host-7", "node": 0}]


def test_a_wrong_machine_says_so_before_its_node_ends(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ldlm_deadman").touch()

    def answer() -> None:
        while not (note := tmp_path / ".ldlm_wrong_machine").exists():
            time.sleep(0.01)
        assert kinds(folder) == ["submitted"]
        note.unlink()

    switch = threading.Thread(target=answer)
    switch.start()
    node(folder).refuse(WRONG)
    switch.join()
    assert kinds(folder) == ["submitted", "wrong_machine"]


def test_a_node_that_does_not_lead_counts_its_wrong_machine_too_and_a_resumed_run_starts_anew(folder) -> None:
    assert [node(folder, number=1).refuse(WRONG).code for _ in range(3)] == [75, 75, 70]
    folder.add_event("resumed", datetime.now(UTC))
    assert node(folder).refuse(WRONG).code == 75


def test_machines_that_were_rented_together_count_once_however_many_of_them_are_wrong(folder) -> None:
    for tries in range(1, 4):
        ends = [node(folder, number=number).refuse(WRONG) for number in range(2)]
        assert {end.code for end in ends} == {75 if tries < 3 else 70}
        assert f"({tries} of 3)" in ends[1].reason or tries == 3


def test_another_node_that_is_wrong_minutes_later_is_of_another_rental() -> None:
    def told(*nodes_at: tuple[int, float]) -> int:
        return wrong_rentals(Event(at=NOON + timedelta(minutes=minutes), kind="wrong_machine",
                                   detail={"node": number}) for number, minutes in nodes_at)

    assert told() == 0
    assert told((3, 0), (1, 0.5), (0, 1.9)) == 1
    assert told((1, 0), (0, 5), (1, 5.1), (2, 12)) == 3
    assert told((0, 0), (0, 0.1), (1, 0.1)) == 2  # set up as fast as nothing
    assert wrong_rentals(2 * [Event(at=NOON, kind="wrong_machine")]) == 2  # of a trainer before this one
