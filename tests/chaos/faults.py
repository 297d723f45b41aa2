"""Lets a drawn fault strike in a process of the run: stands between the program and its store.

What is not there to be struck is not patched: snapshots and steps tell of themselves through `Faults.at`.
"""

import mmap
import os
import random
import resource
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.plan import NODE, Strike
from trainer.contract import StoreError
from trainer.store import Store, StoredObject

_MAX_RANKS = 8
_FULL_BYTES = 100  # what fits into the last block of a full disk


class Board:
    """What the processes of an attempt tell the driver, in memory that they share.

    Attributes are numbers: `step` that was reached, `resumed_from` (-1: not known), `first_step_at` on the
    monotonic clock, `struck` 1 once a fault has, `node` a process id, `away_until` on the clock.
    """

    _NAMES = ("step", "resumed_from", "first_step_at", "struck", "node", "away_until", "full_until")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self.resumed_from = -1.0

    def _place(self, name: str) -> int:
        return 8 * self._NAMES.index(name)

    def __getattr__(self, name: str) -> float:
        if name not in Board._NAMES:
            raise AttributeError(name)
        return float(struct.unpack_from("d", self._memory, self._place(name))[0])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Board._NAMES:
            struct.pack_into("d", self._memory, self._place(name), float(value))
        else:
            super().__setattr__(name, value)

    def pid(self, rank: int) -> int:
        """Of a rank; 0: not started."""
        return int(struct.unpack_from("q", self._memory, 1024 + 8 * rank)[0])

    def set_pid(self, rank: int, pid: int) -> None:
        """To be called by a rank."""
        struct.pack_into("q", self._memory, 1024 + 8 * rank, pid)


def subject_of(key: str) -> str:
    """What an object is, by its key."""
    name = key.rpartition("/")[2]
    if name.endswith(".bin"):
        return "shard"
    if name.endswith(".safetensors"):
        return "rest"
    if name.endswith(".jsonl"):
        return "rows"
    if "-part-" in name:
        return "part"
    return name.removesuffix(".json")


class Faults:
    """The faults of one process.

    Args:
        strike: What happens in this attempt; None: nothing.
        board: Of the attempt.
        rank: Of this process, or NODE.
        num_ranks: Of the attempt.
        delay_s: See `Case`.
    """

    def __init__(self, strike: Strike | None, board: Board, rank: int, num_ranks: int,
                 delay_s: float) -> None:
        self._strike = strike if strike and strike.who == rank else None
        self._board, self._rank, self._num_ranks, self._delay_s = board, rank, num_ranks, delay_s
        self._count, self._stale = 0, 0
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._chance = random.Random(os.getpid())
        if rank != NODE:
            board.set_pid(rank, os.getpid())

    def at(self, operation: str, key: str, when: str) -> bool:
        """Called at each point; True: the caller has to leave half of a write, and call `act`."""
        strike = self._strike
        if strike is None or strike.operation != operation or strike.subject not in ("", subject_of(key)):
            return False
        self._count += when == "before"
        if self._count != strike.nth or strike.when != when:
            return False
        if when == "during":
            return True
        self.act()
        return False

    def act(self) -> None:
        """Do it."""
        assert self._strike is not None
        strike, self._strike, self._board.struck = self._strike, None, 1
        action = strike.action
        if action == "self":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "peer":
            os.kill(self._board.pid((self._rank + 1) % self._num_ranks) or os.getpid(), signal.SIGKILL)
        elif action == "node":
            os.kill(int(self._board.node), signal.SIGKILL)
        elif action in ("machine", "torn"):
            os.killpg(0, signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "sleep":
            os.killpg(0, signal.SIGSTOP)
        elif action == "stale":
            self._stale = int(strike.amount)
        else:
            setattr(self._board, f"{action}_until", time.monotonic() + strike.amount)
            self.weather("")

    @property
    def is_torn(self) -> bool:
        """Half of a write is to stand at its final name."""
        return self._strike is not None and self._strike.action == "torn"

    def weather(self, key: str) -> None:
        """What the store is like now, for every process of the machine."""
        if self._delay_s:
            time.sleep(self._chance.uniform(0, self._delay_s))
        is_full = time.monotonic() < self._board.full_until
        resource.setrlimit(resource.RLIMIT_FSIZE,
                           (_FULL_BYTES, self._limit[1]) if is_full else self._limit)
        if time.monotonic() < self._board.away_until and key:
            raise StoreError("cannot be reached: error sending request", place=key)

    def seen(self, found: list[StoredObject]) -> list[StoredObject]:
        """A listing, which may lag behind."""
        newest = max((_step(one.key) for one in found), default=-1)
        if self._stale and newest >= 0:
            self._stale -= 1
            found = [one for one in found if _step(one.key) != newest]
        return found


def _step(key: str) -> int:
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return int(folder.removeprefix("step-")) if folder.startswith("step-") else -1


def install(faults: Faults) -> None:
    """Stand between this process and every store that it opens."""
    put, stream, delete = Store.put, Store.stream, Store.delete

    def leave_half(store: Store, key: str, data: bytes) -> None:
        """What a kill in the middle of a write leaves."""
        folder = store.local_folder
        assert folder is not None
        path = folder / key if faults.is_torn else folder / f"{key}#1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[:len(data) // 2])

    def put_or_not(store: Store, key: str, data: bytes | memoryview | Path, *, create: bool = False) -> None:
        faults.weather(key)
        faults.at("put", key, "before")
        if faults.at("put", key, "during"):
            assert not isinstance(data, Path)
            leave_half(store, key, bytes(data))
            faults.act()
        put(store, key, data, create=create)
        faults.at("put", key, "after")

    def stream_or_not(store: Store, key: str, buffers: Iterable[bytes | memoryview]) -> None:
        faults.weather(key)
        faults.at("stream", key, "before")

        def flowing() -> Iterator[bytes | memoryview]:
            for index, buffer in enumerate(buffers):
                if index == 2 and faults.at("stream", key, "during"):
                    if faults.is_torn:
                        leave_half(store, key, bytes(buffer))
                    faults.act()
                faults.weather(key)
                yield buffer

        stream(store, key, flowing())
        faults.at("stream", key, "after")

    def delete_or_not(store: Store, keys: Iterable[str]) -> None:
        for key in keys:
            faults.weather(key)
            faults.at("delete", key, "before")
            delete(store, [key])
            faults.at("delete", key, "after")

    def reading(name: str) -> Any:
        read = getattr(Store, name)

        def read_or_not(store: Store, key: str = "", *args: Any) -> Any:
            faults.weather(key)
            for when in ("before", "during"):  # nobody sees the middle of a read
                if faults.at(name, key, when):
                    faults.act()
            found = read(store, key, *args)
            faults.at(name, key, "after")
            return faults.seen(found) if name == "objects" else found

        return read_or_not

    Store.put, Store.stream, Store.delete = put_or_not, stream_or_not, delete_or_not  # type: ignore[method-assign]
    for name in ("get", "get_range", "objects", "size"):
        setattr(Store, name, reading(name))
