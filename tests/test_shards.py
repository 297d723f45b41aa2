"""The format of prepared text, read by numpy and json alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from data_examples import END, byte_tokenizer, documents, prepared, text_bytes, write_text  # noqa: E402

from trainer import shard_writer  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.shards import BadRow, Part, Preparation, RowCounts, find_manifest, make_manifest  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402


def texts_in(folder: Path, split: str) -> list[str]:
    """Documents of all shards of a split, cut at their index."""
    found = []
    for path in sorted((folder / split).glob("*.bin")):
        tokens, starts = np.fromfile(path, "<u4"), np.fromfile(path.with_suffix(".idx"), "<u8")
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            document = tokens[int(start):int(end)]
            assert document[-1] == END and END not in document[:-1]
            found.append(byte_tokenizer().decode(document[:-1]))
    return found


def test_documents_keep_their_borders_order_and_text(tmp_path):
    texts = documents(60)
    prepared(write_text(tmp_path / "a.txt", texts), tmp_path / "out")
    train, heldout = (texts_in(tmp_path / "out", split) for split in ("train", "heldout"))
    assert len(list((tmp_path / "out" / "train").glob("*.bin"))) > 3
    assert sorted(train + heldout) == sorted(texts)
    assert [text for text in texts if text in set(train)] == train
    assert 4 <= len(heldout) <= 25


def test_the_held_out_split_is_by_the_hash_of_the_content(tmp_path):
    prepared(write_text(tmp_path / "a.txt", documents(60)), tmp_path / "out", heldout=0.25)
    expected = {text for text in documents(60) if hashlib.sha256(text.encode()).digest()[0] < 64}
    assert set(texts_in(tmp_path / "out", "heldout")) == expected


def test_the_manifest_lists_every_shard_with_counts_and_hashes(out):
    manifest = json.loads((out / "manifest.json").read_text())
    names = {f"{path.parent.name}/{path.stem}" for path in (out).rglob("*.bin")}
    assert {shard["name"] for shard in manifest["shards"]} == names
    for shard in manifest["shards"]:
        tokens, index = ((out / f"{shard['name']}.{end}").read_bytes() for end in ("bin", "idx"))
        assert shard["num_tokens"] == len(tokens) / 4 == shard["num_bytes"] / 4
        assert shard["num_documents"] == len(index) / 8
        assert shard["sha256"] == hashlib.sha256(tokens).hexdigest()
        assert shard["index_sha256"] == hashlib.sha256(index).hexdigest()
        assert shard["split"] == shard["name"].split("/")[0]
    assert manifest["rows"]["num_documents"] == 60
    preparation = manifest["preparation"]
    assert preparation["tokenizer"] | {"digest": ""} == {
        "name": "bytes", "digest": "", "vocab_size": 257, "end_of_text_id": END}
    assert preparation["heldout_fraction"] == 0.2 and preparation["num_units"] == len(list(
        (out / "parts").iterdir()))


def test_a_unit_that_gives_much_continues_in_another_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "SHARD_TOKENS", 200)
    texts = documents(30) + ["y" * 500]
    prepared(write_text(tmp_path / "a.txt", texts), tmp_path / "out", unit_bytes=10**6)
    paths = list((tmp_path / "out" / "train").glob("*.bin"))
    assert {path.name for path in paths} >= {"00000.bin", "00000-1.bin", "00000-2.bin"}
    assert all(path.stat().st_size <= 800 or path.stat().st_size == 501 * 4 for path in paths)
    train, heldout = (texts_in(tmp_path / "out", split) for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(texts)


def test_bad_rows_of_all_units_are_added_up_and_named_by_their_line_in_the_file():
    preparation = Preparation(source="s", text_key="text", listing="", num_units=2, heldout_fraction=0.1,
                              tokenizer=text_bytes().identity)
    parts = []
    for unit, kind in enumerate(("empty", "not JSON")):
        rows = RowCounts(num_rows=7, num_documents=3, bad={"null": 2, kind: 1},
                         examples=(BadRow(file="b", line=4, problem="null"),))
        parts.append(Part(preparation="", unit=unit, shards=(), source_sha256="",
                          lines=(("a", 10), ("b", 5)), rows=rows))
    rows = make_manifest(preparation, parts).rows
    assert (rows.num_rows, rows.num_documents) == (14, 6)
    assert rows.bad == {"empty": 1, "not JSON": 1, "null": 4} and rows.num_bad == 6
    assert [str(example) for example in rows.examples] == ["b:4: null", "b:9: null"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe"])
def test_a_damaged_manifest_is_told_from_a_missing_one(tmp_path, content):
    store = open_store(local_store_url(tmp_path))
    assert find_manifest(store) is None
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        find_manifest(store)
    assert "manifest.json" in (caught.value.place or "") and "--restart" in (caught.value.fix or "")


def test_a_tokenizer_is_known_by_what_it_does_and_not_by_its_name():
    assert text_bytes("one").identity.digest == text_bytes("two").identity.digest
    assert text_bytes(lower=True).identity.digest != text_bytes().identity.digest
    used = byte_tokenizer()
    used.pad_token = used.eos_token
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)
    from trainer.text_tokenizer import text_tokenizer

    assert text_tokenizer(used, "used").identity.digest == text_bytes().identity.digest
    assert [len(ids) for ids in text_tokenizer(used, "used").encode(["a", "bcd"])] == [1, 3]


def test_what_looks_like_the_end_of_text_in_a_text_is_text():
    ids = text_bytes().encode(["a<end>b"])[0]
    assert END not in ids and byte_tokenizer().decode(ids) == "a<end>b"


def test_a_tokenizer_without_an_end_of_text_is_refused():
    import tokenizers
    import transformers

    from trainer.text_tokenizer import text_tokenizer

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    with pytest.raises(ConfigError, match="neither an end-of-text"):
        text_tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=backend), "x")
    with pytest.raises(ConfigError, match="`tokenizers` library"):
        text_tokenizer(object(), "x")
