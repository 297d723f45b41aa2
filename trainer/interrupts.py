"""Ctrl-C at moments when a KeyboardInterrupt would do harm. Standard library only."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130  # exit code, as shells count
NOT_BEGUN = "interrupted before it began; what was finished earlier is kept"


@contextmanager
def ends_at_once(line: str) -> Iterator[None]:
    """Within, Ctrl-C says a line and ends the process: nothing has been begun that must be ended well.

    An exception would be worse: modules are imported here, and C++ code that meets one aborts.
    """
    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{line}\n".encode())
        os._exit(INTERRUPTED)

    with _handled_by(end):
        yield


@contextmanager
def postponed() -> Iterator[None]:
    """Within, Ctrl-C waits for the end of the block, and processes that are started never hear it.

    They inherit the mask. It alone would not do here: the signal goes to any thread that has none.

    Raises:
        KeyboardInterrupt: At the end.
    """
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if came:
        raise KeyboardInterrupt


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a background job of a shell: it stays deaf
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
