"""What a node has heard of its end, and what it tells its ranks of it. No torch."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from trainer.contract import LdlmError, RankEnd
from trainer.notices import SPARE_S, Cloud, Notice
from trainer.run_folder import RunFolder

_ASK_EVERY_S = 60.0


class SaveTime:
    """How long a save of a run takes, as its heartbeats say. The store is asked once a minute at most.

    Args:
        folder: The run.
        clock: Seconds that never go back.
    """

    def __init__(self, folder: RunFolder, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._asked_s, self._seconds = -math.inf, 0.0

    def __call__(self) -> float:
        """Seconds; 0 where no save was measured yet."""
        if self._clock() - self._asked_s >= _ASK_EVERY_S:
            self._asked_s = self._clock()
            with contextlib.suppress(LdlmError):  # what was known before holds
                pace = self._folder.pace()
                self._seconds = pace.save_s if pace else 0.0
        return self._seconds


class StopRequest:
    """SIGTERM, SIGINT, a person's wish or a cloud's notice to this node, passed on to the ranks themselves.

    torchrun is left out: it would answer with a trace and an exit code of 1 although every rank saved,
    and before 2.13 it kills ranks that need more than 30 s for that. A rank tells its process id as
    soon as it listens; one that is still starting is told when it does.

    Args:
        cloud: Of this machine: it says how long a node has after SIGTERM.
    """

    def __init__(self, cloud: Cloud) -> None:
        self.wish: Callable[[], Notice | None] = lambda: None  # asked for in another way
        self.save_s: Callable[[], float] = lambda: 0.0  # before the run is known, and of what saves nothing
        self.notice: Notice | None = None
        self._cloud = cloud
        self._written: Notice | None = None
        self._told: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    @property
    def received(self) -> bool:
        """True once this node has to end."""
        return self.notice is not None

    @property
    def why(self) -> str:
        """The reason, in words; empty: there is none to end."""
        return self.notice.why if self.notice else ""

    @property
    def is_taken(self) -> bool:
        """True once a cloud has said that it takes a machine of this run back."""
        return self.notice is not None and self.notice.is_taken

    @property
    def shutdown_timeout_s(self) -> int:
        """See `Cloud`."""
        return self._cloud.shutdown_timeout_s

    def hear(self, notice: Notice) -> None:
        """Take in what is known now, beside what was known before."""
        self.notice = notice.with_earlier(self.notice)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.notice is None or self.notice.ends_at_s is None:  # a second signal gives no more time
            self.hear(self._cloud.on_signal())

    def pass_on(self, ends: Path) -> None:
        """Tell every rank that listens and has not been told.

        Args:
            ends: Folder that this node shares with its ranks.
        """
        if not self.received and (wished := self.wish()):
            self.hear(wished)
        self.learn(ends)
        if self.notice != self._written and self.notice:
            self._written = self.notice
            self._written.write(ends)
        for pid in RankEnd.listening(ends) - self._told if self.received else ():
            self._told.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def learn(self, ends: Path) -> None:
        """Hear what ranks of other nodes have told ours."""
        if (told := Notice.find(ends)) and told != self._written:
            self._written = told
            self.hear(told)

    def is_over(self) -> bool:
        """True when what is left is needed for the record of how this ended."""
        left_s = self.notice.left_s if self.notice else None
        return left_s is not None and left_s < SPARE_S
