"""Every second is booked once; every row reaches the store, however it behaves."""

import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hands import Hands
from pydantic import BaseModel

from trainer.contract import Document, StoreError
from trainer.live_price import BID_RAISED
from trainer.metrics import Before, OwnAttempt, PhaseClock, Progress, Recorder, TrainingSpeed
from trainer.rental_terms import PriceFrom
from trainer.run_folder import Attempt, Heartbeat, RunFolder
from trainer.store import Store, local_store_url, open_store


class UnsteadyStore(Store):
    """A folder that refuses to write while `broken` names a part of the key."""

    def __init__(self, root: Path) -> None:
        inner = open_store(local_store_url(root))
        super().__init__(inner.url, inner.address, inner._backend)
        self.broken: str | None = None

    def put(self, key: str, data: bytes | memoryview, *, create: bool = False) -> None:
        if self.broken and self.broken in key:
            raise StoreError("cannot write: no route to host", place=f"{self.url}/{key}", fix="wait")
        super().put(key, data, create=create)


class Scored(BaseModel):
    """Any record."""

    step: int


@pytest.fixture
def store(tmp_path: Path) -> UnsteadyStore:
    return UnsteadyStore(tmp_path)


def recorder(store: Store, *, age_s: float = 0.0, interval_s: float = 3600.0) -> Recorder:
    attempt = Attempt(number=2, document=Document.TRAIN, offer="", host="h",
                      price_usd_per_hour=Decimal("3.60"),
                      billed_from=datetime.now(UTC) - timedelta(seconds=age_s))
    return Recorder(RunFolder(store, "run"), attempt, interval_s=interval_s, before=Before(Decimal("1.00")),
                    clock=PhaseClock(attempt.billed_from), progress=Progress(total_steps=12))


def rows(store: Store) -> list[dict[str, float]]:
    return [json.loads(line) for found in store.objects("run/attempts/2/metrics")
            for line in store.get(found.key).splitlines()]


# -- phases ----------------------------------------------------------------------------------------


def test_phases_add_up_to_the_age_of_the_attempt() -> None:
    hands = Hands()
    clock = PhaseClock(datetime.now(UTC) - timedelta(seconds=100), hands)
    hands.now_s += 20
    clock.enter("train_s")
    hands.now_s += 30
    with clock.during("checkpoint_s"):
        hands.now_s += 4
    hands.now_s += 5
    with clock.during("evaluate_s"):
        hands.now_s += 6
        with clock.during("checkpoint_s"):
            hands.now_s += 1

    phases = clock.phases()

    assert phases.setup_s == pytest.approx(120, abs=0.5)  # 100 before the clock was made
    assert (phases.train_s, phases.checkpoint_s, phases.evaluate_s, phases.bench_s) == (35, 5, 6, 0)
    assert sum(phases.model_dump().values()) == pytest.approx(166, abs=0.5)


def test_looking_at_the_clock_does_not_turn_it() -> None:
    hands = Hands()
    clock = PhaseClock(datetime.now(UTC), hands)
    clock.enter("train_s")
    hands.now_s += 7
    assert clock.phases().train_s == clock.phases().train_s == 7


def test_speed_counts_training_alone() -> None:
    hands = Hands()
    clock = PhaseClock(datetime.now(UTC), hands)
    hands.now_s += 60
    clock.enter("train_s")
    speed = TrainingSpeed(clock, step=100)
    hands.now_s += 8
    with clock.during("evaluate_s"):
        hands.now_s += 500
    with clock.during("checkpoint_s"):
        hands.now_s += 70
    hands.now_s += 2
    assert speed.since_last(step=105) == (5, 10)
    hands.now_s += 4
    assert speed.since_last(step=107) == (2, 4)


def test_a_phase_ends_even_when_its_block_fails() -> None:
    hands = Hands()
    clock = PhaseClock(datetime.now(UTC), hands)
    clock.enter("train_s")
    with pytest.raises(ZeroDivisionError), clock.during("checkpoint_s"):
        hands.now_s += 2
        raise ZeroDivisionError
    hands.now_s += 3
    assert (clock.phases().checkpoint_s, clock.phases().train_s) == (2, 3)


def test_an_attempt_that_begins_in_the_future_has_no_negative_set_up() -> None:
    assert PhaseClock(datetime.now(UTC) + timedelta(hours=1), Hands()).phases().setup_s == 0


# -- attempts --------------------------------------------------------------------------------------


