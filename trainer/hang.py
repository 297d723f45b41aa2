"""Does training hang? A node decides it from what it sees of its own ranks, asking none of them. No torch.

Ranks enter and leave evaluation and saves together (`trainer.train`), and every step has collectives: so when
one rank of a run hangs, all ranks of all nodes stand still in training, and every node comes to the same
verdict within seconds, alone. Where another phase is slow, none does. A rank that somebody has stopped is a
hang in every phase: outside of training, the other nodes see it as a crash.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from trainer.contract import ExitCode, LdlmError, Name, attempt_file
from trainer.metrics import Phase
from trainer.run_folder import RunFolder
from trainer.sign_of_life import Sign
from trainer.stacks import Stacks, collect_stacks

_MEDIAN_STEPS = 5
_WINDOW = 51  # steps that the median is taken of (guess)
# A first step compiles kernels and fetches text, an evaluation is as long as the recipe makes it. A hang is
# rare there, and whoever ends what does not hang ends it again and again (guess).
_PATIENCE_S = 3600.0
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_WAITS_FOR: dict[Phase, str] = {"train_s": "no new step", "evaluate_s": "no end of the evaluation"}


class HungError(LdlmError):
    """Training hangs: nothing that its ranks wait for will come. Another attempt goes on.

    Args:
        problem: What hangs, and for how long.
        attempt: Whose ranks these are; None: they hung before they knew.
        stacks: Of every rank of this node.
    """

    node_exit_code = ExitCode.RECOVER

    def __init__(self, problem: str, attempt: int | None, stacks: Sequence[Stacks]) -> None:
        places = "; ".join(f"rank {found.rank} {found.place}" for found in stacks)
        where = "the log" if attempt is None else f"{attempt_file(attempt, Name.STACKS)} of the run folder"
        super().__init__(f"{problem}: {places}", fix=f"if it comes again, read the stacks in {where}")
        self._attempt, self._stacks = attempt, stacks

    def save(self, folder: RunFolder) -> None:
        """Put the stacks among the files of the attempt, or into the log where that cannot be."""
        unsaved = list(self._stacks)
        try:
            while unsaved and self._attempt is not None:
                name = f"{Name.STACKS}/rank-{unsaved[0].rank:04d}.txt"
                folder.write_bytes(attempt_file(self._attempt, name), unsaved[0].text.encode())
                del unsaved[0]
        except LdlmError as error:
            print(f"warning: stacks not saved: {error}", flush=True)
        for found in unsaved:
            print(f"rank {found.rank}:\n{found.text}", flush=True)


class Silence(NamedTuple):
    """How long nothing has changed.

    Attributes:
        signs: The last ones of the ranks of this node.
        quiet_s: Since any of them changed.
        stopped_s: Of ranks that somebody has stopped (SIGSTOP, a debugger), by rank: since when.
        median_step_s: Of the last steps; None before there was one.
    """

    signs: Sequence[Sign]
    quiet_s: float
    stopped_s: Mapping[int, float]
    median_step_s: float | None


def limit_s(silence: Silence, hang_s: float) -> float | None:
    """How long ranks may be silent where they are; None: for ever (pure).

    Set-up and saves end by themselves: the store gives up, and so does torch where a peer does not come.
    """
    if not silence.signs or any(sign.phase not in _WAITS_FOR for sign in silence.signs):
        return None
    if all(sign.phase == "train_s" and sign.num_done for sign in silence.signs):
        return _quick_limit_s(silence, hang_s)
    return max(_PATIENCE_S, hang_s)


def _quick_limit_s(silence: Silence, hang_s: float) -> float:
    return max(_MEDIAN_STEPS * (silence.median_step_s or 0.0), hang_s)


def problem(silence: Silence, hang_s: float) -> str | None:
    """Why this is a hang, in words; None: it is none (pure).

    Args:
        hang_s: Shortest silence that counts.
    """
    for rank, seconds in silence.stopped_s.items():
        if seconds >= _quick_limit_s(silence, hang_s):
            return f"it hangs: the process of rank {rank} has been stopped for {seconds:.0f} s"
    limit = limit_s(silence, hang_s)
    if limit is None or silence.quiet_s < limit:
        return None
    step, median_s = min(sign.step for sign in silence.signs), silence.median_step_s
    pace = f", where a step takes {median_s:.2f} s" if median_s is not None else ""
    return (f"it hangs: {_WAITS_FOR[silence.signs[0].phase]} for {silence.quiet_s:.0f} s after step {step}"
            f"{pace}")


class HangWatch:
    """Looks at the ranks of one node, several times a second.

    Args:
        ends: The folder where they leave their signs.
        hang_s: Shortest silence that counts.
        clock: Seconds that never go back.
    """

    def __init__(self, ends: Path, hang_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ends, self._hang_s, self._clock = ends, hang_s, clock
        self._looked_at = clock()
        self._signs: list[Sign] = []
        self._quiet_s = self._step_began_s = 0.0
        self._stopped_s: dict[int, float] = {}
        self._steps_s: deque[float] = deque(maxlen=_WINDOW)

    def look(self) -> str | None:
        """What hangs, in words, or None."""
        now = self._clock()
        # After a longer gap this process was itself stopped, and its ranks with it: they get time to move.
        elapsed_s, self._looked_at = min(now - self._looked_at, self._hang_s / 2), now
        signs = Sign.read_all(self._ends)
        self._quiet_s += elapsed_s
        self._step_began_s += elapsed_s
        if signs != self._signs:
            self._note_steps(signs)
            self._signs, self._quiet_s = signs, 0.0
        self._stopped_s = {sign.rank: self._stopped_s.get(sign.rank, 0.0) + elapsed_s
                           for sign in signs if _is_stopped(sign.pid)}
        median_s = statistics.median(self._steps_s) if self._steps_s else None
        return problem(Silence(signs, self._quiet_s, self._stopped_s, median_s), self._hang_s)

    def error(self, problem: str) -> HungError:
        """What `look` has found, with what the ranks are doing."""
        attempt = next((sign.attempt for sign in self._signs if sign.attempt), None)
        return HungError(problem, attempt, collect_stacks(self._signs, self._ends))

    def _note_steps(self, signs: Sequence[Sign]) -> None:
        """Book the time since the last step on the steps since then, if all of it was training."""
        before, after = _num_done(self._signs), _num_done(signs)
        if before is None or after is None or after > before:
            if before is not None and after is not None:
                self._steps_s.append(self._step_began_s / (after - before))
            self._step_began_s = 0.0


def _num_done(signs: Sequence[Sign]) -> int | None:
    """Steps that all ranks have done; None where one of them does not train."""
    in_training = all(sign.phase == "train_s" for sign in signs)
    return min((sign.num_done for sign in signs), default=None) if in_training else None


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in _STOPPED
    except psutil.NoSuchProcess:
        return False
