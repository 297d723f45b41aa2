"""Where a run stops itself: its deadline and its cap. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Self

from trainer.contract import Document, Env, ExitCode, LdlmError


class LimitError(LdlmError):
    """A limit of the run is reached before this attempt has begun to work: nothing follows."""

    node_exit_code = ExitCode.STOPPED


@dataclass(frozen=True)
class Limits:
    """Where the run stops itself. None: no such limit."""

    deadline: datetime | None
    max_cost_usd: Decimal | None
    bench_reserve_usd: Decimal

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read what the task says."""
        deadline, cap = environ.get(Env.DEADLINE), environ.get(Env.MAX_COST)
        return cls(
            deadline=datetime.fromisoformat(deadline) if deadline else None,
            max_cost_usd=Decimal(cap) if cap else None,
            bench_reserve_usd=Decimal(environ.get(Env.BENCH_RESERVE) or 0),
        )

    def reached(self, document: Document, now: datetime, spent_usd: Decimal) -> str | None:
        """Name the limit that has been reached, or None.

        Args:
            document: That runs: the benchmark may spend what is kept for it, training not.
            now: Current time, UTC.
            spent_usd: Of all attempts, up to now.
        """
        if self.deadline is not None and now >= self.deadline:
            return f"deadline {self.deadline:%Y-%m-%d %H:%M} UTC"
        kept_usd = self.bench_reserve_usd if document is Document.TRAIN else Decimal(0)
        if self.max_cost_usd is not None and spent_usd >= self.max_cost_usd - kept_usd:
            return (f"${spent_usd:.2f} of the cap of ${self.max_cost_usd:.2f} "
                    f"(${kept_usd:.2f} kept for the benchmark)")
        return None


def check_limits(document: Document, now: datetime, spent_usd: Decimal,
                 environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to begin what a limit would end at its first step.

    The trainer looks before every step, which comes after torch, the weights and the text.

    Args:
        document: What would begin.
        now: UTC.
        spent_usd: Of the whole run until now, this machine's set-up included.
        environ: Of this node; `Env` names what is read.

    Raises:
        LimitError: The deadline or the cap is reached.
    """
    if limit := Limits.of(environ).reached(document, now, spent_usd):
        raise LimitError(f"{limit} before {document} began on this machine",
                         fix="raise the limit: ldlm resume RUN --max-cost DOLLARS, or --deadline HOURS")
