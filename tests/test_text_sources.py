"""Texts, JSON Lines, Parquet and datasets become the same documents, however they are cut."""

import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import pyarrow  # noqa: E402
from data_examples import documents, write_text  # noqa: E402
from pyarrow import parquet  # noqa: E402

from trainer import file_rows, text_files  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.file_rows import Row  # noqa: E402
from trainer.text_sources import Source, open_source  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def rows_of(source: Source) -> list[tuple[str, int, Row]]:
    """All rows with their file and their line in it, put together from the pieces of all units."""
    found, lines_before = [], Counter()
    for unit in source.units:
        for piece in unit.pieces:
            lines: dict[str, int] = {}
            before = lines_before[piece.file]
            found += [(piece.file, before + row.line, row) for row in source.rows(piece, lines)]
            lines_before.update(lines)
    return found


def texts_of(source: Source) -> list[str]:
    return [row.text for _, _, row in rows_of(source) if row.text is not None]


def problems_of(source: Source) -> list[tuple[str, int, str]]:
    return [(file, line, row.problem) for file, line, row in rows_of(source) if row.text is None]


LINES = [b"\n", b"\r\n", b" \t\n", b"a\n", b"bb b\r\n", "zwölf\n".encode(), b"x" * 30 + b"\n"]


@given(st.lists(st.sampled_from(LINES), max_size=60), st.booleans(), st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_a_text_gives_each_document_once_wherever_it_is_cut(tmp_path_factory, lines, ends, unit_bytes):
    content = b"".join(lines).rstrip(b"\n" if ends else b"") + b"end"
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(content)
    text = content.decode().replace("\r\n", "\n")
    expected = [part.strip() for part in re.split(r"\n(?:[ \t]*\n)+", "\n" + text) if part.strip()]
    source = open_source(str(path), unit_bytes=unit_bytes)
    assert texts_of(source) == expected
    physical = content.split(b"\n")
    for _, line, row in rows_of(source):
        assert physical[line - 1].decode().strip() == row.text.split("\n")[0].strip()


@given(st.lists(st.one_of(st.text(max_size=20), st.none(), st.integers()), max_size=40), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_json_lines_give_each_row_once_wherever_they_are_cut(tmp_path_factory, values, unit_bytes):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values) + "{}")
    found = rows_of(open_source(str(path), unit_bytes=unit_bytes))
    assert [line for _, line, _ in found] == list(range(1, len(values) + 2))
    good = [value for value in values if isinstance(value, str) and value.strip()]
    assert [row.text for _, _, row in found if row.text is not None] == good
    assert found[-1][2].problem == "no text key"


def test_documents_of_a_text_file_are_separated_by_blank_lines(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes("\ufeffone\r\nstill one\r\n\r\n\r\nzwölf\n\none more\n \t\nlast".encode())
    assert texts_of(open_source(str(path))) == ["one\nstill one", "zwölf", "one more", "last"]


BAD_LINES = [b'{"text": "good"}', b'{"text": ', b"[1]", b'{"body": "x"}', b'{"text": null}', b'{"text": 5}',
             b'{"text": "caf\xe9"}', b'{"text": "  "}', rb'{"text": "\ud800"}', b"", b'{"text": "also good"}']
BAD_KINDS = [(2, "not JSON"), (3, "not an object"), (4, "no text key"), (5, "null"), (6, "not text"),
             (7, "not UTF-8"), (8, "empty"), (9, "half a character")]


@pytest.mark.parametrize("unit_bytes", [1, 40, 10_000])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "ndjson.zst"])
def test_each_bad_row_is_told_by_kind_file_and_line(tmp_path, suffix, unit_bytes):
    content = b"\n".join(BAD_LINES)
    pack = {"gz": gzip.compress, "zst": pyarrow.Codec("zstd").compress}.get(suffix.rpartition(".")[2], bytes)
    (tmp_path / f"a.{suffix}").write_bytes(bytes(pack(content)))
    source = open_source(str(tmp_path), unit_bytes=unit_bytes)
    assert texts_of(source) == ["good", "also good"]
    assert problems_of(source) == [(f"a.{suffix}", line, kind) for line, kind in BAD_KINDS]


