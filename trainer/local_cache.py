"""What this machine keeps so that it is not fetched or made twice: where, what becomes of full disks, hashes.

Standard library and our own errors only.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.contract import ExitCode, StoreError

_DISK = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
MORE_ROOM = "free disk space, or set XDG_CACHE_HOME to a folder on another disk"


class LocalDiskError(StoreError):
    """This machine's disk is full, or may not be written: it will be no better at the next attempt."""

    node_exit_code = ExitCode.BAD_CONFIG


def cache_folder() -> Path:
    """Where what was fetched or made once is kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldlm"


def is_disk_error(error: OSError) -> bool:
    """True for an error of a disk that is full or may not be written, not of a network."""
    return error.errno in _DISK


@contextmanager
def disk_errors(place: Path, *, less: str = "") -> Iterator[None]:
    """Turn what a disk raises into a message that says how to give it room.

    Args:
        place: What is written there.
        less: Another way to need less of it.
    """
    try:
        yield
    except OSError as error:
        raise LocalDiskError(f"cannot be kept on this disk: {error.strerror}", place=str(place),
                             fix=f"{less}, or {MORE_ROOM}" if less else MORE_ROOM) from error


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Only one process of this machine is in here with the same path; it ends with the process.

    Raises:
        LocalDiskError: The path cannot be written.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_verified(path: Path, sha256: str) -> bool:
    """True if a file has this hash. Hashed once per machine, and again when its size or time changes."""
    stamp = _stamp(sha256)
    if stamp.is_file() and stamp.read_text() == _content(path):
        return True
    if sha256_of(path) != sha256:
        return False
    remember_verified(path, sha256)
    return True


def remember_verified(path: Path, sha256: str) -> None:
    """Keep in mind that this file has just been hashed."""
    with disk_errors(_stamp(sha256)):
        _stamp(sha256).parent.mkdir(parents=True, exist_ok=True)
        _stamp(sha256).write_text(_content(path))


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(sha256: str) -> Path:
    return cache_folder() / "verified" / sha256


def _content(path: Path) -> str:
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}"