def test_an_attempt_knows_what_those_before_it_have_cost_and_left(store: UnsteadyStore) -> None:
    folder, began = RunFolder(store, "run"), datetime(2026, 1, 1, tzinfo=UTC)
    for number in (1, 2, 3):
        folder.claim_attempt(Document.TRAIN, billed_from=began + timedelta(hours=number), host="h", offer="",
                             price_usd_per_hour=Decimal(number))
    recording = Recorder(folder, folder.attempt(2).attempt, interval_s=3600, before=Before(),
                         clock=PhaseClock(began), progress=Progress(total_steps=12, durable_step=8))
    recording.close()

    own = OwnAttempt.find(folder, 3)

    assert own.attempt.number == 3 and own.durable_step == 8
    assert OwnAttempt.find(folder, 1).durable_step == 0
    later = own.recorder(folder, 3600, PhaseClock(began), Progress(total_steps=12))
    later.close()
    # An hour at 1 dollar and one at 2, then half of one at 3.
    assert later.spent_usd(began + timedelta(hours=3.5)) == pytest.approx(Decimal("4.5"))


def test_who_supervises_a_run_counts_towards_its_cap(store: UnsteadyStore) -> None:
    folder, began = RunFolder(store, "run"), datetime(2026, 1, 1, tzinfo=UTC)
    folder.add_event("submitted", began - timedelta(hours=1), controller_usd_per_hour="0.50")
    folder.claim_attempt(Document.TRAIN, billed_from=began, host="h", offer="", price_usd_per_hour=Decimal(2))
    own = OwnAttempt.find(folder, 1).recorder(folder, 3600, PhaseClock(began), Progress(total_steps=12))
    own.close()
    # Three hours at 2 dollars, and four of the controller's.
    assert own.spent_usd(began + timedelta(hours=3)) == pytest.approx(Decimal("8"))


# -- heartbeats and rows ---------------------------------------------------------------------------


def test_a_heartbeat_knows_what_all_attempts_have_cost(store: UnsteadyStore) -> None:
    recording = recorder(store, age_s=500)
    recording.close()

    beat = RunFolder(store, "run").read("attempts/2/heartbeat.json", Heartbeat)

    # $1.00 before, then 500 s at a tenth of a cent.
    assert Decimal("1.50") <= beat.spent_usd < Decimal("1.51")
    assert (beat.at - datetime.now(UTC)) < timedelta(seconds=5)
    assert sum(beat.phases.model_dump().values()) == pytest.approx(500, abs=1)


def test_rows_come_in_chunks_that_are_never_written_again(store: UnsteadyStore) -> None:
    recording = recorder(store)
    recording.log(1, {"loss": 3.0})
    recording.log(2, {"loss": 2.0})
    recording.write()
    recording.write()  # nothing new
    recording.log(3, {"loss": 1.0})
    recording.close()

    assert [found.key for found in store.objects("run/attempts/2/metrics")] == [
        "run/attempts/2/metrics/000000.jsonl", "run/attempts/2/metrics/000001.jsonl"]
    assert [(row["step"], row["loss"]) for row in rows(store)] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert RunFolder(store, "run").read("attempts/2/heartbeat.json", Heartbeat).metrics == {"loss": 1.0}


@pytest.mark.parametrize("broken", ["metrics", "heartbeat"])
def test_a_row_is_written_once_although_the_store_fails_between(store: UnsteadyStore, broken: str) -> None:
    recording = recorder(store)
    recording.log(1, {"loss": 3.0})
    store.broken = broken
    with pytest.raises(StoreError):
        recording.write()
    recording.log(2, {"loss": 2.0})
    store.broken = None
    recording.close()

    assert [row["step"] for row in rows(store)] == [1, 2]


