"""Large files between a store and this disk: in parallel ranges, verified, with progress. No torch."""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from trainer.contract import StoreError
from trainer.manifest import StoredFile
from trainer.store import DamagedError, Store

_RANGE_BYTES = 16 * 2**20
_RANGES_AT_A_TIME = 16  # guess: fills tens of Gbit/s, for 256 MiB of memory
_HASHES_AT_A_TIME = 4
_SAY_EVERY_S = 10.0
_MIB = 2**20
_GIB = 2**30
_LARGER_DISK = "free disk space, or set XDG_CACHE_HOME to a folder on a larger disk"


def cache_folder() -> Path:
    """Where what was fetched or made once is kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldlm"


class Progress:
    """Says now and then how many bytes have moved and how long the rest takes. Safe for threads."""

    def __init__(self, what: str, total_bytes: int, say: Callable[[str], None]) -> None:
        self._what, self._total_bytes, self._say = what, total_bytes, say
        self._lock = threading.Lock()
        self._began_s = self._said_s = time.monotonic()
        self.done_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have moved."""
        with self._lock:
            self.done_bytes += num_bytes
            now_s = time.monotonic()
            if now_s - self._said_s >= _SAY_EVERY_S:
                self._said_s = now_s
                self._say(self.line(now_s))

    def line(self, now_s: float | None = None) -> str:
        """`weights: 12.3 of 60.5 GiB, 1.10 GiB/s, 44 s left`; in MiB where all is less than one GiB."""
        passed_s = max((now_s or time.monotonic()) - self._began_s, 1e-3)
        left_s = passed_s / max(self.done_bytes, 1) * max(self._total_bytes - self.done_bytes, 0)
        unit, word = _unit_for(self._total_bytes)
        return (f"{self._what}: {self.done_bytes / unit:.1f} of {self._total_bytes / unit:.1f} {word}, "
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

    What is there in its right size stays as it is. `fix` says what to do about a damaged one.

    Raises:
        DamagedError: What the store holds is not what was written there.
        StoreError: It cannot be read, or this disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (ThreadPoolExecutor(_RANGES_AT_A_TIME) as ranges, ThreadPoolExecutor(_HASHES_AT_A_TIME) as hashes):
        checks: list[Future[None]] = []
        try:
            for file in files:
                if is_whole(folder / file.name, file.num_bytes):
                    progress.add(file.num_bytes)
                    continue
                _fetch(store, f"{key}/{file.name}", file, folder, ranges, progress)
                checks.append(hashes.submit(_accept, folder, file, f"{store.url}/{key}/{file.name}",
                                            fix))
            for check in checks:
                check.result()
        except OSError as error:
            raise StoreError(f"cannot keep {key} on this disk: {error.strerror}", place=str(folder),
                             fix=_LARGER_DISK) from error
        finally:
            ranges.shutdown(cancel_futures=True)


def is_whole(path: Path, num_bytes: int) -> bool:
    """True for a file of that size: it got its name when its hash was right."""
    return path.is_file() and path.stat().st_size == num_bytes


def damaged(place: str, fix: str) -> DamagedError:
    """What to say of a file whose content is not what was written."""
    return DamagedError("it is not what was written there (SHA-256 differs)", place=place, fix=fix)


def check_files(folder: Path, files: Sequence[StoredFile], stamps: Path, fix: str) -> None:
    """See that files of a folder are what was written there; as `is_verified`, several at a time.

    Raises:
        DamagedError: One is missing or another.
    """
    with ThreadPoolExecutor(_HASHES_AT_A_TIME) as hashes:
        sound = hashes.map(lambda file: is_whole(folder / file.name, file.num_bytes)
                           and is_verified(folder / file.name, file.sha256, stamps), files)
        for file, is_sound in zip(files, sound, strict=True):
            if not is_sound:
                raise damaged(str(folder / file.name), fix)


def is_verified(path: Path, sha256: str, stamps: Path) -> bool:
    """True if a file has this hash. Hashed once per machine, and again when its size or time changes.

    Args:
        stamps: Folder of this machine that remembers it.
    """
    stat, stamp = path.stat(), stamps / sha256
    content = f"{path} {stat.st_size} {stat.st_mtime_ns}"
    if stamp.is_file() and stamp.read_text() == content:
        return True
    if sha256_of(path) != sha256:
        return False
    stamps.mkdir(parents=True, exist_ok=True)
    stamp.write_text(content)
    return True


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Only one process of this machine is in here with the same path; it ends with the process.

    Raises:
        StoreError: The path cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror}", place=str(path), fix=_LARGER_DISK) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _accept(folder: Path, file: StoredFile, place: str, fix: str) -> None:
    draft = _draft(folder, file)
    if sha256_of(draft) != file.sha256:
        draft.unlink()
        raise damaged(place, fix)
    with draft.open("rb+") as written:
        os.fsync(written.fileno())
    draft.replace(folder / file.name)


def _draft(folder: Path, file: StoredFile) -> Path:
    return folder / f"{file.name}.part"
