"""Why a run should stop, as one number that all ranks agree on.

Signal handlers only set a flag. Flag, deadline, budget and failed saves become a Verdict on each
rank, and `agree` takes the largest, so that every rank leaves the loop at the same step.
"""

import signal
from enum import IntEnum
from types import FrameType

import torch
from torch import distributed as dist


class Verdict(IntEnum):
    """What to do before the next step, by rising weight."""

    CONTINUE = 0
    WAIT = 1  # the text of some rank is not there yet
    AWAY = 2  # nor will it be soon: the store does not give it
    LIMIT = 3  # budget or deadline of the run: save and finish for good
    RECOVER = 4  # this machine goes away: save and ask for another
    FAIL = 5  # checkpoints cannot be written any more
    SUPERSEDED = 6  # another attempt owns the run


class StopSignal:
    """Listens for SIGTERM and SIGINT. The handler sets a flag and nothing else."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def agree(verdict: Verdict) -> Verdict:
    """Take the weightiest verdict of all ranks. A collective: every rank calls it at the same step."""
    value = torch.tensor(int(verdict))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return Verdict(int(value))
