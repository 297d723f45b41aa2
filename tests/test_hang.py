"""A run that hangs is ended by its node, leaves what its ranks did, and goes on; a slow one is left alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import ROOT, TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.hang import HangWatch  # noqa: E402
from trainer.sign_of_life import Sign, SignOfLife  # noqa: E402
from trainer.stacks import collect_stacks, main_frame  # noqa: E402

HANG_S = 4.0


def hung(how: str) -> dict[str, str]:
    """An environment in which a rank stands still."""
    return {"PYTHONPATH": f"{ROOT / 'tests' / 'hung_rank'}:{ROOT}", "HUNG_RANK": how}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def new_run(text: Path, tmp_path: Path, num_ranks: int = 2, **changes: object) -> TrainerRun:
    return TrainerRun(tiny_config(text, **{"hang_s": HANG_S} | changes), tmp_path / "store", num_ranks)


@pytest.fixture(scope="module")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    """Sixty steps that nobody interrupts."""
    run = new_run(text, tmp_path_factory.mktemp("straight"), steps=60)
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return run


def stacks(run: TrainerRun, attempt: int, rank: int) -> str:
    return run.folder.read_bytes(f"attempts/{attempt}/stacks/rank-{rank:04d}.txt").decode()


# -- whole runs ------------------------------------------------------------------------------------


def test_a_rank_that_is_stopped_ends_its_attempt_and_the_next_one_ends_in_the_same_losses(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, steps=60)

    node = run.start(**hung("stopped:7"))
    family: set[psutil.Process] = set()
    while node.poll() is None:
        family |= set(psutil.Process(node.pid).children(recursive=True))
        time.sleep(0.1)
    output, _ = node.communicate()

    assert node.returncode == ExitCode.RECOVER, output
    assert len(family) >= 3 and not any(process.is_running() for process in family)
    end = run.folder.attempt(1).end
    assert (end.exit_code, end.hung, end.preempted) == (ExitCode.RECOVER, True, False)
    assert "after step 6" in end.reason or "rank 1 has been stopped" in end.reason
    assert "rank 1 answers no signal: state T (stopped)" in end.reason and "rank 0 is in " in end.reason
    assert "attempts/1/stacks" in end.reason and end.reason in output
    assert "in train_step" in stacks(run, 1, 0) and "Thread " in stacks(run, 1, 0)
    assert "state T (stopped)" in stacks(run, 1, 1)

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert "resumed from step 4 of 60" in output
    assert run.losses(2) == {step: row for step, row in straight.losses(1).items() if step > 4}


def test_text_that_never_comes_is_a_hang_and_three_in_a_row_end_the_run(text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, num_ranks=1)

    code, output = run.finish(**hung("text:3"))

    assert code == ExitCode.RECOVER, output
    reason = run.folder.attempt(1).end.reason
    assert reason.startswith("it hangs: no new step for ")
    assert " s after step 2" in reason  # how long a step takes is known once two were seen to end
    assert "rank 0 is in await_next (trainer/batches.py:" in reason
    assert "in wait_and_make" in stacks(run, 1, 0)

    first = run.folder.attempt(1)
    for number in (2, 3):  # as that one
        attempt = first.attempt.model_copy(update={"number": number})
        run.folder.write(f"attempts/{number}/attempt.json", attempt)
        run.folder.write(f"attempts/{number}/end.json", first.end)
    code, output = run.finish(**hung("text:3"))

    assert code == ExitCode.BROKEN, output
    assert "error: the last 3 attempts hung without a newer checkpoint than step 0" in output


def test_text_that_its_store_does_not_give_for_longer_than_a_hang_stops_training_and_not_the_attempt(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    """Of one rank of two; a run that waits hears that it is to stop, and saves."""
    # Long enough not to be over before its text is taken away again.
    run, away = new_run(text, tmp_path, heartbeat_s=0.2, steps=60), tmp_path / "away"
    away.touch()
    node = run.start(**hung(f"away:{away}"))
    run.wait_for(node, 1, step=0)
    give_up = time.monotonic() + run.deadline_s
    while run.folder.attempt(1).heartbeat.phases.waiting_s < 2 * HANG_S:
        assert node.poll() is None and time.monotonic() < give_up
        time.sleep(0.1)
    away.unlink()
    run.wait_for(node, 1, durable=4)
    away.touch()
    time.sleep(HANG_S)
    node.terminate()
    output, _ = node.communicate(timeout=run.deadline_s)
    assert node.returncode == ExitCode.RECOVER, output
    assert "rank 1: text is not fetched: text.bin: cannot be reached" in output
    assert "rank 1: text is fetched again" in output

    assert run.finish()[0] == ExitCode.FINISHED
    assert run.losses(1) | run.losses(2) == straight.losses(1)


def on_two_nodes(run: TrainerRun, how: str) -> tuple[list[int], list[str]]:
    """One rank on each, the second with what `how` says. Returns exit codes and what they printed."""
    place = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1"}
    nodes = [run.start(SKYPILOT_NODE_RANK=str(rank), **place, **hung(how)) for rank in (0, 1)]
    outputs = [node.communicate(timeout=run.deadline_s)[0] for node in nodes]
    return [node.returncode for node in nodes], outputs


@pytest.mark.parametrize("what", ["samples", "save"])
def test_what_one_rank_is_slow_at_is_no_hang_on_its_node_nor_on_the_one_that_waits(
        text: Path, tmp_path: Path, what: str) -> None:
    run = new_run(text, tmp_path, num_ranks=1, evaluate_every_steps=6, steps=8)
    codes, outputs = on_two_nodes(run, f"{what}:{5 * HANG_S}")
    assert codes == [ExitCode.FINISHED] * 2, "\n".join(outputs)


def test_two_nodes_come_to_the_same_verdict_and_each_leaves_the_stacks_of_its_ranks(
        text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, num_ranks=1)
    codes, outputs = on_two_nodes(run, "stopped:7")

    assert codes == [ExitCode.RECOVER] * 2, "\n".join(outputs)
    assert run.folder.attempt(1).end.hung
    assert "it hangs: no new step for " in outputs[0] and "state T (stopped)" in outputs[1]
    assert "in train_step" in stacks(run, 1, 0) and "state T (stopped)" in stacks(run, 1, 1)


# -- what is a hang --------------------------------------------------------------------------------


class Ranks:
    """Two ranks that leave signs, their node, and the clock of all three."""

    def __init__(self, folder: Path, hang_s: float = 60.0) -> None:
        self.now_s = 1000.0
        self.lives = [SignOfLife(folder, rank) for rank in (0, 1)]
        self._watch = HangWatch(folder, hang_s, lambda: self.now_s)

    def wait(self, seconds: float, look_every_s: float = 1.0) -> str | None:
        """Nothing moves, the node looks on. Returns what it says, as soon as it says anything."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += look_every_s
            if said := self._watch.look():
                return said
        return None

    def enter(self, phase: str) -> None:
        for life in self.lives:
            life.enter(phase)

    def step(self, step: int) -> None:
        for life in self.lives:
            life.at_step(step)

    def train(self, num_steps: int, step_s: float) -> None:
        self.enter("train_s")
        for step in range(num_steps):
            assert self.wait(step_s) is None
            self.step(step + 1)


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path)


