"""Why a run should stop, as one number that all ranks agree on.

Signal handlers only set a flag. Flag, deadline, budget and failed saves become a Verdict on each
rank, and `agree` takes the largest, so that every rank leaves the loop at the same step.
"""

import os
import signal
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import IntEnum
from types import FrameType

import torch
from torch import distributed as dist

from trainer.contract import Env


class Verdict(IntEnum):
    """What to do before the next step, by rising weight."""

    CONTINUE = 0
    WAIT = 1  # the text of some rank is not there yet
    AWAY = 2  # nor will it be soon: the store does not give it
    LIMIT = 3  # budget or deadline of the run: save and finish for good
    RECOVER = 4  # this machine goes away: save and ask for another
    FAIL = 5  # checkpoints cannot be written any more
    SUPERSEDED = 6  # another attempt owns the run


@dataclass(frozen=True)
class Limits:
    """Where the run stops itself. None: no such limit."""

    deadline: datetime | None
    max_cost_usd: Decimal | None
    bench_reserve_usd: Decimal

    @classmethod
    def from_environment(cls) -> "Limits":
        """Read what the task says."""
        deadline, cap = os.environ.get(Env.DEADLINE), os.environ.get(Env.MAX_COST)
        return cls(
            deadline=datetime.fromisoformat(deadline) if deadline else None,
            max_cost_usd=Decimal(cap) if cap else None,
            bench_reserve_usd=Decimal(os.environ.get(Env.BENCH_RESERVE) or 0),
        )


class StopSignal:
    """Listens for SIGTERM and SIGINT. The handler sets a flag and nothing else."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def over_limit(now: datetime, spent_usd: Decimal, *, deadline: datetime | None,
               max_cost_usd: Decimal | None, reserve_usd: Decimal) -> str | None:
    """Name the limit that has been reached, or None.

    Args:
        now: Current time, UTC.
        spent_usd: Of all attempts, up to now.
        deadline: When the whole run must be over.
        max_cost_usd: Cap of the whole run.
        reserve_usd: Part of the cap that belongs to what comes after training.
    """
    if deadline is not None and now >= deadline:
        return f"deadline {deadline:%Y-%m-%d %H:%M} UTC"
    if max_cost_usd is not None and spent_usd >= max_cost_usd - reserve_usd:
        return (f"${spent_usd:.2f} of the cap of ${max_cost_usd:.2f} "
                f"(${reserve_usd:.2f} kept for the benchmark)")
    return None


def agree(verdict: Verdict) -> Verdict:
    """Take the weightiest verdict of all ranks. A collective: every rank calls it at the same step."""
    value = torch.tensor(int(verdict))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return Verdict(int(value))
