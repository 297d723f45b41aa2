"""One case from its first attempt to its last, and what was wrong with it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.chaos import oracle
from tests.chaos.machine import End, Machine, Rank
from tests.chaos.oracle import Keep, Truth
from tests.chaos.plan import INTERVAL, NUM_STEPS, Case, Life
from trainer.contract import ExitCode

_PEACEFUL = 4  # attempts in which nothing befalls it: one should do, but a full disk takes its time


class Level(NamedTuple):
    """How cases of one level run.

    Attributes:
        rank: What a rank does.
        environment: Of a node, for a case and a store.
        truth: What the case has to come to.
        keep: Checkpoints that stay.
        deadline_s: Of an attempt.
    """

    rank: Rank
    environment: Callable[[Case, Path, int], Mapping[str, str]]
    truth: Callable[[Case], Truth]
    keep: Keep
    deadline_s: float


class Result(NamedTuple):
    """What a case has shown; it survived when nothing is wrong."""

    case: Case
    wrong: list[str]
    struck: int
    lost_steps: int
    resume_s: float
    output: str


class _Run:
    """The case under way."""

    def __init__(self, level: Level, case: Case, store: Path) -> None:
        self.level, self.case, self.store, self.run = level, case, store, store / "run"
        self.truth = level.truth(case)
        self.wrong: list[str] = []
        self.struck, self.lost_steps, self.resume_s, self.output = 0, 0, 0.0, ""
        self.floor, self.told, self.reached, self.is_damaged = 0, 0, 0, False

    def start(self, life: Life) -> Machine:
        environment = self.level.environment(self.case, self.store, life.num_ranks)
        return Machine(life, self.level.rank, environment, self.case.delay_s)

    def live(self, life: Life) -> bool:
        """One attempt, and another where it falls asleep. Returns whether the run has finished."""
        machine = self.start(life)
        end = machine.wait(self.level.deadline_s)
        if end is None:
            return self._sleep(machine, life)
        self._judge(machine, life, end)
        return end.code == ExitCode.FINISHED

    def _sleep(self, sleeper: Machine, life: Life) -> bool:
        self.struck += 1
        self.floor = oracle.newest_true(self.run, self.truth)
        other = self.start(life._replace(strike=None))
        end = other.wait(self.level.deadline_s)
        assert end is not None
        self._judge(other, life, end)
        sleeper.wake()
        late = sleeper.wait(self.level.deadline_s * 2)
        assert late is not None
        self.output += f"-- the sleeper\n{late.output}"
        if late.code not in (ExitCode.SUPERSEDED, ExitCode.FINISHED):
            self.wrong.append(f"the attempt that slept ended with {late.code}")
        return end.code == ExitCode.FINISHED

    def _judge(self, machine: Machine, life: Life, end: End) -> None:
        board, case = machine.board, self.case
        self.output += f"-- {life}: code {end.code}, resumed from {board.resumed_from:g}, " \
                       f"reached {board.step:g}\n{end.output}"
        self.struck += bool(board.struck)
        if end.left:
            self.wrong.append(f"{end.left} processes outlived their node")
        if end.code in (ExitCode.BROKEN, ExitCode.BAD_CONFIG):
            self.wrong.append(f"gave up with {end.code}")
        is_stopped = life.strike is not None and life.strike.action == "stop" and board.struck
        if is_stopped and end.code != ExitCode.RECOVER:
            self.wrong.append(f"a rank was stopped, and its attempt ended with {end.code}")
        if board.resumed_from >= 0:
            # What nobody has been told, a listing that lags may hide.
            is_stale = life.strike is not None and life.strike.action == "stale"
            floor = min(self.floor, self.told) if is_stale else self.floor
            if board.resumed_from < floor:
                self.wrong.append(f"resumed from {board.resumed_from:g}, and {floor} was durable")
            if self.reached:
                lost = self.reached - int(board.resumed_from)
                self.lost_steps, self.reached = max(self.lost_steps, lost), 0
                if case.keeps_promise and lost > 2 * INTERVAL:
                    self.wrong.append(f"{lost} steps are lost")
            self.reached = int(board.step)
        if board.first_step_at:
            self.resume_s = max(self.resume_s, board.first_step_at - machine.began_s)
        self.wrong += [] if self.is_damaged else oracle.lies(self.run, self.truth)
        if life.damage:
            self._damage(life.damage)
        self.floor = oracle.newest_true(self.run, self.truth)
        self.told = oracle.told_durable(self.run)
        if not self.is_damaged and self.told > self.floor:
            self.wrong.append(f"step {self.told} was told to be durable, and is not")

    def _judge_end(self) -> None:
        keep, num_steps = self.level.keep, NUM_STEPS[self.case.level]
        self.wrong += oracle.faults_of_a_finished_run(self.run, self.truth, num_steps, keep)
        if self.case.keeps_promise:
            self.wrong += [f"the checkpoint of step {step} does not stay"
                           for step in sorted(keep.steps - oracle.checkpoints(self.run).keys())]

    def _damage(self, how: str) -> None:
        """To the newest checkpoint, where another one stands behind it."""
        found = oracle.checkpoints(self.run)
        if len(found) < 2:
            return
        self.is_damaged, folder = True, found[max(found)]
        path = folder / "manifest.json" if how.startswith("manifest") else sorted(folder.glob("*.bin"))[-1]
        data = bytearray(path.read_bytes())
        if how.endswith("flipped"):
            data[len(data) // 2] ^= 0x10
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(data if how.endswith("flipped") else data[:len(data) // 2])

    def finish(self) -> Result:
        for life in [*self.case.lives, *[Life(self.case.num_ranks)] * _PEACEFUL]:
            try:
                if self.live(life):
                    self._judge_end()
                    break
            except TimeoutError as error:
                self.wrong.append("an attempt hangs")
                self.output += f"-- {life}: hangs\n{error}"
                break
        else:
            self.wrong.append("does not finish")
        return Result(self.case, list(dict.fromkeys(self.wrong)), self.struck, self.lost_steps, self.resume_s,
                      self.output)


def run_case(level: Level, case: Case, kept: Path | None = None) -> Result:
    """Run one. What it left is kept in the folder when it did not survive."""
    with tempfile.TemporaryDirectory(prefix="ldlm-chaos-", dir=_memory()) as folder:
        result = _Run(level, case, Path(folder) / "store").finish()
        if result.wrong and kept is not None:
            place = kept / f"{case.level}-{case.seed}"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(folder, place)
            (place / "output.txt").write_text("\n".join([str(case), *result.wrong, result.output]))
    return result


def _memory() -> str | None:
    """A disk in memory, where there is one: cases write much that nobody reads."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
