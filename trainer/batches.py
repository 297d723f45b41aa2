"""Which sequences a step sees, and having them ready in time. No torch.

Order: the shards of an epoch are permuted and cut into windows, and the sequences of a window are
permuted: a pure function of (seed, epoch, step) that needs no more than one window in memory or on
disk. Shapes: G sequences of a global batch, L tokens.
"""

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainer.config import TrainConfig, grad_accum_steps
from trainer.contract import StoreError
from trainer.local_cache import LocalDiskError

# A machine that waits is paid for; another one would wait too, after a set-up (guess). The store itself has
# tried for a minute when it says no.
_PATIENCE_S, _RETRY_S = 3600.0, 10.0
_STEPS_AHEAD = 4  # guess: enough to hide a slow disk, few enough to cost no memory


@dataclass(frozen=True, eq=False)
class Layout:
    """How many sequences each training shard holds. Sequences are numbered shard by shard.

    Attributes:
        sequences: Of each shard.
        window_shards: Shards that are shuffled together.
    """

    sequences: tuple[int, ...]
    window_shards: int

    @functools.cached_property
    def first(self) -> np.ndarray:
        """Number of the first sequence of each shard, and at the end N: int64 of one more than the shards."""
        return np.concatenate([[0], np.cumsum(self.sequences, dtype=np.int64)])

    @property
    def num_sequences(self) -> int:
        """N."""
        return int(self.first[-1])


class Sequences(Protocol):
    """What batches are made of; `trainer.data.Corpus` is one."""

    layout: Layout

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Sequences by number: uint32 (n, L)."""

    def expect(self, shards: Sequence[int]) -> None:
        """These shards come next: fetch them, let go of all others."""


def batch_indices(layout: Layout, global_batch_size: int, seed: int, step: int) -> np.ndarray:
    """Numbers of the sequences in the global batch of one step, whatever the world size.

    Every epoch visits each sequence once; a batch may begin in one epoch and end in the next.

    Args:
        layout: Of the corpus.
        global_batch_size: G.
        seed: Of the run.
        step: From 0.

    Returns:
        int64 of shape (G,).
    """
    parts, position, end = [], step * global_batch_size, (step + 1) * global_batch_size
    while position < end:
        epoch, offset = divmod(position, layout.num_sequences)
        window, inside = _window_at(layout, seed, epoch, offset)
        part = _window_order(layout, seed, epoch, window)[inside:inside + end - position]
        parts.append(part)
        position += len(part)
    return np.concatenate(parts)


def coming_shards(layout: Layout, seed: int, position: int, num_sequences: int = 1) -> list[int]:
    """Shards of the windows that hold the next sequences, and of the window after them, in order.

    Args:
        layout: Of the corpus.
        seed: Of the run.
        position: Sequences that the run has seen: step * G.
        num_sequences: That come next.
    """
    coming: list[int] = []
    end, beyond = position + num_sequences, False
    while not beyond:
        beyond = position >= end
        epoch, offset = divmod(position, layout.num_sequences)
        window, inside = _window_at(layout, seed, epoch, offset)
        shards = _window_shards(layout, seed, epoch, window)
        coming += shards
        position += sum(layout.sequences[shard] for shard in shards) - inside
    return [shard for shard in dict.fromkeys(coming) if layout.sequences[shard]]


class Batches:
    """The batches of one rank, made ahead by a thread. What the store does not give is asked for again.

    Args:
        corpus: Where sequences come from.
        config: Batch sizes, seed, steps.
        rank: Takes its contiguous share of each global batch.
        world_size: Ranks.
        first_step: Where the run starts or goes on.

    Attributes:
        waited_s: Seconds that the last batch was waited for. More than a little: data is too slow.
        is_away: The store does not give what a coming batch is made of.
    """

    def __init__(self, corpus: Sequences, config: TrainConfig, rank: int, world_size: int,
                 first_step: int) -> None:
        self.waited_s, self._waiting_s, self.is_away = 0.0, 0.0, False
        self._rank = rank
        self._held: np.ndarray | BaseException | None = None
        self._corpus, self._config = corpus, config
        self._accumulate = grad_accum_steps(config, world_size)
        share = self._accumulate * config.micro_batch_size
        self._share = slice(rank * share, (rank + 1) * share)
        self._ready: queue.Queue[np.ndarray | BaseException] = queue.Queue(_STEPS_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first_step,), daemon=True, name="batches")
        self._thread.start()

    def await_next(self, timeout_s: float | None = None) -> bool:
        """Wait for the next batch, or for what is wrong with it. True when `next()` would not wait."""
        if self._held is None:
            began = time.monotonic()
            with contextlib.suppress(queue.Empty):
                self._held = self._ready.get(timeout=timeout_s)
            self._waiting_s += time.monotonic() - began
        return self._held is not None

    def next(self) -> np.ndarray:
        """The rank's share of the next step: uint32 (accumulation steps, micro-batch, L).

        Raises:
            StoreError: Shards cannot be fetched, after retries.
            DamagedShardError: A shard is not what its manifest says.
            RuntimeError: The run has no more steps, or this is closed.
        """
        self.await_next()
        found = self._held
        self.waited_s, self._waiting_s = self._waiting_s, 0.0
        if isinstance(found, BaseException):
            raise found  # and again for whoever asks again
        assert found is not None, "there is no limit to the time"
        self._held = None
        return found

    def close(self) -> None:
        """Stop making batches, and fetching for them."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join(timeout=1)  # it may hang on a store that does not answer
        # The end of the program waits for what is queued, and a machine that is taken back does not.
        self._corpus.expect([])

    def _run(self, first_step: int) -> None:
        try:
            for step in range(first_step, self._config.steps):
                if self._closed.is_set():
                    raise RuntimeError("these batches are closed")
                self._ready.put(self._make_patiently(step))
            self._ready.put(RuntimeError(f"the run has no step {self._config.steps}"))
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            self._ready.put(error)

    def _make_patiently(self, step: int) -> np.ndarray:
        gives_up_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                made = self._make(step)
            except LocalDiskError:
                raise
            except StoreError as error:
                if time.monotonic() > gives_up_s or self._closed.is_set():
                    raise
                if not self.is_away:
                    print(f"warning: rank {self._rank}: text is not fetched: {error}; training goes on with "
                          f"what is here, then waits up to {_PATIENCE_S / 60:.0f} min", flush=True)
                self.is_away = True
                self._closed.wait(_RETRY_S)
                continue
            if self.is_away:
                print(f"rank {self._rank}: text is fetched again", flush=True)
            self.is_away = False
            return made

    def _make(self, step: int) -> np.ndarray:
        config, layout = self._config, self._corpus.layout
        batch = config.global_batch_size
        self._corpus.expect(coming_shards(layout, config.seed, step * batch, batch))
        indices = batch_indices(layout, batch, config.seed, step)[self._share]
        rows = self._corpus.rows(indices)
        return rows.reshape(self._accumulate, config.micro_batch_size, -1)


