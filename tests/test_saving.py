"""A store that is away or slow: training goes on, the promise does not, and the user is told."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.rental_terms import TERMS, RentalTerms  # noqa: E402
from trainer.saving import last_try_over  # noqa: E402

SLOW_SAVE = Path(__file__).parent / "slow_save"


def small_run(folder: Path, steps: int, num_ranks: int = 1, **checkpoint: object) -> TrainerRun:
    """It would save three times a second."""
    config = tiny_config(write_text(folder / "prose.txt"), steps=steps, evaluate_every_steps=100_000,
                         optimizer={"learning_rate": 1e-3, "warmup_steps": 2, "round_steps": 2},
                         checkpoint={"every_minutes": 0.005, "keep": 2} | checkpoint)
    return TrainerRun(config, folder / "store", num_ranks=num_ranks)


@pytest.fixture
def run(tmp_path: Path) -> TrainerRun:
    """It would do so for hours."""
    return small_run(tmp_path, steps=100_000)


@contextmanager
def away(run: TrainerRun, node: "subprocess.Popen[str]") -> Iterator[None]:
    """From the first checkpoints on, until the block ends, no other can be written."""
    run.wait_for(node, 1, durable=10)
    checkpoints = run.store / "run/checkpoints"
    checkpoints.rename(run.store / "away")
    checkpoints.touch()  # nothing can be written below a file
    yield
    checkpoints.unlink()
    (run.store / "away").rename(checkpoints)


def await_last_save(run: TrainerRun, node: "subprocess.Popen[str]") -> None:
    """Return once training has stood still for longer than any save takes here: the first try is over."""
    give_up = time.monotonic() + run.deadline_s
    stood_s = run.folder.attempt(1).heartbeat.phases.checkpoint_s
    while run.folder.attempt(1).heartbeat.phases.checkpoint_s < stood_s + 5:
        assert time.monotonic() < give_up and node.poll() is None
        time.sleep(0.05)


def test_a_store_that_is_away_stops_the_promise_and_not_the_training(run: TrainerRun) -> None:
    node = run.start()
    with away(run, node):
        before = run.folder.attempt(1).heartbeat
        run.wait_for(node, 1, step=before.step + 60)
        durable_then = run.folder.attempt(1).heartbeat.durable_step
    run.wait_for(node, 1, durable=durable_then + 10)
    node.terminate()
    output, _ = node.communicate(timeout=run.deadline_s)

    assert node.returncode == ExitCode.RECOVER, output
    assert output.count("checkpoint not saved: ") >= 2  # it tries again, and does not give up
    assert re.search(rf"step {durable_then} is the newest durable one, and [\d.]+ (s|min) of work would be "
                     r"lost with this machine; training goes on", output)
    assert re.search(rf"step \d+/100000 .* step {durable_then} is the newest durable one", output)
    assert "Traceback" not in output
    first_resumed = run.checkpoints()[0].step
    assert f"step {first_resumed} is durable" in output


def test_what_a_store_does_not_take_when_training_ends_is_tried_again_until_it_does(tmp_path: Path) -> None:
    run = small_run(tmp_path, steps=200, every_minutes=1, every_steps=10)
    node = run.start()
    with away(run, node):
        run.wait_for(node, 1, step=200)
        await_last_save(run, node)
    output, _ = node.communicate(timeout=run.deadline_s)

    assert node.returncode == ExitCode.FINISHED, output
    assert "of work would be lost with this machine; it is tried again while there is time" in output
    assert run.checkpoints()[0].step == 200
    assert "Traceback" not in output


def test_a_run_that_is_asked_to_stop_leaves_no_step_behind_because_the_store_is_away_for_a_moment(
        tmp_path: Path) -> None:
    run = small_run(tmp_path, steps=100_000, every_minutes=1, every_steps=10)
    node = run.start()
    with away(run, node):
        node.terminate()
        await_last_save(run, node)
    output, _ = node.communicate(timeout=run.deadline_s)

    assert node.returncode == ExitCode.RECOVER, output
    newest = run.checkpoints()[0].step
    assert newest == run.folder.attempt(1).heartbeat.step
    assert f"asked to stop; step {newest} is durable" in output


@pytest.mark.parametrize(("waited_s", "left_s", "is_past_limit", "is_over"), [
    (7100, None, False, False), (7200, None, False, True),  # nobody forces the end: two hours
    (280, None, True, False), (300, None, True, True),  # the cap is spent: minutes
    (0, 36, False, False), (0, 34, False, True)])  # 20 s of a save, 10 s of a pause, 5 s for the record
def test_a_last_save_is_given_up_when_another_try_would_come_too_late_or_cost_too_much(
        waited_s: float, left_s: float | None, is_past_limit: bool, is_over: bool) -> None:
    assert last_try_over(waited_s, 20.0, left_s, is_past_limit=is_past_limit) is is_over


def test_where_the_store_is_slower_than_the_interval_the_interval_grows_and_it_is_said_once(
        run: TrainerRun) -> None:
    node = run.start(PYTHONPATH=f"{SLOW_SAVE}:{ROOT}", TEST_SAVE_S="4")
    run.wait_for(node, 1, durable=10)
    first = time.monotonic()
    durable = run.folder.attempt(1).heartbeat.durable_step
    run.wait_for(node, 1, durable=durable + 1)
    passed = time.monotonic() - first
    beat = run.folder.attempt(1).heartbeat
    node.terminate()
    output, _ = node.communicate(timeout=run.deadline_s)

    told = "the store takes longer for a checkpoint than the 0.3 s between two"
    assert 1 <= output.count(told) <= len(re.findall(r"^checkpoint of step \d+ is durable", output, re.M)) + 1
    # Training stood still for the copies alone: less than for one of the saves.
    assert passed >= 4 > beat.phases.checkpoint_s


def test_a_step_whose_checkpoint_stays_does_not_wait_for_the_upload_of_another(tmp_path: Path) -> None:
    """The first save by time is held up until training has gone on beyond that step."""
    run = small_run(tmp_path, steps=100_000, num_ranks=2, every_steps=80, keep=1)
    gate = tmp_path / "gate"
    node = run.start(PYTHONPATH=f"{SLOW_SAVE}:{ROOT}", TEST_SAVE_S="0", TEST_SAVE_GATE=str(gate))
    run.wait_for(node, 1, step=84)
    gate.touch()
    run.wait_for(node, 1, durable=110)
    node.terminate()
    output, _ = node.communicate(timeout=run.deadline_s)

    assert node.returncode == ExitCode.RECOVER, output
    assert "no checkpoint of step 80: the one before it is not durable yet" in output
    stands_in = re.search(r"the checkpoint of step (\d+) stays in place of one of 80", output)
    assert stands_in and int(stands_in[1]) > 80 and int(stands_in[1]) % 2 == 0, output
    assert int(stands_in[1]) in [manifest.step for manifest in run.checkpoints()]


def test_a_promise_sets_the_pace_and_what_is_saved_after_so_many_steps_stays(tmp_path: Path) -> None:
    run = small_run(tmp_path, steps=100_000, every_minutes=None, max_lost_minutes=0.1, every_steps=50, keep=1)
    node = run.start(LDLM_PRICE_USD_PER_HOUR="2", LDLM_UPLOAD_USD_PER_GB="0.01", LDLM_HOURS_TO_LOSS="7")
    run.wait_for(node, 1, durable=120)
    beat = run.folder.attempt(1).heartbeat
    node.kill()
    node.communicate(timeout=run.deadline_s)
    told = run.folder.attempt(1).heartbeat
    assert beat.pace.lost_s == pytest.approx(6) and 0 < beat.pace.save_s < beat.pace.interval_s
    kept = [manifest.step for manifest in run.checkpoints()]
    assert {50, 100} <= set(kept)
    assert len([step for step in kept if step % 50]) <= 2  # the newest, and one that was being replaced

    again = run.start(LDLM_PRICE_USD_PER_HOUR="2", LDLM_UPLOAD_USD_PER_GB="0.01", LDLM_HOURS_TO_LOSS="7")
    run.wait_for(again, 2, durable=told.durable_step + 20)
    again.terminate()
    output, _ = again.communicate(timeout=run.deadline_s)
    assert re.search(r"a checkpoint every 5\.\d+ s: no more than 6 s may be lost, and a save takes 0\.\d+ s; "
                     r"\d.* would cost least; a lost machine costs at most 6 s of work", output), output


def test_where_roundings_lie_too_far_apart_a_save_begins_after_any_step(tmp_path: Path) -> None:
    """2,000 steps take minutes on two ranks, and 6 s may be lost."""
    run = small_run(tmp_path, steps=100_000, num_ranks=2, every_minutes=None, max_lost_minutes=0.1)
    run.config = run.config.model_copy(update={
        "optimizer": run.config.optimizer.model_copy(update={"round_steps": 2000})})
    node = run.start(LDLM_PRICE_USD_PER_HOUR="2", LDLM_HOURS_TO_LOSS="7")
    run.wait_for(node, 1, durable=20)
    node.terminate()
    output, _ = node.communicate(timeout=run.deadline_s)

    assert node.returncode == ExitCode.RECOVER, output
    assert run.folder.attempt(1).heartbeat.durable_step < 2000
    assert "a lost machine costs at most 6 s of work" in output, output
    assert "the recipe promises" not in output, output


def test_a_node_saves_by_the_price_of_its_own_machine_s_uploads(tmp_path: Path) -> None:
    """At the price of the plan, a checkpoint of this size would be saved every minute or two."""
    (tmp_path / TERMS).write_text(RentalTerms(rented_at=datetime.now(UTC),
                                              sent_usd_per_gb=Decimal(1000)).model_dump_json())
    config = tiny_config(write_text(tmp_path / "prose.txt"), checkpoint={
        "every_steps": 4, "max_lost_minutes": 100_000})
    run = TrainerRun(config, tmp_path / "store", num_ranks=1)
    code, output = run.finish(HOME=str(tmp_path), LDLM_PRICE_USD_PER_HOUR="2", LDLM_HOURS_TO_LOSS="7",
                              LDLM_UPLOAD_USD_PER_GB="0.01")
    assert code == ExitCode.FINISHED, output
    assert run.folder.attempt(1).heartbeat.pace.interval_s > 1800


def test_of_timed_saves_the_newest_alone_stays_once_a_run_has_finished(run: TrainerRun) -> None:
    run.config = run.config.model_copy(update={"steps": 40, "evaluate_every_steps": 40})
    code, output = run.finish()
    assert code == ExitCode.FINISHED and output.count(" is durable") > 1, output
    assert [manifest.step for manifest in run.checkpoints()] == [40]
