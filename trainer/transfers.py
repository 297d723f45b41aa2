"""Large files between a store and this disk: in parallel ranges, verified, with progress. No torch."""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.local_cache import disk_errors, is_verified, remember_verified, sha256_of
from trainer.manifest import StoredFile
from trainer.store import DamagedError, Store

_RANGE_BYTES = 16 * 2**20
_RANGES_AT_A_TIME = 16  # guess: fills tens of Gbit/s, for 256 MiB of memory
_HASHES_AT_A_TIME = 4
_SAY_EVERY_S = 10.0
_MIB = 2**20
_GIB = 2**30


class Progress:
    """How many bytes have moved and how long the rest takes: a bar on a terminal, else a line now and then.

    Safe for threads.
    """

    def __init__(self, what: str, total_bytes: int, say: Callable[[str], None]) -> None:
        self._what, self._total_bytes, self._say = what, total_bytes, say
        self._lock = threading.Lock()
        self._began_s = self._said_s = time.monotonic()
        self.done_bytes = 0
        self._bar: Any = None  # tqdm has no types

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total_bytes, desc=self._what, unit="B", unit_scale=True,
                             unit_divisor=1024, file=sys.stderr, dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None:
            self._say(self.line())

    def add(self, num_bytes: int) -> None:
        """Count bytes that have moved; fewer than none: those that have to move again."""
        with self._lock:
            self.done_bytes += num_bytes
            if self._bar is not None:
                self._bar.update(num_bytes)
                return
            now_s = time.monotonic()
            if now_s - self._said_s >= _SAY_EVERY_S:
                self._said_s = now_s
                self._say(self.line(now_s))

    def finished(self, name: str) -> None:
        """Say that a file is there, where no bar shows it."""
        if self._bar is None:
            self._say(f"{name} is there: {self._numbers()}")

    def line(self, now_s: float | None = None) -> str:
        """`weights: 12.3 of 60.5 GiB, 1.10 GiB/s, 44 s left`; in MiB where all is less than one GiB."""
        return f"{self._what}: {self._numbers(now_s)}"

    def _numbers(self, now_s: float | None = None) -> str:
        passed_s = max((now_s or time.monotonic()) - self._began_s, 1e-3)
        left_s = passed_s / max(self.done_bytes, 1) * max(self._total_bytes - self.done_bytes, 0)
        unit, word = _unit_for(self._total_bytes)
        return (f"{self.done_bytes / unit:.1f} of {self._total_bytes / unit:.1f} {word}, "
                f"{self.done_bytes / unit / passed_s:.2f} {word}/s, {left_s:.0f} s left")


def size_words(num_bytes: int) -> str:
    """`60.5 GiB`, `210.3 MiB`."""
    unit, word = _unit_for(num_bytes)
    return f"{num_bytes / unit:.1f} {word}"


def _unit_for(num_bytes: int) -> tuple[int, str]:
    return (_GIB, "GiB") if num_bytes >= _GIB else (_MIB, "MiB")


def fetch_files(store: Store, key: str, files: Sequence[StoredFile], folder: Path,
                progress: Progress, fix: str) -> None:
    """Bring files of a folder in a store to this disk. A file has its name only when its hash is right.

    What is there and sound stays as it is. What comes with a wrong hash is fetched a second time.
    `fix` says what to do about what stays damaged.

    Raises:
        DamagedError: What the store holds is not what was written there.
        StoreError: It cannot be read, or this disk is full.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        wrong = _fetch_all(store, key, files, folder, progress)
        wrong = _fetch_all(store, key, wrong, folder, progress)
    if wrong:
        raise damaged(f"{store.url}/{key}/{wrong[0].name}", fix)


def _fetch_all(store: Store, key: str, files: Sequence[StoredFile], folder: Path,
               progress: Progress) -> list[StoredFile]:
    """Fetch what is missing of some files, hashing one while the next one comes. Returns those that came
    with another hash than theirs."""
    with ThreadPoolExecutor(_RANGES_AT_A_TIME) as ranges, ThreadPoolExecutor(_HASHES_AT_A_TIME) as hashes:
        accepted: dict[StoredFile, Future[bool]] = {}
        try:
            for file in files:
                if is_sound(folder / file.name, file):
                    continue
                _fetch(store, f"{key}/{file.name}", file, folder, ranges, progress)
                accepted[file] = hashes.submit(_accept, folder, file, progress)
            return [file for file, is_right in accepted.items() if not is_right.result()]
        finally:
            ranges.shutdown(cancel_futures=True)


def is_sound(path: Path, file: StoredFile) -> bool:
    """True for a file that is what was written, by its size and its hash."""
    return path.is_file() and path.stat().st_size == file.num_bytes and is_verified(path, file.sha256)


def damaged(place: str, fix: str) -> DamagedError:
    """What to say of a file whose content is not what was written."""
    return DamagedError("it is not what was written there (SHA-256 differs)", place=place, fix=fix)


def check_files(folder: Path, files: Sequence[StoredFile], fix: str) -> None:
    """See that files of a folder are what was written there, hashed several at a time.

    Raises:
        DamagedError: One is missing or another.
    """
    for file in unsound(folder, files):
        raise damaged(str(folder / file.name), fix)


def unsound(folder: Path, files: Sequence[StoredFile]) -> list[StoredFile]:
    """Those of some files that are missing in a folder, or are not what was written."""
    with ThreadPoolExecutor(_HASHES_AT_A_TIME) as hashes:
        sound = hashes.map(lambda file: is_sound(folder / file.name, file), files)
        return [file for file, is_right in zip(files, sound, strict=True) if not is_right]


def _fetch(store: Store, key: str, file: StoredFile, folder: Path, pool: ThreadPoolExecutor,
           progress: Progress) -> None:
    with _draft(folder, file).open("wb") as draft:
        draft.truncate(file.num_bytes)
        parts = [pool.submit(_fetch_range, store, key, start, min(start + _RANGE_BYTES, file.num_bytes),
                             draft.fileno(), progress)
                 for start in range(0, file.num_bytes, _RANGE_BYTES)]
        try:
            for part in parts:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            # Those that run still write to the file that is about to be closed.
            for part in parts:
                if not part.cancelled():
                    part.exception()


def _fetch_range(store: Store, key: str, start: int, end: int, descriptor: int, progress: Progress) -> None:
    data = store.get_range(key, start, end)
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], start + written)
    progress.add(len(data))


def _accept(folder: Path, file: StoredFile, progress: Progress) -> bool:
    """Give a file its name, if its hash is right."""
    draft = _draft(folder, file)
    if sha256_of(draft) != file.sha256:
        draft.unlink()
        progress.add(-file.num_bytes)
        return False
    with draft.open("rb+") as written:
        os.fsync(written.fileno())
    draft.replace(folder / file.name)
    remember_verified(folder / file.name, file.sha256)
    return True


def _draft(folder: Path, file: StoredFile) -> Path:
    return folder / f"{file.name}.part"
