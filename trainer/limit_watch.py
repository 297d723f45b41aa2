"""Holds what a run has come to against its limits, on its own machine: with the laptop off, and at any time.

The arithmetic is in `trainer/guard.py` and `trainer/at_most.py`; here are the clocks, the counters of the
network and the task's words. No torch.
"""

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from trainer.at_most import UNBILLED, controller_usd_per_hour, standing_of
from trainer.contract import Document, Env, ExitCode, RankEnd, TaskOffer
from trainer.guard import IN_VAIN_S, SHUTDOWN_S, Ending, Headroom, Standing, headroom
from trainer.limits import LimitError, Limits
from trainer.machine import traffic
from trainer.metrics import OwnAttempt
from trainer.run_folder import Traffic

RAISE = "raise the limit: ldlm resume RUN --max-cost DOLLARS, --max-hours HOURS, or --deadline HOURS"
_GB = 10**9


class LateClock:
    """UTC, never behind: a wall clock that is set back does not give a run its hours again.

    Args:
        wall: Tells the time of day.
        seconds: Never go back.
    """

    def __init__(self, wall: Callable[[], datetime] = lambda: datetime.now(UTC),
                 seconds: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._seconds = wall, seconds
        self._began, self._began_s = wall(), seconds()

    def __call__(self) -> datetime:
        """The later of what both say."""
        return max(self._wall(), self._began + timedelta(seconds=self._seconds() - self._began_s))


class LimitWatch:
    """Looks whether an attempt may go on. The benchmark has one, and rank 0 of training.

    Args:
        own: This attempt among those of its run.
        ending: Seconds and bytes of what is still to do once it is told to end.
        environ: Of this node.
        clock: UTC, never behind.
        seen: The counters of this machine's network; read only where somebody bills them.
    """

    def __init__(self, own: OwnAttempt, ending: Callable[[], tuple[float, int]],
                 environ: Mapping[str, str] = os.environ, clock: Callable[[], datetime] | None = None,
                 seen: Callable[[], Traffic] = traffic) -> None:
        self._own, self._ending, self._seen = own, ending, seen
        self._limits, self._clock = Limits.of(environ), clock or LateClock()
        self._upload_usd_per_gb = Decimal(environ.get(Env.UPLOAD_PRICE) or 0)
        self._is_rented = own.attempt.cloud not in UNBILLED
        self._dearest = TaskOffer.dearest(environ) if self._is_rented else Decimal(0)
        self._again_usd = self._in_vain_usd(environ) if self._is_rented else Decimal(0)

    def standing(self) -> Standing:
        """Where the run stands now, by the dearest reading."""
        seen = self._seen() if self._own.attempt.terms else None
        return standing_of([*self._own.earlier, self._own.files()], self._own.events, self._clock(), seen,
                           self._dearest)

    def look(self) -> Headroom | None:
        """The nearest limit, beside what the end takes; None: there is none."""
        seconds, num_bytes = self._ending()
        usd = self._again_usd + num_bytes * self._upload_usd_per_gb / _GB
        return headroom(self._limits, self._own.attempt.document, self.standing(),
                        Ending(seconds + SHUTDOWN_S * self._is_rented, usd))

    def is_past(self) -> bool:
        """True once even what was kept back is spent."""
        found = headroom(self._limits, Document.BENCH, self.standing())
        return found is not None and found.is_reached

    def _in_vain_usd(self, environ: Mapping[str, str]) -> Decimal:
        """Dollars of another machine until it has looked at the limits, by the dearest that the task may
        rent, and of supervision while it is waited for."""
        supervision = controller_usd_per_hour(self._own.events)
        price = max(self._own.attempt.price_usd_per_hour, self._dearest)
        waits_h = Decimal(environ.get(Env.WAIT) or 0)
        return (price + supervision) * Decimal(IN_VAIN_S) / 3600 + supervision * waits_h


def check_limits(document: Document, standing: Standing, environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to begin what a limit would end at its first step.

    The trainer looks before every step, which comes after torch, the weights and the text.

    Args:
        document: What would begin.
        standing: Of the run, this machine's set-up included.
        environ: Of this node; `Env` names what is read.

    Raises:
        LimitError: A limit is reached.
    """
    if limit := _reached(document, standing, environ):
        raise LimitError(f"{limit} before {document} began on this machine", fix=RAISE)


def check_again(document: Document, end: RankEnd, standing: Standing,
                environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to ask for another attempt that would find a limit reached.

    Args:
        end: How this one has ended.
        standing: Of the run now.

    Raises:
        LimitError: It asks for one, and a limit is reached.
    """
    asks_for_another = end.code == ExitCode.RECOVER or end.code not in list(ExitCode)
    if asks_for_another and (limit := _reached(document, standing, environ)):
        raise LimitError(f"{limit}; it had ended with: {end.reason}", fix=RAISE)


def _reached(document: Document, standing: Standing, environ: Mapping[str, str]) -> str | None:
    found = headroom(Limits.of(environ), document, standing, Ending(SHUTDOWN_S))
    return found.words if found and found.is_reached else None
