"""What a rank leaves for its node, so that the node sees without its help whether it goes on. No torch.

Two files of each rank in the folder of ends: where it is, told anew at every step and phase, and the stacks
of its threads, which it adds whenever it gets a signal: written by the signal handler itself, they come from
a rank that waits in a collective, too.
"""

import faulthandler
import mmap
import os
import signal
import struct
from pathlib import Path
from typing import NamedTuple, Self, get_args

from trainer.metrics import Phase

ASK_FOR_STACKS = signal.SIGUSR1
_LAYOUT = struct.Struct("=6q")
_PHASES: tuple[Phase, ...] = get_args(Phase)


class Sign(NamedTuple):
    """Where one rank is.

    Attributes:
        rank: Among all nodes.
        pid: Of its process.
        attempt: Number of this attempt; 0 until the rank knows it.
        phase: That its time goes to.
        step: Optimizer steps done.
        num_done: Of them, in this attempt.
    """

    rank: int
    pid: int
    attempt: int
    phase: Phase
    step: int
    num_done: int

    def packed(self) -> bytes:
        """For a file that is read while it is written: as short as can be."""
        return _LAYOUT.pack(*self._replace(phase=_PHASES.index(self.phase)))

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Back from `packed`."""
        found = cls(*_LAYOUT.unpack(data))
        return found._replace(phase=_PHASES[int(found.phase)])

    @classmethod
    def read_all(cls, folder: Path) -> list[Self]:
        """Of the ranks that have left one, in order."""
        return sorted(cls.unpacked(path.read_bytes()) for path in folder.glob("sign-*"))


def stacks_file(folder: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads."""
    return folder / f"stacks-{rank}.txt"


def answer_with_stacks(folder: Path, rank: int) -> None:
    """From now on, this process writes its stacks when it is asked."""
    descriptor = os.open(stacks_file(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # stays open
    faulthandler.register(ASK_FOR_STACKS, file=descriptor, all_threads=True)


class SignOfLife:
    """One rank's side: says where it is. A write to memory, since a busy disk must not hold a step up.

    Args:
        folder: Where the node looks; None: nobody does.
        rank: Among all nodes.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self._sign = Sign(rank, os.getpid(), 0, "setup_s", 0, 0)
        self._memory: mmap.mmap | None = None
        if folder:
            draft = folder / f"draft-{rank}"
            draft.write_bytes(self._sign.packed())
            with draft.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
            draft.rename(folder / f"sign-{rank}")

    def begin(self, attempt: int) -> None:
        """This rank has heard which attempt it works for."""
        self._tell(self._sign._replace(attempt=attempt))

    def enter(self, phase: Phase) -> None:
        """From now on, its time goes to another phase."""
        self._tell(self._sign._replace(phase=phase))

    def at_step(self, step: int) -> None:
        """One more optimizer step is done: this one."""
        self._tell(self._sign._replace(step=step, num_done=self._sign.num_done + 1))

    def _tell(self, sign: Sign) -> None:
        self._sign = sign
        if self._memory:
            self._memory[:] = sign.packed()
