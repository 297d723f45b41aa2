"""Documents of a unit -> token files and their indices in a store. No torch."""

import hashlib
from collections.abc import Callable

import numpy as np

from trainer.shards import START_BYTES, Shard, Split

TOKEN = np.dtype("<u4")
START = np.dtype(f"<u{START_BYTES}")
# A unit that gives more continues in a second shard: one of these must be quick to fetch and to hash (guess).
SHARD_TOKENS = 2**26


class ShardWriter:
    """Collects the documents of one unit and one split, and stores them as shards by `put(key, content)`."""

    def __init__(self, put: Callable[[str, bytes], None], split: Split, unit: int,
                 end_of_text_id: int) -> None:
        self._put, self._split, self._unit = put, split, unit
        self._end = np.array([end_of_text_id], dtype=TOKEN)
        self._pieces: list[np.ndarray] = []
        self._starts: list[int] = []
        self._num_tokens = 0
        self.shards: list[Shard] = []

    def add(self, ids: np.ndarray) -> None:
        """Append one document, without its end of text. Raises StoreError: a full shard cannot be stored."""
        if self._num_tokens and self._num_tokens + len(ids) + 1 > SHARD_TOKENS:
            self.flush()
        self._starts.append(self._num_tokens)
        self._pieces += [ids.astype(TOKEN, copy=False), self._end]
        self._num_tokens += len(ids) + 1

    def flush(self) -> None:
        """Store what has been collected, if anything. Raises StoreError."""
        if not self._starts:
            return
        part = f"-{len(self.shards)}" if self.shards else ""
        name = f"{self._split}/{self._unit:05d}{part}"
        tokens, index = np.concatenate(self._pieces).tobytes(), np.array(self._starts, dtype=START).tobytes()
        self._put(f"{name}.bin", tokens)
        self._put(f"{name}.idx", index)
        self.shards.append(Shard(
            name=name, split=self._split, num_tokens=self._num_tokens, num_documents=len(self._starts),
            num_bytes=len(tokens), sha256=hashlib.sha256(tokens).hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest()))
        self._pieces, self._starts, self._num_tokens = [], [], 0
