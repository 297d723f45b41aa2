"""What has become of the saves of an attempt: under way, durable or failed, and since when. No torch."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Taken(NamedTuple):
    """The copy that a save has begun with.

    Attributes:
        step: Optimizer steps done.
        at_s: When, on the clock of its `SaveHistory`: what is done later is not in it.
        train_s, evaluate_s: Of this attempt until then.
    """

    step: int
    at_s: float
    train_s: float
    evaluate_s: float


class SaveHistory:
    """The saves of one attempt as rank 0 knows them; the other ranks hear of no success.

    Args:
        clock: Seconds that never go back.

    Attributes:
        under_way: The one that is not known to be durable or to have failed; None: there is none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = self._durable_at_s = clock()
        self._failing_since_s: float | None = None
        self.under_way: Taken | None = None

    def resumed(self) -> None:
        """Work begins now, from what is durable."""
        self._began_s = self._durable_at_s = self._clock()

    def began(self, step: int, train_s: float, evaluate_s: float) -> None:
        """A save of this step begins now. See `Taken`."""
        self._began_s = self._clock()
        self.under_way = Taken(step, self._began_s, train_s, evaluate_s)

    def became_durable(self, step: int) -> Taken | None:
        """What the save under way holds, if it is of this durable step; None: it is known already."""
        taken = self.under_way
        if taken is None or taken.step != step:
            return None
        self.under_way, self._failing_since_s, self._durable_at_s = None, None, taken.at_s
        return taken

    def failed(self) -> None:
        """The one under way has, on some rank."""
        self.under_way = None
        if self._failing_since_s is None:
            self._failing_since_s = self._clock()

    @property
    def is_failing(self) -> bool:
        """No save has succeeded since one has failed."""
        return self._failing_since_s is not None

    @property
    def failing_s(self) -> float:
        """Since the first that failed after the last good one; 0 where none has."""
        return 0.0 if self._failing_since_s is None else self._clock() - self._failing_since_s

    @property
    def since_last_s(self) -> float:
        """Since the last one began, or work did."""
        return self._clock() - self._began_s

    @property
    def at_risk_s(self) -> float:
        """What was done since the copy that is durable: losing the machine now would cost it."""
        return self._clock() - self._durable_at_s