@pytest.mark.parametrize(("step_s", "limit_s"), [(2, 60), (12, 60), (20, 100), (300, 1500)])
def test_five_times_the_median_step_is_a_hang_but_never_less_than_the_recipe_says(
        ranks: Ranks, step_s: int, limit_s: int) -> None:
    ranks.train(9, step_s)
    assert ranks.wait(limit_s) is None
    assert ranks.wait(2) == (f"it hangs: no new step for {limit_s} s after step 9, "
                             f"where a step takes {step_s:.2f} s")


def test_one_slow_step_and_an_evaluation_between_steps_do_not_move_the_median(ranks: Ranks) -> None:
    ranks.train(4, 20)
    assert ranks.wait(90) is None
    ranks.step(5)
    ranks.enter("evaluate_s")
    assert ranks.wait(1000) is None
    ranks.train(4, 20)
    assert "where a step takes 20.00 s" in ranks.wait(200)


@pytest.mark.parametrize("phase", ["setup_s", "restore_s", "checkpoint_s", "waiting_s"])
def test_set_up_saves_and_waiting_for_text_may_take_for_ever(ranks: Ranks, phase: str) -> None:
    ranks.train(3, 1)
    ranks.enter(phase)
    assert ranks.wait(10**5, look_every_s=20) is None


