"""From text to the batch of a step."""

import collections
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.data import batch_indices, load_documents, prepare  # noqa: E402


class _Bytes:
    """A tokenizer: id of a byte is the byte, 256 ends a text."""

    eos_token_id = 256
    sep_token_id = None

    def __call__(self, documents: list[str], **_options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(document.encode()) for document in documents]}

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(257)}


def _config(source: Path | str, length: int = 8, heldout: float = 0.3, batch: int = 4) -> TrainConfig:
    return TrainConfig.model_validate({
        "steps": 1, "micro_batch_size": 1, "global_batch_size": batch, "checkpoint": {"every_steps": 1},
        "data": {"source": str(source), "sequence_length": length, "heldout_fraction": heldout},
        "token_encoder": {"name": "none"}})


def _text(folder: Path, num_documents: int = 60) -> Path:
    path = folder / "text.txt"
    path.write_text("\n\n".join(f"document {i:03}\nhas two lines" for i in range(num_documents)))
    return path


def test_documents_of_a_text_file_are_separated_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\nstill one\r\n\r\n\r\nzwölf\n\none more\n\nzwölf\n".encode())
    assert load_documents(str(path)) == ["one\nstill one", "zwölf", "one more"]


def test_python_docs_are_megabytes_of_prose_in_a_fixed_order() -> None:
    documents = load_documents("python-docs")
    assert 1.5e6 < sum(map(len, documents)) < 4e6
    assert min(map(len, documents)) > 80
    assert len(set(documents)) == len(documents)
    assert load_documents("python-docs") == documents


@pytest.mark.parametrize(("content", "problem", "fix"), [
    (None, "No such file", "python-docs"), (b"caf\xe9 au lait", "byte 3 is 0xe9", "iconv"),
    (b" \n\n ", "no text", "text in it")])
def test_unusable_text_is_named_with_a_way_out(tmp_path: Path, content: bytes | None, problem: str,
                                               fix: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_documents(str(path))
    assert problem in caught.value.problem
    assert caught.value.place == str(path)
    assert fix in (caught.value.fix or "")


@pytest.mark.parametrize(("num_documents", "batch"), [(1, 1), (20, 10_000)])
def test_too_little_text_is_refused_before_training(tmp_path: Path, num_documents: int, batch: int) -> None:
    path = _text(tmp_path, num_documents)
    with pytest.raises(ConfigError, match="too little text") as caught:
        prepare(_config(path, batch=batch), _Bytes(), tmp_path / "cache")
    assert "more documents" in (caught.value.fix or "")
    with pytest.raises(ConfigError, match="too little text"):
        prepare(_config(path, batch=batch), _Bytes(), tmp_path / "cache")


def test_blocks_hold_the_documents_end_to_end(tmp_path: Path) -> None:
    corpus = prepare(_config(_text(tmp_path)), _Bytes(), tmp_path / "cache")
    assert corpus.train_NL.dtype == np.uint32 and corpus.train_NL.shape[1] == 8
    stream = corpus.train_NL.ravel().tolist()
    first = stream[:stream.index(256)]
    assert bytes(first).decode().startswith("document ")
    assert stream[len(first) + 1:len(first) + 10] == list(b"document ")
    assert corpus.seen_ids.tolist() == sorted(set(stream))


def _documents_in(blocks_NL: np.ndarray) -> set[str]:
    text = bytes(255 if token == 256 else token for token in blocks_NL.ravel().tolist())
    return {part.decode() for part in text.split(b"\xff")[:-1]}


def test_split_follows_content_and_not_position(tmp_path: Path) -> None:
    path = _text(tmp_path)
    before = prepare(_config(path), _Bytes(), tmp_path / "cache")
    path.write_text("\n\n".join(reversed([*path.read_text().split("\n\n"), "a new document " * 3])))
    after = prepare(_config(path), _Bytes(), tmp_path / "cache")
    old, new = _documents_in(before.heldout_NL), _documents_in(after.heldout_NL)
    assert before.fingerprint != after.fingerprint
    assert not _documents_in(before.train_NL) & old
    # The dropped tail may cost one document on either side.
    assert len(old ^ new - {"a new document " * 3}) <= 2
    assert not old & _documents_in(after.train_NL)


def test_second_preparation_reads_the_cache(tmp_path: Path) -> None:
    config, cache = _config(_text(tmp_path)), tmp_path / "cache"
    first = prepare(config, _Bytes(), cache)
    stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    second = prepare(config, _Bytes(), cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == stamps
    assert first.fingerprint == second.fingerprint
    assert isinstance(second.train_NL, np.memmap)
    assert np.array_equal(first.train_NL, second.train_NL)


def _prepare(folder: str) -> str:
    return prepare(_config(Path(folder) / "text.txt"), _Bytes(), Path(folder) / "cache").fingerprint


def test_several_processes_may_prepare_at_once(tmp_path: Path) -> None:
    _text(tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        fingerprints = pool.map(_prepare, [str(tmp_path)] * 4)
    assert len(set(fingerprints)) == 1
    assert not list((tmp_path / "cache").glob("*.part"))


def test_every_epoch_visits_each_sequence_once_across_batch_borders() -> None:
    order = np.concatenate([batch_indices(10, 4, seed=1, step=step) for step in range(15)])
    for epoch in range(6):
        assert sorted(order[epoch * 10:(epoch + 1) * 10]) == list(range(10))
    assert order.dtype == np.int64
    assert len({tuple(order[epoch * 10:(epoch + 1) * 10]) for epoch in range(6)}) == 6


def test_batch_is_a_pure_function_of_seed_and_step() -> None:
    late = batch_indices(100, 8, seed=3, step=57)
    batch_indices(7, 2, seed=0, step=0)
    assert np.array_equal(late, batch_indices(100, 8, seed=3, step=57))
    assert not np.array_equal(late, batch_indices(100, 8, seed=4, step=57))
    # seeds and epochs are not added up
    assert not np.array_equal(batch_indices(8, 8, seed=0, step=1), batch_indices(8, 8, seed=1, step=0))


def test_batch_larger_than_the_text_spans_epochs() -> None:
    counts = collections.Counter(batch_indices(3, 9, seed=0, step=0).tolist())
    assert counts == {0: 3, 1: 3, 2: 3}
