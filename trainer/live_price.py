"""What this machine costs now, where its bid at Vast may be raised while it runs. No torch.

Who raises it has no keys of the run's store. So the switch that `launcher/vast_onstart.py` leaves on the
machine asks Vast for the machine's own row once a minute, by the key that is good for this machine alone, and
puts it where this file reads it. A price is believed from the moment at which it is read.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from trainer.rental_terms import PriceFrom

BID_RAISED = "bid_raised"  # the kind of the event that tells a later price
ROW = ".ldlm_instance.json"  # in the home folder


class LivePrice:
    """Later prices of an attempt, as far as its machine has heard of them.

    Args:
        first_usd_per_hour: At which the attempt began.
        home: Of the machine.
        clock: UTC.
    """

    def __init__(self, first_usd_per_hour: Decimal, home: Path | None = None,
                 clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._newest, self._clock = first_usd_per_hour, clock
        self._path = (home or Path.home()) / ROW
        self._read_at: int | None = None
        self._found: tuple[PriceFrom, ...] = ()

    def seen(self) -> tuple[PriceFrom, ...]:
        """All changes until now, oldest first. Asked before every step: one look at a file's time."""
        try:
            written_at = self._path.stat().st_mtime_ns
            if written_at != self._read_at:
                self._read_at = written_at
                self._take_in(json.loads(self._path.read_bytes()))
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
            pass  # none is there, or it cannot be read: what was known holds
        return self._found

    def _take_in(self, answer: dict[str, dict[str, float]]) -> None:
        price = Decimal(str(answer["instances"]["dph_base"]))
        if price.is_finite() and price > 0 and price != self._newest:
            self._newest = price
            self._found = (*self._found, PriceFrom(at=self._clock(), usd_per_hour=price))
