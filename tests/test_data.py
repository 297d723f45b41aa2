"""From a recipe's text to its sequences: what is found, what is refused, and what a broken store does."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

torch = pytest.importorskip("torch")

from data_examples import (  # noqa: E402
    END,
    Remote,
    byte_tokenizer,
    corpus_of,
    documents,
    files_in,
    prepared,
    train_config,
    write_text,
)

from trainer.contract import ConfigError  # noqa: E402
from trainer.data import open_corpus  # noqa: E402
from trainer.local_cache import LocalDiskError  # noqa: E402
from trainer.python_docs import python_docs  # noqa: E402
from trainer.store import Store, local_store_url, open_store  # noqa: E402


def stream_of(path: Path) -> np.ndarray:
    return np.fromfile(path, "<u4")


# -- prepared shards


def test_sequences_are_cut_from_each_shard_and_the_rest_is_counted(out, tmp_path):
    corpus = open_corpus(train_config(f"file://{out}"), byte_tokenizer(), None, tmp_path / "cache")
    streams = [stream_of(path) for path in sorted((out / "train").glob("*.bin"))]
    expected = [stream[i:i + 8] for stream in streams for i in range(0, len(stream) - 7, 8)]
    assert len(streams) > 3
    assert corpus.num_sequences == len(expected)
    assert corpus.num_dropped_tokens == sum(len(stream) % 8 for stream in streams)
    numbers = np.random.default_rng(0).permutation(len(expected))
    assert np.array_equal(corpus.rows(numbers), np.array(expected)[numbers])
    assert corpus.rows(numbers[:0]).shape == (0, 8) and corpus.rows(numbers[:1]).dtype == np.uint32
    assert corpus.seen_ids.tolist() == sorted({int(token) for row in expected for token in row})
    assert corpus.seen_ids.dtype == np.int64


def test_held_out_sequences_are_of_held_out_documents_and_no_more_than_asked(out, tmp_path):
    streams = [stream_of(path) for path in sorted((out / "heldout").glob("*.bin"))]
    expected = np.array([stream[i:i + 8] for stream in streams for i in range(0, len(stream) - 7, 8)])
    corpus = corpus_of(out, tmp_path / "cache")
    assert 20 < len(corpus.heldout_NL) == min(256, len(expected))
    assert np.array_equal(corpus.heldout_NL, expected[:256]) and corpus.heldout_NL.dtype == np.uint32


def test_a_sample_is_spread_over_shards_and_the_same_each_time(tmp_path):
    prepared(write_text(tmp_path / "a.txt", documents(200)), tmp_path / "out")
    far = Remote(tmp_path / "out")
    corpus = corpus_of(tmp_path / "out", tmp_path / "cache", far, window_shards=2)
    sample = corpus.sample(40)
    assert sample.shape == (40, 8) and np.array_equal(sample, corpus.sample(40))
    assert len([key for key in far.log if key.startswith("train")]) == 4  # two windows
    everything = {tuple(row) for row in corpus.rows(np.arange(corpus.num_sequences)).tolist()}
    assert {tuple(row) for row in sample.tolist()} <= everything
    assert len(corpus.sample(10**6)) < corpus.num_sequences / 2


def test_the_fingerprint_names_tokens_length_and_window(tmp_path):
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "out")
    prepared(source, tmp_path / "again")
    prepared(source, tmp_path / "other", heldout=0.3)
    one = corpus_of(tmp_path / "out", tmp_path / "cache").fingerprint
    assert corpus_of(tmp_path / "again", tmp_path / "cache2").fingerprint == one
    others = {corpus_of(tmp_path / "other", tmp_path / "cache").fingerprint,
              corpus_of(tmp_path / "out", tmp_path / "cache", length=16).fingerprint,
              corpus_of(tmp_path / "out", tmp_path / "cache", window_shards=3).fingerprint, one}
    assert len(others) == 4


def test_a_run_finds_shards_by_name_in_its_own_store(tmp_path):
    prepared(write_text(tmp_path / "a.txt", documents(60)), tmp_path / "store" / "data" / "mine.v1")
    store = open_store(local_store_url(tmp_path / "store"))
    named = open_corpus(train_config("shards:mine.v1"), byte_tokenizer(), store, tmp_path / "cache")
    config = train_config(f"{store.address}/data/mine.v1")
    by_url = open_corpus(config, byte_tokenizer(), None, tmp_path / "cache2")
    assert named.fingerprint == by_url.fingerprint


# -- refused


def refused(config: Any, tmp_path: Path, tokenizer: Any = None, store: Store | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_corpus(config, tokenizer or byte_tokenizer(), store, tmp_path / "cache")
    assert caught.value.fix and caught.value.place
    return caught.value


def test_shards_of_another_tokenizer_are_refused_with_both_names(out, tmp_path):
    error = refused(train_config(f"file://{out}"), tmp_path, byte_tokenizer(lower=True))
    assert "shards are of tokenizer bytes (257 ids," in error.problem
    assert "token encoder's is bytes (257 ids," in error.problem
    assert f"--out {local_store_url(out)}-bytes --heldout 0.2; then add --set" in (error.fix or "")


def test_another_end_of_text_is_refused(out, tmp_path):
    changed = byte_tokenizer()
    changed.eos_token = "a"
    error = refused(train_config(f"file://{out}"), tmp_path, changed)
    assert f"end in id {END}, but the end of text of bytes is {changed.eos_token_id}" in error.problem


def test_text_that_is_not_prepared_is_told_from_text_that_is_not_finished(tmp_path):
    url = local_store_url(tmp_path / "out")
    error = refused(train_config(url), tmp_path)
    assert "no prepared text" in error.problem and "ldlm data prepare" in (error.fix or "")
    prepared(write_text(tmp_path / "a.txt", documents(60)), tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    assert "not finished" in refused(train_config(url), tmp_path).problem


@pytest.mark.parametrize(("source", "problem"), [
    ("shards:", "names no prepared text"), ("shards:../x", "names no prepared text"),
    ("shards:x", "there is none"),
    ("hf://owner/name", "not prepared shards"), ("none.txt", "No such file")])
def test_a_source_that_cannot_be_is_named_with_a_way_out(tmp_path, source, problem):
    store = None if problem == "there is none" else open_store(local_store_url(tmp_path / "store"))
    assert problem in refused(train_config(source), tmp_path, store=store).problem


@pytest.mark.parametrize(("number", "batch", "heldout"), [(1, 1, 0.3), (20, 10_000, 0.3), (60, 4, 1e-9)])
def test_too_little_text_is_refused_before_training(tmp_path, number, batch, heldout):
    config = train_config(write_text(tmp_path / "a.txt", documents(number)), batch=batch, heldout=heldout)
    for _ in range(2):
        error = refused(config, tmp_path)
        assert "too little text" in error.problem and "more documents" in (error.fix or "")


def test_a_text_that_the_tokenizer_does_not_know_is_refused(tmp_path):
    known = byte_tokenizer()
    known.backend_tokenizer.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("[^ ]"), "x")
    error = refused(train_config(write_text(tmp_path / "a.txt", ["word" * n for n in range(40, 100)])),
                    tmp_path, known)
    assert "% of the held-out tokens are 'x': the tokenizer does not know this text" in error.problem
    assert "train.token_encoder.name" in (error.fix or "")


def test_a_cache_that_cannot_hold_two_windows_is_refused(out, tmp_path):
    error = refused(train_config(f"file://{out}", cache_gib=1e-6), tmp_path)
    assert "two windows of 8 shards" in error.problem and "set train.data.cache_gib to 1" in (error.fix or "")


def test_a_damaged_manifest_is_refused(out, tmp_path):
    path = out / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])
    assert "is damaged" in refused(train_config(f"file://{out}"), tmp_path).problem


# -- text that is prepared on the spot


def test_a_text_file_is_prepared_once_and_then_found(tmp_path):
    config, cache = train_config(write_text(tmp_path / "a.txt", documents(60))), tmp_path / "cache"
    first = open_corpus(config, byte_tokenizer(), None, cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    second = open_corpus(config, byte_tokenizer(), None, cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == stamps
    assert first.fingerprint == second.fingerprint
    assert not list(cache.glob("shards/*"))  # what is on this disk is read where it is


@pytest.mark.parametrize(("pattern", "spoil"), [
    ("manifest.json", lambda data: data[:100]),
    ("manifest.json", lambda data: data.replace(b'"format": 2', b'"format": 1')),
    ("plan.json", lambda data: b""),
    ("parts/*.json", lambda data: data[:-10]),
    ("train/*.bin", lambda data: data[:-4]),
    ("train/*.bin", lambda data: bytes(len(data)))])
def test_what_a_torn_disk_or_an_earlier_version_left_in_the_cache_is_made_anew(tmp_path, pattern, spoil):
    config, cache = train_config(write_text(tmp_path / "a.txt", documents(60))), tmp_path / "cache"
    first = open_corpus(config, byte_tokenizer(), None, cache)
    whole = files_in(cache)
    for path in cache.glob(f"texts/*/{pattern}"):
        path.write_bytes(spoil(path.read_bytes()))
    assert files_in(cache) != whole
    again = open_corpus(config, byte_tokenizer(), None, cache)
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.rows(np.arange(9)), first.rows(np.arange(9)))
    assert files_in(cache) == whole


@pytest.mark.parametrize("spoil", [lambda data: data[:100], lambda data: bytes([*data[:-1], data[-1] ^ 1])])
def test_ids_that_a_disk_has_spoiled_are_found_anew(out, tmp_path, spoil):
    expected = corpus_of(out, tmp_path / "cache").seen_ids
    kept, = (tmp_path / "cache").glob("*-seen-*.npy")
    kept.write_bytes(spoil(kept.read_bytes()))
    assert np.array_equal(corpus_of(out, tmp_path / "cache").seen_ids, expected)


def test_ids_that_are_kept_are_not_looked_for_again(out, tmp_path):
    expected = corpus_of(out, tmp_path / "cache").seen_ids
    far = Remote(out)
    assert np.array_equal(corpus_of(out, tmp_path / "cache", far).seen_ids, expected)
    assert far.log and not [key for key in far.log if key.startswith("train")]


@pytest.mark.parametrize("source", ["python-docs", "file"])
def test_a_cache_that_cannot_be_written_is_named_and_not_tried_again(out, tmp_path, source):
    (tmp_path / "a file").write_text("in the way")
    config = train_config(f"file://{out}" if source == "file" else source, heldout=0.02)
    with pytest.raises(LocalDiskError) as caught:
        corpus = open_corpus(config, byte_tokenizer(), None, tmp_path / "a file")
        corpus.seen_ids  # noqa: B018
    assert "set XDG_CACHE_HOME to a folder on another disk" in (caught.value.fix or "")
    assert "--store" not in (caught.value.fix or "") and caught.value.node_exit_code == 78


def test_another_text_under_the_same_name_is_another_corpus(tmp_path):
    path = write_text(tmp_path / "a.txt", documents(60))
    config = train_config(path)
    before = open_corpus(config, byte_tokenizer(), None, tmp_path / "cache")
    write_text(path, [text.replace("second", "SECOND") for text in documents(60)])
    after = open_corpus(config, byte_tokenizer(), None, tmp_path / "cache")
    assert before.fingerprint != after.fingerprint
    lower = open_corpus(config, byte_tokenizer(lower=True), None, tmp_path / "cache")
    assert len({before.fingerprint, after.fingerprint, lower.fingerprint}) == 3


def test_bad_rows_of_a_text_are_told(tmp_path):
    (tmp_path / "a.txt").write_bytes("\n\n".join(documents(60)).encode() + b"\n\ncaf\xe9 au lait\n")
    said: list[str] = []
    config = train_config(tmp_path / "a.txt")
    for _ in range(2):
        open_corpus(config, byte_tokenizer(), None, tmp_path / "cache", said.append)
    assert len(said) == 1 and "1 of 61 rows are bad (not UTF-8: 1); the first is a.txt:181" in said[0]


def _open(folder: str) -> str:
    source = Path(folder) / "a.txt"
    return open_corpus(train_config(source), byte_tokenizer(), None, Path(folder) / "cache").fingerprint


def test_several_ranks_may_prepare_at_once(tmp_path):
    write_text(tmp_path / "a.txt", documents(2000))
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        fingerprints = pool.map(_open, [str(tmp_path)] * 3, chunksize=1)
    assert len(set(fingerprints)) == 1
    assert len([name for name in files_in(tmp_path / "cache") if name.endswith("manifest.json")]) == 1


def test_python_docs_need_no_file(tmp_path):
    config = train_config("python-docs", length=64, heldout=0.02)
    corpus = open_corpus(config, byte_tokenizer(), None, tmp_path / "cache")
    assert corpus.num_sequences * 64 > 1_500_000 and len(corpus.heldout_NL) == 256
    manifest = json.loads(next((tmp_path / "cache").rglob("manifest.json")).read_text())
    assert not manifest["rows"]["bad"]
    texts = list(python_docs())
    assert len(set(texts)) == len(texts) == manifest["rows"]["num_documents"]
