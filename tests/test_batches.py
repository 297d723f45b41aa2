"""The order of training, and having batches ready in time."""

import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from data_examples import train_config  # noqa: E402

from trainer.batches import Batches, Layout, batch_indices, coming_shards  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import StoreError  # noqa: E402

counts = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any).map(tuple)
layouts = st.builds(Layout, counts, st.integers(1, 5))


def order(layout: Layout, number: int, seed: int = 0, batch: int = 1) -> list[int]:
    """The first numbers of a run."""
    steps = -(-number // batch)
    found = np.concatenate([batch_indices(layout, batch, seed, step) for step in range(steps)])
    return found.tolist()[:number]


@given(layouts, st.integers(1, 40), st.integers(0, 2**31 - 1))
@settings(max_examples=200, deadline=None)
def test_every_epoch_visits_each_sequence_once_across_batches_and_windows(layout, batch, seed):
    epochs = order(layout, 3 * sum(layout.sequences), seed, batch)
    for epoch in range(3):
        size = sum(layout.sequences)
        assert sorted(epochs[epoch * size:(epoch + 1) * size]) == list(range(size))


@given(layouts, st.integers(1, 40), st.integers(1, 40), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_a_batch_is_a_pure_function_of_seed_and_step(layout, batch, other_batch, step):
    expected = order(layout, (step + 1) * batch, 7, other_batch)[step * batch:]
    same = Layout(layout.sequences, layout.window_shards)
    found = batch_indices(same, batch, 7, step)
    assert found.tolist() == expected and found.dtype == np.int64 and found.shape == (batch,)


@given(layouts, st.integers(1, 30), st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_the_sequences_of_a_window_come_together_and_their_shards_were_announced(layout, batch, step):
    numbers = batch_indices(layout, batch, 3, step)
    first = np.cumsum([0, *layout.sequences])
    shards = {int(np.searchsorted(first, number, side="right")) - 1 for number in numbers}
    coming = coming_shards(layout, 3, step * batch, batch)
    assert shards <= set(coming) and len(set(coming)) == len(coming)
    assert len(coming_shards(layout, 3, step * batch)) <= 2 * layout.window_shards
    assert all(layout.sequences[shard] for shard in coming)


def test_order_mixes_within_windows_and_differs_between_epochs_and_seeds():
    layout = Layout((50,) * 20, 4)
    numbers = order(layout, 2000)
    first_window = [number // 50 for number in numbers[:200]]
    assert set(Counter(first_window).values()) == {50} and len(set(first_window)) == 4
    assert len(set(first_window[:20])) == 4
    assert numbers[:1000] != numbers[1000:]
    shards = [number // 50 for number in numbers[:1000:200]]
    assert shards != sorted(shards)
    assert order(layout, 1000, seed=1) != numbers[:1000]
    # seeds, epochs and windows are not added up
    one, other = Layout((8,), 1), Layout((8,), 1)
    assert order(one, 16, seed=0)[8:] != order(other, 8, seed=1)


def test_the_order_of_a_huge_corpus_takes_no_time_and_no_memory():
    layout = Layout((16_384,) * 100_000, 8)  # 1.6 billion sequences
    began = time.monotonic()
    numbers = [batch_indices(layout, 512, 0, step) for step in (0, 1, 2_000_000, 3_199_999)]
    assert time.monotonic() - began < 5
    assert len({number for part in numbers for number in part.tolist()}) == 4 * 512


# -- the thread


class NumberedSequences:
    """A corpus whose sequences hold their own number. `delays`: seconds before each step's rows are there."""

    def __init__(self, *sequences: int, delays: Sequence[float] = (), fails_at: int | None = None) -> None:
        self.layout = Layout(sequences, 2)
        self.asked = 0
        self.expected: list[list[int]] = []
        self._delays, self._fails_at = delays, fails_at

    def rows(self, indices: np.ndarray) -> np.ndarray:
        step, self.asked = self.asked, self.asked + 1
        time.sleep(self._delays[step] if step < len(self._delays) else 0)
        if step == self._fails_at:
            raise StoreError("cannot read: it is gone", place="somewhere")
        return np.repeat(indices[:, None], 8, axis=1).astype(np.uint32)

    def expect(self, shards: Sequence[int]) -> None:
        self.expected.append(list(shards))


def config(batch: int = 8, micro: int = 2, steps: int = 1000) -> TrainConfig:
    return train_config("any", batch=batch).model_copy(update={"micro_batch_size": micro, "steps": steps})


def taken(world_size: int, first_step: int, number: int) -> list[list[int]]:
    """Global batches of some steps, put together from all ranks."""
    ranks = []
    for rank in range(world_size):
        batches = Batches(NumberedSequences(10, 20, 7), config(), rank, world_size, first_step)
        ranks.append([batches.next() for _ in range(number)])
        batches.close()
        assert ranks[-1][0].shape == (4 // world_size, 2, 8) and ranks[-1][0].dtype == np.uint32
    return [[int(row) for rank in ranks for row in rank[step][..., 0].ravel()] for step in range(number)]


def test_global_batches_are_the_same_on_any_number_of_ranks_and_after_a_resume():
    expected = [batch_indices(Layout((10, 20, 7), 2), 8, 0, step).tolist() for step in range(12)]
    for world_size in (1, 2, 4):
        assert taken(world_size, 0, 12) == expected
        assert taken(world_size, 7, 5) == expected[7:]


def test_batches_are_made_ahead_but_not_far_and_shards_are_announced():
    corpus = NumberedSequences(10, 20, 7)
    batches = Batches(corpus, config(), 0, 1, 3)
    give_up = time.monotonic() + 10
    while corpus.asked < 5 and time.monotonic() < give_up:
        time.sleep(0.01)
    time.sleep(0.1)
    assert 3 <= corpus.asked <= 8
    assert corpus.expected[0] == coming_shards(corpus.layout, 0, 24, 8)
    batches.next()
    assert batches.waited_s < 0.05
    batches.close()


def test_a_slow_store_shows_as_waiting_and_nothing_else_changes():
    slow = Batches(NumberedSequences(10, 20, 7, delays=[0.3, 0, 0, 0.3]), config(), 0, 1, 0)
    fast = Batches(NumberedSequences(10, 20, 7), config(), 0, 1, 0)
    waited = []
    for _ in range(6):
        assert np.array_equal(slow.next(), fast.next())
        waited.append(slow.waited_s)
    assert 0.25 < waited[0] < 1 and sum(waited) > 0.5
    slow.close()
    fast.close()


def test_a_store_that_is_away_is_waited_for_and_nothing_else_changes(monkeypatch, capsys):
    monkeypatch.setattr("trainer.batches._RETRY_S", 0.5)
    away, near = (Batches(NumberedSequences(10, 20, 7, fails_at=fails_at), config(), 0, 1, 0)
                  for fails_at in (2, None))
    for _ in range(2):
        assert np.array_equal(away.next(), near.next())
    assert not away.await_next(0.2) and away.is_away
    for _ in range(4):
        assert np.array_equal(away.next(), near.next())
    assert not away.is_away and away.waited_s < 0.2
    assert capsys.readouterr().out.splitlines() == [
        "warning: rank 0: text is not fetched: somewhere: cannot read: it is gone; training goes on with "
        "what is here, then waits up to 60 min", "rank 0: text is fetched again"]
    away.close()
    near.close()


def test_a_store_that_stays_away_comes_out_of_next_every_time(monkeypatch):
    monkeypatch.setattr("trainer.batches._PATIENCE_S", 0.0)
    batches = Batches(NumberedSequences(10, 20, 7, fails_at=2), config(), 0, 1, 0)
    for _ in range(2):
        assert batches.next().shape == (4, 2, 8)
    for _ in range(2):
        with pytest.raises(StoreError, match="it is gone"):
            batches.next()
    batches.close()


def test_batches_end_with_the_run():
    corpus = NumberedSequences(10, 20, 7)
    batches = Batches(corpus, config(steps=5), 0, 1, 3)
    batches.next(), batches.next()
    with pytest.raises(RuntimeError, match="no step 5"):
        batches.next()
    assert corpus.asked == 2


def test_closing_leaves_no_thread_behind():
    before = threading.active_count()
    for _ in range(3):
        batches = Batches(NumberedSequences(10, 20, 7), config(), 0, 1, 0)
        batches.next()
        batches.close()
    give_up = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threading.active_count() == before
