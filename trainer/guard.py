"""Whether a run may go on under its limits, and for how long. Pure; the world is in `trainer/limit_watch.py`.

A run ends while there is enough left for its end: a last checkpoint with its upload, the last scores, the
time until its machine is given back, the benchmark. Whoever supervises it starts it again by itself when its
machine is taken, so the minutes of one more machine, which finds the limit reached, are kept back, too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from trainer.contract import Document
from trainer.limits import Limits

# From a node's last word until its machine is not billed any more: SkyPilot looks every 15 s, then asks its
# cloud to end the machine (guess).
SHUTDOWN_S = 90.0
# From the start of a machine until it looks at the limits of its run, before torch is downloaded (guess).
IN_VAIN_S = 300.0
# What an end at a limit may take beyond all that was kept back for it: a store that answers within minutes
# keeps hours of work (guess). Then its programs are killed.
PAST_LIMIT_S = 300.0


@dataclass(frozen=True)
class Standing:
    """What a run has come to, where readings differ by the dearest of them.

    Attributes:
        now: UTC.
        spent_usd: Of all attempts until now.
        paid_s: The seconds of their machines.
        usd_per_hour: At which it goes on: machine, disk, supervision.
    """

    now: datetime
    spent_usd: Decimal = Decimal(0)
    paid_s: float = 0.0
    usd_per_hour: Decimal = Decimal(0)


@dataclass(frozen=True)
class Ending:
    """What comes to the bill once an attempt is told to end.

    Attributes:
        seconds: Until its machine is not billed any more.
        usd: Beside those: an upload, a machine that would be started in vain.
    """

    seconds: float = 0.0
    usd: Decimal = Decimal(0)


class Headroom(NamedTuple):
    """How far the nearest limit is.

    Attributes:
        left_s: Until the run must begin to end; 0 or less: now.
        words: The limit with its numbers.
    """

    left_s: float
    words: str

    @property
    def is_reached(self) -> bool:
        """True when the run must end."""
        return self.left_s <= 0


def headroom(limits: Limits, document: Document, standing: Standing,
             ending: Ending = Ending()) -> Headroom | None:  # noqa: B008  frozen
    """The limit that is reached first; None: there is none.

    Args:
        document: That runs: the benchmark may spend what is kept for it, training not.
    """
    found = [*_deadline(limits, standing, ending), *_hours(limits, document, standing, ending),
             *_cost(limits, document, standing, ending)]
    return min(found, key=lambda one: one.left_s, default=None)


def _deadline(limits: Limits, standing: Standing, ending: Ending) -> Iterator[Headroom]:
    if limits.deadline is not None:
        left_s = (limits.deadline - standing.now).total_seconds() - ending.seconds
        yield Headroom(left_s, f"deadline {limits.deadline:%Y-%m-%d %H:%M} UTC")


def _hours(limits: Limits, document: Document, standing: Standing, ending: Ending) -> Iterator[Headroom]:
    if limits.max_hours is not None:
        bench_h = limits.bench_reserve_hours if document is Document.TRAIN else Decimal(0)
        left_s = float(limits.max_hours - bench_h) * 3600 - standing.paid_s - ending.seconds
        yield Headroom(left_s, f"{standing.paid_s / 3600:.2f} of {limits.max_hours:g} paid hours"
                               + (f" ({bench_h:.2f} kept for the benchmark)" if bench_h else ""))


def _cost(limits: Limits, document: Document, standing: Standing, ending: Ending) -> Iterator[Headroom]:
    if limits.max_cost_usd is None:
        return
    bench_usd = limits.bench_reserve_usd if document is Document.TRAIN else Decimal(0)
    end_usd = ending.usd + standing.usd_per_hour * Decimal(ending.seconds) / 3600
    left_usd = limits.max_cost_usd - bench_usd - end_usd - standing.spent_usd
    if standing.usd_per_hour > 0:
        left_s = float(left_usd / standing.usd_per_hour) * 3600
    else:
        left_s = math.inf if left_usd > 0 else 0.0
    kept = [f"${usd:.2f} kept for the {what}" for usd, what in ((bench_usd, "benchmark"), (end_usd, "end"))
            if usd >= Decimal("0.005")]
    yield Headroom(left_s, f"${standing.spent_usd:.2f} of the cap of ${limits.max_cost_usd:.2f}"
                           + (f" ({', '.join(kept)})" if kept else ""))


def moment(now: datetime, left_s: float) -> datetime | None:
    """When so many seconds are over; None where the calendar ends before."""
    try:
        return now + timedelta(seconds=left_s)
    except OverflowError:
        return None