def test_the_thread_outlives_a_store_that_fails_and_closing_never_raises(
        store: UnsteadyStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.broken = "attempts"
    recording = recorder(store, interval_s=0.01)
    recording.log(1, {"loss": 3.0})
    time.sleep(0.1)
    store.broken = None
    give_up = time.monotonic() + 10
    while not rows(store) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert [row["step"] for row in rows(store)] == [1]
    store.broken = "attempts"
    recording.close()

    said = capsys.readouterr().out
    assert "warning: heartbeat not written: " in said and "no route to host" in said


def test_a_metric_that_is_no_number_leaves_a_heartbeat_that_reads(store: UnsteadyStore) -> None:
    recording = recorder(store)
    recording.log(1, {"eval/loss": float("nan")})
    recording.close()

    assert RunFolder(store, "run").find("attempts/2/heartbeat.json", Heartbeat) is not None
    assert rows(store)[0]["step"] == 1


# -- time and money --------------------------------------------------------------------------------


def test_a_row_tells_what_was_spent_what_moved_training_and_what_is_at_risk(store: UnsteadyStore) -> None:
    hands, attempt = Hands(), Attempt(number=2, document=Document.TRAIN, offer="", host="h",
                                      price_usd_per_hour=Decimal("3.60"), billed_from=datetime.now(UTC))
    clock = PhaseClock(attempt.billed_from, hands)
    progress = Progress(total_steps=12, durable_train_s=25.0, durable_evaluate_s=4.0)
    recording = Recorder(RunFolder(store, "run"), attempt, interval_s=3600, clock=clock, progress=progress,
                         before=Before(Decimal("1.00"), useful_s=60, paid_s=100))
    hands.now_s += 10
    clock.enter("train_s")
    hands.now_s += 40
    with clock.during("evaluate_s"):
        hands.now_s += 10
    found = recording.accounts()
    recording.close()

    assert found["spent_usd"] == pytest.approx(1.0, abs=0.01)
    assert found["goodput"] == pytest.approx((60 + 40) / (100 + 60), abs=0.002)
    assert found["checkpoint_age_s"] == pytest.approx((40 - 25) + (10 - 4), abs=0.01)


def test_what_earlier_attempts_came_to_counts_training_alone(store: UnsteadyStore) -> None:
    folder, began = RunFolder(store, "run"), datetime.now(UTC) - timedelta(hours=3)
    for hour, document in enumerate((Document.TRAIN, Document.BENCH, Document.TRAIN)):
        attempt = folder.claim_attempt(document, billed_from=began + timedelta(hours=hour), host="h",
                                       offer="", price_usd_per_hour=Decimal(1))
        Recorder(folder, attempt, interval_s=3600, before=Before(), clock=PhaseClock(began),
                 progress=Progress(total_steps=12, durable_train_s=900)).close()

    own = OwnAttempt.find(folder, 3)
    recording = own.recorder(folder, 3600, PhaseClock(own.attempt.billed_from), Progress(total_steps=12))
    found = recording.accounts()
    recording.close()

    # 900 s kept of one hour, and now an hour of set-up.
    assert found["goodput"] == pytest.approx(900 / 7200, rel=0.01)
    assert found["spent_usd"] == pytest.approx(3.0, rel=0.01)


def test_records_reach_the_store_before_the_rows_that_they_belong_to(store: UnsteadyStore) -> None:
    recording = recorder(store)
    recording.keep("evaluations/00000004.json", Scored(step=4))
    recording.log(4, {"eval/loss": 1.0})
    store.broken = "evaluations"
    with pytest.raises(StoreError):
        recording.write()
    assert rows(store) == []
    store.broken = None
    recording.close()

    assert [row["step"] for row in rows(store)] == [4]
    assert RunFolder(store, "run").read_json("attempts/2/evaluations/00000004.json") == {"step": 4}


def test_writing_from_two_threads_at_once_loses_and_doubles_no_row(store: UnsteadyStore) -> None:
    recording = recorder(store, interval_s=0.001)
    for step in range(200):
        recording.log(step, {"loss": 0.0})
        if step % 5 == 0:
            recording.write()
    recording.close()

    assert [row["step"] for row in rows(store)] == list(range(200))


def test_a_later_price_is_counted_and_told_once(store: UnsteadyStore) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1000)
    attempt = Attempt(number=2, document=Document.TRAIN, offer="", host="h", billed_from=began,
                      price_usd_per_hour=Decimal("3.60"))
    known = [PriceFrom(at=began + timedelta(seconds=500), usd_per_hour=Decimal("7.20"))]
    recording = Recorder(RunFolder(store, "run"), attempt, interval_s=3600, before=Before(),
                         clock=PhaseClock(began), progress=Progress(total_steps=12),
                         prices=lambda: tuple(known))
    assert recording.spent_usd(began + timedelta(seconds=1000)) == Decimal("1.5")
    store.broken = "events"
    with pytest.raises(StoreError):
        recording.write()
    store.broken = None
    recording.write()
    recording.close()
    folder = RunFolder(store, "run")
    assert folder.read("attempts/2/heartbeat.json", Heartbeat).prices == tuple(known)
    assert [(event.kind, event.at, event.detail) for event in folder.events()] == [
        (BID_RAISED, known[0].at, {"attempt": 2, "usd_per_hour": "7.20"})]