def test_a_first_step_and_an_evaluation_may_take_an_hour(ranks: Ranks) -> None:
    ranks.enter("train_s")
    assert ranks.wait(3500) is None
    ranks.step(1)
    ranks.enter("evaluate_s")
    assert ranks.wait(3500) is None
    assert ranks.wait(200) == "it hangs: no end of the evaluation for 3600 s after step 1"


def test_a_rank_that_saves_excuses_those_that_wait_for_it(ranks: Ranks) -> None:
    ranks.train(5, 1)
    ranks.lives[0].enter("checkpoint_s")
    assert ranks.wait(10**4) is None


def test_steps_that_are_quicker_than_the_node_looks_count(ranks: Ranks) -> None:
    ranks.enter("train_s")
    ranks.step(1)
    assert "after step 1" in ranks.wait(100)


def test_a_node_that_was_itself_stopped_gives_its_ranks_time_to_move(ranks: Ranks) -> None:
    ranks.train(5, 10)
    assert ranks.wait(20) is None
    assert ranks.wait(7200, look_every_s=7200) is None
    ranks.step(6)
    assert ranks.wait(50) is None


# -- stacks ----------------------------------------------------------------------------------------

RANK = """
import sys, threading, time
from pathlib import Path
from trainer.sign_of_life import SignOfLife, answer_with_stacks
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
def upload():
    time.sleep(1000)
def wait_for_the_others():
    time.sleep(1000)
threading.Thread(target=upload).start()
answer_with_stacks(folder, rank)
SignOfLife(folder, rank).enter("train_s")
wait_for_the_others()
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Two that leave signs in a folder and wait."""
    started = [subprocess.Popen([sys.executable, "-c", RANK, tmp_path, rank], cwd=ROOT) for rank in "01"]
    while len(Sign.read_all(tmp_path)) < 2:
        time.sleep(0.02)
    time.sleep(0.2)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_a_rank_tells_what_all_its_threads_do_and_of_a_stopped_one_the_kernel_does(
        processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    processes[1].send_signal(signal.SIGSTOP)
    told, mute = collect_stacks(Sign.read_all(tmp_path), tmp_path)

    assert "in upload" in told.text and "in wait_for_the_others" in told.text
    assert told.place == "is in no function of ours"
    assert mute.place == "answers no signal: state T (stopped)"
    assert f"rank 1, process {processes[1].pid}, " in mute.text and "waits in the kernel in " in mute.text


def test_a_stopped_rank_is_a_hang_in_every_phase(
        processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    ranks = Ranks(tmp_path)
    for sign in (Sign(rank, process.pid, 1, "checkpoint_s", 3, 3) for rank, process in enumerate(processes)):
        (tmp_path / f"sign-{sign.rank}").write_bytes(sign.packed())
    assert ranks.wait(1000) is None
    processes[1].send_signal(signal.SIGSTOP)
    while psutil.Process(processes[1].pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.02)
    assert ranks.wait(59) is None
    assert ranks.wait(2) == "it hangs: the process of rank 1 has been stopped for 60 s"


def test_a_rank_that_is_gone_is_no_reason_to_fail(
        processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    processes[1].kill()
    processes[1].wait()
    assert [found.place for found in collect_stacks(Sign.read_all(tmp_path), tmp_path)] == [
        "is in no function of ours", "is gone"]


def test_the_main_thread_s_innermost_function_of_ours_is_named() -> None:
    assert main_frame("""Thread 0x00007f01 (most recent call first):
  File "/x/trainer/metrics.py", line 270 in _write_until_closed

Current thread 0x00007f02 (most recent call first):
  File "/x/site-packages/torch/distributed/distributed_c10d.py", line 2990 in all_reduce
  File "/x/trainer/preemption.py", line 83 in agree
  File "/x/trainer/train.py", line 52 in train
""") == "agree (trainer/preemption.py:83)"