def test_a_row_without_the_key_tells_its_keys_that_hold_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "id": 1, "lang": "en"}\n')
    ((_, _, row),) = rows_of(open_source(str(tmp_path / "a.jsonl")))
    assert row.keys == ("body", "lang")
    assert texts_of(open_source(str(tmp_path / "a.jsonl"), "body")) == ["x"]


def test_a_row_that_is_too_long_is_bad_and_the_next_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(file_rows, "MAX_ROW_BYTES", 50)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "y" * 500}) + '\n{"text": "short"}\n')
    (tmp_path / "b.txt").write_text("one\n\n" + "line of ten\n" * 9 + "\nlast\n\n" + "z" * 400 + "\n\nend")
    source = open_source(str(tmp_path), unit_bytes=10_000)
    assert texts_of(source) == ["short", "one", "last", "end"]
    assert problems_of(source) == [(file, line, "too long")
                                   for file, line in (("a.jsonl", 1), ("b.txt", 3), ("b.txt", 15))]


def test_a_compressed_file_that_breaks_off_gives_what_it_has_and_says_so(tmp_path):
    whole = gzip.compress(b"".join(json.dumps({"text": f"row {i} {i * 7919 % 1000}"}).encode() + b"\n"
                                   for i in range(2000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:len(whole) // 2])
    source = open_source(str(tmp_path / "a.jsonl.gz"))
    texts = texts_of(source)
    assert 100 < len(texts) < 2000 and texts[50] == "row 50 950"
    assert problems_of(source) == [("a.jsonl.gz", len(texts) + 1, "damaged file")]


@pytest.mark.parametrize("num_rows", [500, 20_000])
def test_a_zst_file_that_breaks_off_gives_what_can_be_decoded(tmp_path, num_rows):
    """By default the `zstd` program ends a file with four bytes of checksum: the rows are all before it."""
    zstd = shutil.which("zstd")
    if zstd is None:
        pytest.skip("there is no zstd program")
    content = b"".join(json.dumps({"text": f"row {i} {i * 7919 % 1000}"}).encode() + b"\n"
                       for i in range(num_rows))
    whole = subprocess.run([zstd, "-c"], input=content, capture_output=True, check=True).stdout
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-3])
    source = open_source(str(tmp_path / "a.jsonl.zst"))
    texts = texts_of(source)
    assert len(texts) >= num_rows - 3  # rows are of 22 bytes and more
    assert texts == [f"row {i} {i * 7919 % 1000}" for i in range(len(texts))]
    assert problems_of(source) == [("a.jsonl.zst", len(texts) + 1, "damaged file")]
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    assert len(texts_of(open_source(str(tmp_path / "a.jsonl.zst")))) == num_rows


def write_parquet(path: Path, values: list[Any], kind: Any = None, group: int = 3) -> Path:
    table = pyarrow.table({"id": list(range(len(values))), "text": pyarrow.array(values, kind)})
    parquet.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(),
                                  pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
@pytest.mark.parametrize("unit_bytes", [1, 90, 10_000])
def test_parquet_rows_are_read_by_groups(tmp_path, kind, unit_bytes):
    values = ["one", None, "zwölf", " ", *(f"row {i}" for i in range(20))]
    write_parquet(tmp_path / "a.parquet", values, kind)
    source = open_source(str(tmp_path / "*.parquet"), unit_bytes=unit_bytes)
    assert (len(source.units) == 1) == (unit_bytes == 10_000)
    assert texts_of(source) == ["one", "zwölf", *(f"row {i}" for i in range(20))]
    assert problems_of(source) == [("a.parquet", 2, "null"), ("a.parquet", 4, "empty")]


def test_bad_values_and_missing_columns_of_parquet_are_told(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"good", b"caf\xe9"], pyarrow.binary())
    write_parquet(tmp_path / "b.parquet", [1, 2])
    assert problems_of(open_source(str(tmp_path))) == [
        ("a.parquet", 2, "not UTF-8"), ("b.parquet", 1, "not text"), ("b.parquet", 2, "not text")]
    rows = rows_of(open_source(str(tmp_path / "a.parquet"), "body"))
    assert [(row.problem, row.keys) for _, _, row in rows] == [("no text key", ())] * 2  # bytes may be images
    write_parquet(tmp_path / "c.parquet", ["one", "two"])
    for key, problem in (("body", "no text key"), ("id", "not text")):
        rows = rows_of(open_source(str(tmp_path / "c.parquet"), key))
        assert [(row.problem, row.keys) for _, _, row in rows] == [(problem, ("text",))] * 2


