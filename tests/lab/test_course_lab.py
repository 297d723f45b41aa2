"""Runs with a deadline on the fake of Vast, under the real SkyPilot: spot is withdrawn, they wait and go on
demand when their policy says so; what was decided, their record replays. Uniform Progress pays early enough
to come back when spot is there again; ours waits as long as it can, and then has no time for the way back.
"""

from datetime import UTC, datetime, timedelta
from itertools import groupby

import pytest

from launcher.course_record import CourseRecord
from launcher.next_move import Move
from launcher.policies_known import UNIFORM_PROGRESS
from launcher.policy import Policy
from launcher.policy_ours import OURS
from tests.lab.runs import ROOT, durable, has_ended, ldlm, record_of, wait_for
from tests.lab.vast_client import FakeVast
from trainer.contract import Outcome
from trainer.run_folder import AttemptFiles, RunFolder
from trainer.store import open_store

pytestmark = pytest.mark.lab
H100 = (4102, 4103, 4104)  # those that fit: bids from $1.30, 1.45 and 1.60, on demand $3.10, 3.60 and 4.20
BID = "{infra: vast, gpu: 'H100:2', bid_usd_per_hour: 1.60, disk_gib: 40}"
RENT = "{infra: vast, gpu: 'H100:2', price_usd_per_hour: 4.50, disk_gib: 40}"
STEPS = 600
AHEAD = timedelta(minutes=3)  # of a straight line to the deadline, when spot is withdrawn: it can wait
OUR_DEADLINE_H = 0.7


def moves(store: str, run_id: str) -> list[Move]:
    return CourseRecord(RunFolder(open_store(store), run_id)).moves()


def is_on_demand(vast: FakeVast) -> bool:
    return [row["is_bid"] for row in vast.instances()] == [False]


def launch(store: str, policy: Policy, deadline_h: float) -> None:
    """A run with the name of its policy: a run is not given again what it has left soon."""
    done = ldlm("launch", str(ROOT / "tests/lab/vast.yaml"), "--allow-dirty", "--infra", "vast", "--store",
                store, "--run-id", policy.name, "--yes", "--detach",
                "--set", f"hardware.train=[{BID}, {RENT}]", "--set", f"train.steps={STEPS}",
                "--set", "train.checkpoint.every_steps=30", "--set", f"train.evaluate_every_steps={STEPS}",
                "--deadline", str(deadline_h), "--max-cost", "9", "--set", f"limits.policy={policy.name}")
    assert done.returncode == 0, done.stderr


def withdraw_spot(vast: FakeVast) -> None:
    (first,) = vast.instances()
    assert first["is_bid"]
    for machine_id in H100:
        vast.price(machine_id, min_bid="9.99")  # the one that runs is outbid by it, too


def trainings(store: str, run_id: str) -> list[AttemptFiles]:
    """The attempts of a run that has trained to its end."""
    record = record_of(store, run_id)
    assert record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    assert record.outcome.step == STEPS
    return [files for files in record.attempts if files.attempt.document == "train"]


def turns(decided: list[Move]) -> list[str]:
    """What was decided, without what was decided again; on the way it was asked at every tick."""
    for move in decided:
        print(f"{move.seen.at:%H:%M:%S} {move.seen.place} {move.action:9} {move.reason}")
    pays = next(index for index, move in enumerate(decided) if move.action == "on_demand")
    assert decided[pays].seen.at - decided[pays - 1].seen.at < timedelta(minutes=1)
    return [action for action, _ in groupby(move.action for move in decided)]


def is_behind_the_line(move: Move) -> bool:
    """Less is done than what a straight line to the deadline asks for by now."""
    work_h, deadline_h = move.setting["work_h"], move.setting["deadline_h"]
    done_h = work_h - move.situation["work_left_h"]
    return bool(done_h / work_h < move.situation["elapsed_h"] / deadline_h)


def assert_that_a_replay_decides_the_same(decided: list[Move], policy: Policy) -> None:
    for move in decided:
        again = move.replayed(policy)
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)


def test_it_waits_pays_and_comes_back_as_uniform_progress_says(store: str, vast: FakeVast) -> None:
    deadline_h = 0.75
    launch(store, UNIFORM_PROGRESS, deadline_h)
    planned_at = datetime.now(UTC)
    wait_for(lambda: durable(store, UNIFORM_PROGRESS.name) / STEPS * timedelta(hours=deadline_h)
             > datetime.now(UTC) - planned_at + AHEAD, "a checkpoint that is early")
    withdraw_spot(vast)
    wait_for(lambda: is_on_demand(vast), "a machine on demand")
    before = durable(store, UNIFORM_PROGRESS.name)
    vast.price(H100[2], min_bid="1.60")
    wait_for(lambda: [row["is_bid"] for row in vast.instances()] == [True], "spot again")
    wait_for(lambda: has_ended(store, UNIFORM_PROGRESS.name), "the end")

    trained, decided = trainings(store, UNIFORM_PROGRESS.name), moves(store, UNIFORM_PROGRESS.name)
    assert [(files.attempt.offer, files.end and files.end.exit_code) for files in trained] == [
        ("H100:2 on vast (interruptible)", None), ("H100:2 on vast (on-demand)", 75),
        ("H100:2 on vast (interruptible)", 0)]
    bid, rent, again = [str(files.attempt.price_usd_per_hour) for files in trained]
    assert bid == again == "1.6" and rent in ("3.1", "3.6", "4.2")
    assert before < trained[2].heartbeat.resumed_from_step < STEPS  # what it did on demand, to the last step
    assert trained[1].end.reason.startswith("asked to go on on another machine")
    assert turns(decided) == ["spot", "wait", "on_demand", "spot"]
    pays = [move.action for move in decided].index("on_demand")
    assert not is_behind_the_line(decided[pays - 1]) and is_behind_the_line(decided[pays])
    assert_that_a_replay_decides_the_same(decided, UNIFORM_PROGRESS)


def test_ours_waits_to_the_last_minute_and_pays(store: str, vast: FakeVast) -> None:
    planned_at = datetime.now(UTC)
    launch(store, OURS, OUR_DEADLINE_H)
    wait_for(lambda: durable(store, OURS.name) > 0, "a checkpoint")
    withdraw_spot(vast)
    wait_for(lambda: is_on_demand(vast), "a machine on demand")
    wait_for(lambda: has_ended(store, OURS.name), "the end")

    trained, decided = trainings(store, OURS.name), moves(store, OURS.name)
    assert [(files.attempt.offer, files.end and files.end.exit_code) for files in trained] == [
        ("H100:2 on vast (interruptible)", None), ("H100:2 on vast (on-demand)", 0)]
    assert trained[1].end.at < planned_at + timedelta(hours=OUR_DEADLINE_H)
    assert turns(decided) == ["spot", "wait", "on_demand"]
    assert_that_a_replay_decides_the_same(decided, OURS)