@functools.lru_cache(maxsize=4)  # the epoch that ends and the one that begins
def _epoch_order(layout: Layout, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shards of an epoch in order, and at which offset each of its windows ends."""
    order = np.random.default_rng([seed, epoch]).permutation(len(layout.sequences))
    counts = np.array(layout.sequences, dtype=np.int64)[order]
    firsts = np.arange(0, len(order), layout.window_shards)
    return order, np.cumsum(np.add.reduceat(counts, firsts))


def _window_at(layout: Layout, seed: int, epoch: int, offset: int) -> tuple[int, int]:
    """The window that holds the sequence at an offset of its epoch, and the offset in the window."""
    _, ends = _epoch_order(layout, seed, epoch)
    window = int(np.searchsorted(ends, offset, side="right"))
    return window, offset - (int(ends[window - 1]) if window else 0)


def _window_shards(layout: Layout, seed: int, epoch: int, window: int) -> list[int]:
    order, _ = _epoch_order(layout, seed, epoch)
    return order[window * layout.window_shards:(window + 1) * layout.window_shards].tolist()


@functools.lru_cache(maxsize=4)  # a batch may span two windows
def _window_order(layout: Layout, seed: int, epoch: int, window: int) -> np.ndarray:
    """Sequence numbers of a window in order."""
    shards = _window_shards(layout, seed, epoch, window)
    numbers = np.concatenate([np.arange(layout.first[shard], layout.first[shard + 1]) for shard in shards])
    return np.random.default_rng([seed, epoch, window]).permutation(numbers)
