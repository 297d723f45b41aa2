"""Read the logs of a local run, line by line, across attempts, while they are being written."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.engine_folder import EngineFolder

_POLL_S = 0.2
_CHUNK_BYTES = 1 << 20


def follow_logs(folder: EngineFolder, follow: bool) -> Iterator[str]:
    """Yield the lines of every attempt, each attempt after a header line.

    With `follow`, ends when the supervisor is gone and all is read; else at the end of the files.
    """
    tail: _Tail | None = None
    shown = 0
    while True:
        # Asked before reading: what was written before the answer is then surely read.
        growing = follow and folder.is_locked()
        for number, path in folder.attempt_logs():
            if number > shown:
                yield from tail.rest() if tail else ()
                tail, shown = _Tail(path), number
                yield f"==> attempt {number} <=="
            elif number < shown:
                continue
            yield from tail.new_lines() if tail else ()
        if not growing:
            yield from tail.rest() if tail else ()
            return
        time.sleep(_POLL_S)


class _Tail:
    """One growing file. Starts over when it was truncated or replaced by another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._position = 0
        self._partial = b""

    def new_lines(self) -> Iterator[str]:
        """Whole lines that have come since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._inode or found.st_size < self._position:
                self._inode, self._position, self._partial = found.st_ino, 0, b""
            file.seek(self._position)
            while chunk := file.read(_CHUNK_BYTES):
                self._position += len(chunk)
                *lines, self._partial = (self._partial + chunk).split(b"\n")
                yield from (line.decode(errors="replace").rstrip("\r") for line in lines)

    def rest(self) -> Iterator[str]:
        """All that is left, a last line without its end included."""
        yield from self.new_lines()
        if self._partial:
            yield self._partial.decode(errors="replace")
            self._partial = b""
