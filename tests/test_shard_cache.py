"""Shards of a store far away: fetched, verified, kept within bounds, and what a broken store does."""

import hashlib
import multiprocessing
import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from data_examples import (  # noqa: E402
    Remote,
    corpus_of,
    documents,
    files_in,
    prepared,
    train_config,
    write_text,
)

from trainer.batches import Batches, batch_indices  # noqa: E402
from trainer.contract import StoreError  # noqa: E402
from trainer.shard_cache import DamagedShardError  # noqa: E402


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder from which others vanish meanwhile."""
    size = 0
    for path in folder.glob("*.bin"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def test_shards_are_fetched_once_and_kept(out, tmp_path):
    near = corpus_of(out, tmp_path / "none")
    everything = np.arange(near.num_sequences)
    for expected_reads in (True, False):
        far = Remote(out)
        corpus = corpus_of(out, tmp_path / "cache", far)
        assert np.array_equal(corpus.rows(everything), near.rows(everything))
        corpus.rows(everything)
        assert bool(far.log) == expected_reads and len(set(far.log)) == len(far.log)
    names = {path.stem for path in (tmp_path / "cache" / "shards").iterdir()}
    shards = out.rglob("*.bin")
    assert names == {hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}


def test_a_shard_that_comes_damaged_is_fetched_again_once(out, tmp_path):
    near = corpus_of(out, tmp_path / "none")
    far = Remote(out, lambda key, data, reads: data[:-3] if reads == 1 else data)
    corpus = corpus_of(out, tmp_path / "cache", far)
    everything = np.arange(near.num_sequences)
    assert np.array_equal(corpus.rows(everything), near.rows(everything))
    assert {far.log.count(key) for key in far.log} == {2}


@pytest.mark.parametrize("where", ["far", "near", "missing"])
def test_a_shard_that_stays_damaged_is_named_with_the_way_to_mend_it(tmp_path, where):
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "out")
    path, expected = tmp_path / "out" / "train" / "00001.bin", files_in(tmp_path / "out")
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    if where == "missing":
        path.unlink()
    store = Remote(tmp_path / "out") if where != "near" else None
    corpus = corpus_of(tmp_path / "out", tmp_path / "cache", store)
    with pytest.raises(DamagedShardError) as caught:
        corpus.rows(np.arange(corpus.num_sequences))
    assert "train/00001.bin" in (caught.value.place or "") and caught.value.node_exit_code == 78
    assert "delete it" in (caught.value.fix or "")
    path.unlink(missing_ok=True)
    result, _ = prepared(source, tmp_path / "out")
    assert result.num_made == 1 and files_in(tmp_path / "out") == expected


def test_a_damaged_copy_in_the_cache_is_fetched_again(out, tmp_path):
    corpus = corpus_of(out, tmp_path / "cache", Remote(out))
    expected = corpus.rows(np.arange(corpus.num_sequences))
    for path in (tmp_path / "cache" / "shards").iterdir():
        content = bytearray(path.read_bytes())
        content[8] ^= 1
        path.unlink()  # the first corpus still reads the old file
        path.write_bytes(content)
    again = corpus_of(out, tmp_path / "cache", Remote(out))
    assert np.array_equal(again.rows(np.arange(corpus.num_sequences)), expected)


def test_the_cache_stays_within_its_size_and_keeps_what_is_in_use(tmp_path):
    prepared(write_text(tmp_path / "a.txt", documents(300)), tmp_path / "out")
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "train").glob("*.bin")]
    limit = 5 * max(sizes)
    assert sum(sizes) > 3 * limit
    far = Remote(tmp_path / "out")
    corpus = corpus_of(tmp_path / "out", tmp_path / "cache", far, limit / 2**30, window_shards=2)
    near = corpus_of(tmp_path / "out", tmp_path / "none", window_shards=2)
    batches = Batches(corpus, train_config("any"), 0, 1, 0)
    for step in range(2 * near.num_sequences // 4):
        expected = near.rows(batch_indices(near.layout, 4, 0, step))
        assert np.array_equal(batches.next()[:, 0], expected)
        assert size_of(tmp_path / "cache" / "shards") <= limit + 4 * max(sizes)  # that are arriving
    batches.close()


def test_training_waits_for_a_slow_store_and_then_has_shards_ahead(out, tmp_path):
    def slowly(key: str, data: bytes, reads: int) -> bytes:
        time.sleep(0.3)
        return data

    far = Remote(out, slowly)
    corpus = corpus_of(out, tmp_path / "cache", far, window_shards=2)
    near = corpus_of(out, tmp_path / "none", window_shards=2)
    batches = Batches(corpus, train_config("any"), 0, 1, 0)
    assert np.array_equal(batches.next()[:, 0], near.rows(batch_indices(near.layout, 4, 0, 0)))
    assert batches.waited_s > 0.2
    time.sleep(1.5)  # two windows and the steps ahead are here by now
    for step in range(1, 5):
        assert np.array_equal(batches.next()[:, 0], near.rows(batch_indices(near.layout, 4, 0, step)))
        assert batches.waited_s < 0.2
    batches.close()


def test_a_store_that_fails_for_a_moment_is_asked_again(out, tmp_path):
    def once(key: str, data: bytes, reads: int) -> bytes:
        if reads == 1:
            raise StoreError("cannot read: connection reset", place=key)
        return data

    corpus = corpus_of(out, tmp_path / "cache", Remote(out, once))
    assert len(corpus.rows(np.arange(corpus.num_sequences))) == corpus.num_sequences


def test_a_store_that_stays_away_comes_out_of_next(out, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.batches._PATIENCE_S", 0.0)

    def never(key: str, data: bytes, reads: int) -> bytes:
        if key.startswith("train"):
            raise StoreError("cannot read: connection reset", place=key)
        return data

    batches = Batches(corpus_of(out, tmp_path / "cache", Remote(out, never)),
                      train_config("any"), 0, 1, 0)
    with pytest.raises(StoreError, match="connection reset"):
        batches.next()
    batches.close()


def test_a_full_disk_is_told_with_a_way_out(out, tmp_path, monkeypatch):
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        corpus_of(out, tmp_path / "cache", Remote(out))
    assert "data.cache_gib" in (caught.value.fix or "")


def _read(folder: str) -> str:
    out = Path(folder) / "out"
    corpus = corpus_of(out, Path(folder) / "cache", Remote(out), 20_000 / 2**30)
    digest = hashlib.sha256()
    for _ in range(3):
        digest.update(corpus.rows(np.arange(corpus.num_sequences)).tobytes())
        corpus.expect([])
    return digest.hexdigest()


def test_ranks_of_a_node_share_the_cache_while_it_is_too_small_for_all(tmp_path):
    prepared(write_text(tmp_path / "a.txt", documents(300)), tmp_path / "out")
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        found = pool.map(_read, [str(tmp_path)] * 3, chunksize=1)
    assert len(set(found)) == 1
    left = {path.suffix for path in (tmp_path / "cache" / "shards").iterdir()}
    assert left == {".bin"}


def test_what_killed_downloads_left_goes_after_a_day(out, tmp_path):
    old, new = (tmp_path / "cache" / "shards" / name for name in ("old.part", "new.part"))
    old.parent.mkdir(parents=True)
    old.touch(), new.touch()
    os.utime(old, (0, 0))
    corpus_of(out, tmp_path / "cache", Remote(out))
    assert not old.exists() and new.exists()