def test_another_key_cuts_a_source_no_otherwise(tmp_path):
    write_parquet(tmp_path / "a.parquet", [f"row {i}" * (i + 1) for i in range(40)])
    first, second = (open_source(str(tmp_path / "a.parquet"), key, unit_bytes=200) for key in ("id", "text"))
    assert len(first.units) > 1 and (first.listing, first.units) == (second.listing, second.units)


@pytest.mark.parametrize("unit_bytes", [1, 10**9])
def test_a_damaged_page_of_parquet_costs_the_rows_of_its_group_and_each_is_counted(tmp_path, unit_bytes):
    for name in "abc":
        write_parquet(tmp_path / f"{name}.parquet", [f"{name} row {i:04}" for i in range(1000)], group=100)
    path = tmp_path / "b.parquet"
    column = parquet.ParquetFile(path).metadata.row_group(3).column(1)
    content = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    content[first:first + 20] = bytes(byte ^ 0xFF for byte in content[first:first + 20])
    path.write_bytes(content)
    source = open_source(str(tmp_path), unit_bytes=unit_bytes)
    assert problems_of(source) == [("b.parquet", line, "damaged file") for line in range(301, 401)]
    assert texts_of(source) == [f"{name} row {i:04}" for name in "abc" for i in range(1000)
                                if name != "b" or not 300 <= i < 400]


def test_a_changed_letter_is_seen_where_pages_of_parquet_have_checksums(tmp_path):
    table = pyarrow.table({"text": [f"row {i:04}" for i in range(20)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none",
                        use_dictionary=False, write_page_checksum=True)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"row 0014", b"raw 0014", 1))
    source = open_source(str(tmp_path / "a.parquet"))
    assert texts_of(source) == [f"row {i:04}" for i in range(10)]
    assert problems_of(source) == [("a.parquet", line, "damaged file") for line in range(11, 21)]


def test_a_file_that_is_no_parquet_is_named_at_once(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ConfigError, match="is not a Parquet file") as caught:
        open_source(str(tmp_path))
    assert "a.parquet" in (caught.value.place or "")


def test_a_folder_gives_its_text_files_in_order_and_names_the_others(tmp_path):
    write_text(tmp_path / "b.txt", ["b1", "b2"])
    write_text(tmp_path / "sub" / "a.txt", ["sub"])
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / "picture.png").write_bytes(b"1")
    (tmp_path / "empty.txt").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert texts_of(source) == ["a", "b1", "b2", "sub"]
    assert source.ignored == ("picture.png",)
    assert source.num_files == {".jsonl": 1, ".txt": 2}
    assert len(source.units) == 1


def test_what_tells_about_a_corpus_is_text_only_where_its_ending_is_named(tmp_path):
    write_text(tmp_path / "b.txt", ["b"])
    for name in ("README.md", "sub/deep.md", "info.text"):
        write_text(tmp_path / name, [name])
    (tmp_path / "dataset_infos.json").write_text('{"text": "json"}')
    passed_over = ("README.md", "dataset_infos.json", "info.text", "sub/deep.md")
    for spec in ("", "/**", "/**/*"):
        source = open_source(f"{tmp_path}{spec}")
        assert (texts_of(source), source.ignored) == (["b"], passed_over)
    assert texts_of(open_source(f"{tmp_path}/*")) == ["b"]
    assert texts_of(open_source(f"{tmp_path}/**/*.md")) == ["README.md", "sub/deep.md"]
    assert texts_of(open_source(f"{tmp_path}/README.md")) == ["README.md"]
    assert texts_of(open_source(f"{tmp_path}/*.json")) == ["json"]


@pytest.mark.parametrize(("megabytes", "least", "most"), [(1, 1, 1), (60, 8, 20), (2_000, 200, 260)])
def test_a_source_is_cut_so_that_several_can_work_on_it(tmp_path, megabytes, least, most):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(megabytes * 10**6)  # no bytes on the disk: only the size counts here
    assert least <= len(open_source(str(path)).units) <= most


