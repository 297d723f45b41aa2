"""A run with a deadline on the fake of Vast, under the real SkyPilot: spot is withdrawn, it waits, goes on
demand when the policy says so, and back when spot is there again. What it decided, its record replays.
"""

from datetime import UTC, datetime, timedelta

import pytest

from launcher.course_record import CourseRecord
from launcher.next_move import Move
from launcher.policies_known import UNIFORM_PROGRESS
from tests.lab.runs import ROOT, durable, has_ended, ldlm, record_of, wait_for
from tests.lab.vast_client import FakeVast
from trainer.contract import Outcome
from trainer.run_folder import RunFolder
from trainer.store import open_store

pytestmark = pytest.mark.lab
RUN_ID = "on-course"
H100 = (4102, 4103, 4104)  # those that fit: bids from $1.30, 1.45 and 1.60, on demand $3.10, 3.60 and 4.20
BID = "{infra: vast, gpu: 'H100:2', bid_usd_per_hour: 1.60, disk_gib: 40}"
RENT = "{infra: vast, gpu: 'H100:2', price_usd_per_hour: 4.50, disk_gib: 40}"
STEPS, DEADLINE_H = 600, 0.75
AHEAD = timedelta(minutes=3)  # of a straight line to the deadline, when spot is withdrawn: it can wait


def moves(store: str) -> list[Move]:
    return CourseRecord(RunFolder(open_store(store), RUN_ID)).moves()


def is_on_demand(vast: FakeVast) -> bool:
    return [row["is_bid"] for row in vast.instances()] == [False]


def test_it_waits_pays_and_comes_back_as_the_policy_says(store: str, vast: FakeVast) -> None:
    done = ldlm("launch", str(ROOT / "tests/lab/vast.yaml"), "--allow-dirty", "--infra", "vast", "--store",
                store, "--run-id", RUN_ID, "--yes", "--detach", "--set", f"hardware.train=[{BID}, {RENT}]",
                "--set", f"train.steps={STEPS}", "--set", "train.checkpoint.every_steps=30",
                "--set", f"train.evaluate_every_steps={STEPS}", "--deadline", str(DEADLINE_H),
                "--max-cost", "9", "--set", "limits.policy=uniform-progress")
    assert done.returncode == 0, done.stderr
    planned_at = datetime.now(UTC)
    wait_for(lambda: durable(store, RUN_ID) / STEPS * timedelta(hours=DEADLINE_H)
             > datetime.now(UTC) - planned_at + AHEAD, "a checkpoint that is early")
    (first,) = vast.instances()
    assert first["is_bid"]
    for machine_id in H100:
        vast.price(machine_id, min_bid="9.99")  # the one that runs is outbid by it, too
    wait_for(lambda: is_on_demand(vast), "a machine on demand")
    before = durable(store, RUN_ID)
    vast.price(H100[2], min_bid="1.60")
    wait_for(lambda: [row["is_bid"] for row in vast.instances()] == [True], "spot again")
    wait_for(lambda: has_ended(store, RUN_ID), "the end")

    record, decided = record_of(store, RUN_ID), moves(store)
    for move in decided:
        print(f"{move.seen.at:%H:%M:%S} {move.seen.place} {move.action:9} {move.reason}")
    assert record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    assert record.outcome.step == STEPS
    trained = [files for files in record.attempts if files.attempt.document == "train"]
    assert [(files.attempt.offer, str(files.attempt.price_usd_per_hour), files.end and files.end.exit_code)
            for files in trained] == [
        ("H100:2 on vast (interruptible)", "1.6", None), ("H100:2 on vast (on-demand)", "4.5", 75),
        ("H100:2 on vast (interruptible)", "1.6", 0)]
    assert before < trained[2].heartbeat.resumed_from_step < STEPS  # what it did on demand, to the last step
    assert trained[1].end.reason.startswith("asked to go on on another machine")

    kinds = [move.action for index, move in enumerate(decided)
             if index == 0 or move.action != decided[index - 1].action]
    assert kinds == ["spot", "wait", "on_demand", "spot"]
    pays = next(index for index, move in enumerate(decided) if move.action == "on_demand")
    waited, paid = decided[pays - 1], decided[pays]
    assert paid.seen.at - waited.seen.at < timedelta(minutes=1)  # asked at every tick
    for move in decided:
        again = move.replayed(UNIFORM_PROGRESS)
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)
