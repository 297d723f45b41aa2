"""Token shards as memory maps: fetched ahead, verified, kept on a node's disk within bounds. No torch.

Several ranks of a node share the folder. A file has its name only when it is whole and its hash is right.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from trainer.contract import ConfigError, StoreError
from trainer.local_cache import disk_errors
from trainer.shard_writer import TOKEN
from trainer.shards import Shard
from trainer.store import NotFoundError, Store

_DOWNLOADS_AT_A_TIME = 4  # guess: one connection seldom fills a cloud machine's network

_ABANDONED_S = 24 * 3600  # a draft whose writer was killed; no download takes as long (guess)


class DamagedShardError(ConfigError):
    """A shard is not what its manifest says, twice: the data is wrong, no retry can help."""


class ShardCache:
    """Shards of one prepared text. Every method may be called from several threads.

    Args:
        store: Where the shards are. One on this disk is read in place, without a copy.
        folder: For copies, made when missing.
        limit_bytes: Of all copies, save those that are just arriving. Those in use stay, so it has to
            hold at least them.
    """

    def __init__(self, store: Store, folder: Path, limit_bytes: int) -> None:
        self._store, self._folder, self._limit_bytes = store, folder, limit_bytes
        self._local = store.local_folder
        self._pool = ThreadPoolExecutor(_DOWNLOADS_AT_A_TIME, thread_name_prefix="shards")
        self._lock = threading.Lock()
        self._open: dict[Shard, Future[np.ndarray]] = {}

    def tokens(self, shard: Shard) -> np.ndarray:
        """All ids of a shard, a uint32 memory map; waits for its download.

        Raises:
            DamagedShardError: Size or hash is wrong, also when fetched again.
            StoreError: It cannot be read, or not be kept on this disk.
        """
        future = self._future(shard)
        try:
            return future.result()
        except StoreError:
            # It may have failed long ago, when it was fetched ahead.
            with self._lock:
                if self._open.get(shard) is future:
                    del self._open[shard]
            return self._future(shard).result()

    def expect(self, shards: Iterable[Shard]) -> None:
        """Begin to fetch these, in this order; let go of all others."""
        wanted = list(shards)
        with self._lock:
            for shard in self._open.keys() - set(wanted):
                self._open.pop(shard).cancel()
        for shard in wanted:
            self._future(shard)

    def _future(self, shard: Shard) -> "Future[np.ndarray]":
        with self._lock:
            future = self._open.get(shard)
            if future is None:
                future = self._open[shard] = self._pool.submit(self._map, shard)
            return future

    def _map(self, shard: Shard) -> np.ndarray:
        if self._local:
            path = self._local / shard.key
            if not is_whole_shard(path, shard):
                raise self._damaged(shard)
            return np.memmap(path, dtype=TOKEN, mode="r")
        while True:
            with suppress(FileNotFoundError):  # another rank found the cache full before it was opened here
                return np.memmap(self._copy(shard), dtype=TOKEN, mode="r")

    def _copy(self, shard: Shard) -> Path:
        path = self._folder / _copy_name(shard)
        with disk_errors(self._folder, less="lower train.data.cache_gib"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with _only_one(path.with_suffix(".part")) as draft:
                if is_whole_shard(path, shard):
                    os.utime(path)  # the copies used last are evicted last
                    return path
                draft.write_bytes(self._download(shard))
                draft.replace(path)
            self._evict()
        return path

    def _download(self, shard: Shard) -> bytes:
        for _ in range(2):
            try:
                data = self._store.get(shard.key)
            except NotFoundError:
                break
            if hashlib.sha256(data).hexdigest() == shard.sha256:
                return data
        raise self._damaged(shard)

    def _damaged(self, shard: Shard) -> DamagedShardError:
        return DamagedShardError(
            "the shard is missing, or is not what its manifest says", place=f"{self._store.url}/{shard.key}",
            fix="delete it and run the same `ldlm data prepare` again: only what is missing is made anew")

    def _evict(self) -> None:
        for draft in self._folder.glob("*.part"):
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _ABANDONED_S:
                    draft.unlink()
        copies = sorted(_copies(self._folder))
        excess = sum(size for _, size, _ in copies) - self._limit_bytes
        with self._lock:
            in_use = {_copy_name(shard) for shard in self._open}
        for _, size, path in copies:
            if excess > 0 and path.name not in in_use:
                path.unlink(missing_ok=True)
                excess -= size


def _copy_name(shard: Shard) -> str:
    return f"{shard.sha256}.bin"


def _copies(folder: Path) -> Iterator[tuple[float, int, Path]]:
    for path in folder.glob("*.bin"):
        with suppress(FileNotFoundError):  # another rank evicts too
            found = path.stat()
            yield found.st_mtime, found.st_size, path


def is_whole_shard(path: Path, shard: Shard) -> bool:
    """True if a file has the size and the hash of a shard's tokens."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != shard.num_bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except FileNotFoundError:
        return False


@contextmanager
def _only_one(draft: Path) -> Iterator[Path]:
    """Hold a file that no other process holds, until it is renamed or left. A dead holder lets go."""
    while True:
        with draft.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it before may have renamed it meanwhile.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), draft.stat()):
                    yield draft
                    draft.unlink(missing_ok=True)
                    return