@pytest.mark.parametrize(("pattern", "expected"), [
    ("*.txt", ["a"]), ("**/*.txt", ["a", "c", "d"]), ("sub/*.txt", ["c"]), ("?.txt", ["a"]),
    ("[b-z]*/**", ["c", "d"]),
])
def test_a_glob_crosses_folders_only_with_two_stars(tmp_path, pattern, expected):
    for name in ("a.txt", "sub/c.txt", "sub/deep/d.txt"):
        write_text(tmp_path / name, [Path(name).stem])
    assert texts_of(open_source(f"{tmp_path}/{pattern}")) == expected
    assert texts_of(open_source(f"file://{tmp_path}/{pattern}")) == expected


@pytest.mark.parametrize(("spec", "expected"), [
    ("s3://b/shard-?.jsonl", ("s3://b", None, "shard-?.jsonl")),
    ("s3://b/x/shard-?.jsonl?endpoint=http://h:1&region=r",
     ("s3://b/x?endpoint=http://h:1&region=r", None, "shard-?.jsonl")),
    ("s3://b/x/c#1.jsonl?region=r", ("s3://b/x?region=r", "c#1.jsonl", "")),
    ("s3://b/x#1/c.jsonl", ("s3://b/x%231", "c.jsonl", "")), ("gs://b", ("gs://b", None, "**")),
    ("az://a/c/w/*.txt", ("az://a/c/w", None, "*.txt")),
    ("s3://b?region=r", ("s3://b?region=r", None, "**"))])
def test_a_url_may_have_any_character_of_a_glob_or_a_name(spec, expected):
    assert text_files._split_url(spec) == expected


@pytest.mark.parametrize("name", ["a b#c%20é.txt", "q?[z]*.txt", "%41.txt", "no suffix"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = write_text(tmp_path / "one" / name, ["hello"])
    assert texts_of(open_source(str(path))) == ["hello"]
    if name != "no suffix":
        assert texts_of(open_source(str(path.parent))) == ["hello"]


@pytest.mark.parametrize(("name", "problem"), [
    ("none.txt", "No such file"), ("none/*.txt", "No such file"), ("*.txt", "0 files match"), ("", "none is"),
    ("hf://nothing", "names no dataset"), ("hf:///nowhere/at/all", "no such folder"),
])
def test_a_source_that_is_not_there_is_an_error_with_a_way_out(tmp_path, name, problem):
    (tmp_path / "picture.png").write_bytes(b"1")
    with pytest.raises(ConfigError) as caught:
        open_source(name if "://" in name else f"{tmp_path}/{name}")
    assert problem in caught.value.problem and caught.value.fix


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_dataset_is_streamed_file_by_file(tmp_path, suffix):
    texts = documents(12)
    for part in range(3):
        values = texts[part * 4:part * 4 + 4]
        if suffix == "parquet":
            write_parquet(tmp_path / f"train-{part}.parquet", values)
        else:
            lines = [json.dumps({"text": value}) + "\n" for value in values]
            (tmp_path / f"train-{part}.jsonl").write_text("".join(lines))
    source = pickle.loads(pickle.dumps(open_source(f"hf://{tmp_path}:train")))
    assert len(source.units) == 3
    assert texts_of(source) == texts
    assert {row.problem for _, _, row in rows_of(open_source(f"hf://{tmp_path}", "body"))} == {"no text key"}
    with pytest.raises(ConfigError, match="cannot be read"):
        open_source(f"hf://{tmp_path}:validation")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_is_no_fault_of_the_name(tmp_path, offline):
    code = ("from trainer.text_sources import open_source\nfrom trainer.contract import StoreError\n"
            "try:\n    open_source('hf://owner/name')\nexcept StoreError as error:\n    print(error)")
    env = os.environ | {"HF_HUB_OFFLINE": str(int(offline)), "HF_ENDPOINT": "http://127.0.0.1:9",
                        "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("hf://owner/name: the Hub cannot be reached"), done.stderr


def test_python_docs_are_megabytes_of_prose():
    texts = texts_of(open_source("python-docs"))
    assert 1.5e6 < sum(map(len, texts)) < 4e6
    assert min(map(len, texts)) > 80


def test_a_listing_changes_with_content_and_not_with_the_clock(tmp_path):
    path = write_text(tmp_path / "a.txt", ["one", "two"])
    before = open_source(str(path)).listing
    path.touch()
    assert open_source(str(path)).listing == before
    write_text(path, ["one", "owt"])
    assert open_source(str(path)).listing != before
