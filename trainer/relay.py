"""What programs print, for a process that does not wait for all of them to end.

One that waits for a GPU or a disk that does not answer survives SIGKILL for as long as that does not.
SkyPilot reads what a job prints until the last process that could print has ended: so programs print into a
pipe of whoever starts them. Standard library and Python 3.8 only, for a node's set-up.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

_PRINTS_WITHIN_S = 5.0  # what a program has printed is in the pipe when it ends


@contextlib.contextmanager
def relayed() -> Iterator[int]:
    """A descriptor into which programs print. What they print appears here, and not for longer than the block
    where one of them is left behind."""
    reader, writer = os.pipe()
    relay = threading.Thread(target=_relay, args=(reader,), daemon=True, name="relay")
    relay.start()
    try:
        yield writer
    finally:
        os.close(writer)
        relay.join(_PRINTS_WITHIN_S)


def _relay(reader: int) -> None:
    while data := os.read(reader, 2**16):
        with contextlib.suppress(OSError):  # nobody reads any more: programs go on all the same
            while data:
                data = data[os.write(1, data):]
    os.close(reader)
