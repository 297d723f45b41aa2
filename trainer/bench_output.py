"""What every benchmark does beside measuring: says how far it is, and keeps what it has."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from trainer.bench_timing import Spread
from trainer.contract import ConfigError


class Found(Protocol):
    """What was found of one case.

    Attributes:
        fast: None: it was not timed.
        left_out: Why not.
    """

    @property
    def case(self) -> object: ...

    @property
    def fast(self) -> Spread | None: ...

    @property
    def left_out(self) -> str | None: ...


def require_places(written: dict[str, Path | None], read: dict[str, Path | None]) -> None:
    """Raises ConfigError where a file cannot be written, or would take another's place: before anything is
    measured.

    Args:
        written: By the option that names it; None: it was left out.
        read: Likewise, what is to stay.
    """
    owners = {path.resolve(): option for option, path in read.items() if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        _require_place(option, path)
        if (other := owners.setdefault(path.resolve(), option)) != option:
            raise ConfigError(f"is the file of {other}, too", place=f"{option} {path}",
                              fix="name another file")


def _require_place(option: str, path: Path) -> None:
    if path.exists() and not path.is_file():  # as root one would put a file in place of /dev/stdout
        raise ConfigError("is there, and no file", place=f"{option} {path}", fix="name a file")
    draft = _draft_of(path)
    try:  # permissions alone do not tell: of root, of what is mounted to be read, of /proc
        draft.touch()
        draft.unlink()
    except OSError as error:
        why = f"takes no file: {error.strerror}" if path.parent.is_dir() else "is no folder"
        raise ConfigError(f"{path.parent} {why}", place=f"{option} {path}",
                          fix="name another place") from error


class Kept:
    """The file of what has been measured so far. None: there is none.

    Attributes:
        problem: Why the newest could not be written, in words; None: it was. Measuring goes on meanwhile.
    """

    def __init__(self, out: Path | None) -> None:
        self._out, self._is_written = out, False
        self.problem: str | None = None

    def write(self, report: BaseModel) -> None:
        """Take the place of what it held."""
        if self._out is None:
            return
        try:
            keep(report, self._out)
            self._is_written, self.problem = True, None
        except OSError as error:
            self.problem = f"{self._out} does not hold all of this: {error.strerror or error}"

    def interrupted(self) -> str:
        """Said after Ctrl-C."""
        where = f"; cases that were done are in {self._out}" if self._is_written else ""
        return f"interrupted{where}"


def keep(report: BaseModel, out: Path) -> None:
    """Write a report whole, or leave the file as it is."""
    draft = _draft_of(out)
    try:
        draft.write_text(report.model_dump_json(indent=1))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def _draft_of(path: Path) -> Path:
    """Beside it, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


class Progress:
    """Says what a case has come to, and about how long the rest takes."""

    def __init__(self, num_cases: int, say: Callable[[str], None]) -> None:
        self._num, self._say, self._began, self._done = num_cases, say, time.monotonic(), 0

    def done(self, result: Found) -> None:
        """One more."""
        self._done += 1
        left_s = (time.monotonic() - self._began) / self._done * (self._num - self._done)
        speed = f"{result.fast.tokens_per_s:,.0f} tokens/s" if result.fast else result.left_out
        rest = f"; ~{left_s / 60:.0f} min left" if left_s >= 60 else f"; ~{left_s:.0f} s left"
        self._say(f"{self._done}/{self._num} {result.case}: {speed}{rest if left_s else ''}")
