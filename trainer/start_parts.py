"""Where the time between the start of a machine and its first step goes, part by part. No torch.

A recovery pays for all of it, so a user has to see which part to make shorter.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime

import psutil


class StartParts:
    """Books every second from `billed_from` to the first step on exactly one part.

    Args:
        clock: Seconds that never go back.

    Attributes:
        seconds: By part, in the order in which they came.
        is_over: The first step is done.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        age_s = datetime.now(UTC).timestamp() - psutil.Process().create_time()
        self._since = clock() - max(0.0, age_s)
        self.seconds: dict[str, float] = {}
        self.is_over = False

    def done(self, part: str) -> None:
        """What has passed since the last call, or since this process began, was a part."""
        now = self._clock()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def before(self, billed_from: datetime) -> None:
        """Book what has passed before this process began: install, look at the machine, torchrun."""
        own_s = sum(self.seconds.values()) + self._clock() - self._since
        age_s = (datetime.now(UTC) - billed_from).total_seconds()
        self.seconds = {"node": max(0.0, age_s - own_s), **self.seconds}

    def end(self) -> None:
        """The first step is done."""
        self.done("first step")
        self.is_over = True

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self.seconds.items())
        return f"first step after {sum(self.seconds.values()):.1f} s: {parts}"
