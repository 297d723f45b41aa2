"""Where a run stops itself: its cap, its paid hours, its deadline. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Self

from trainer.contract import Env, ExitCode, LdlmError


class LimitError(LdlmError):
    """A limit of the run is reached where none of its ranks could act on it: nothing follows."""

    node_exit_code = ExitCode.STOPPED


@dataclass(frozen=True)
class Limits:
    """Where the run stops itself. None: no such limit.

    Attributes:
        deadline: UTC.
        max_cost_usd: Over all attempts and the benchmark.
        bench_reserve_usd: Part of it that training leaves for the benchmark.
        max_hours: Paid for, over all attempts.
        bench_reserve_hours: Part of them that training leaves for the benchmark.
    """

    deadline: datetime | None = None
    max_cost_usd: Decimal | None = None
    bench_reserve_usd: Decimal = Decimal(0)
    max_hours: Decimal | None = None
    bench_reserve_hours: Decimal = Decimal(0)

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read what a document of the task says."""
        deadline, cap = environ.get(Env.DEADLINE), environ.get(Env.MAX_COST)
        hours = environ.get(Env.MAX_HOURS)
        return cls(
            deadline=datetime.fromisoformat(deadline) if deadline else None,
            max_cost_usd=Decimal(cap) if cap else None,
            bench_reserve_usd=Decimal(environ.get(Env.BENCH_RESERVE) or 0),
            max_hours=Decimal(hours) if hours else None,
            bench_reserve_hours=Decimal(environ.get(Env.BENCH_RESERVE_HOURS) or 0),
        )
