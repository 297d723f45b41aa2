"""Text in a bucket, read by ranges from a real S3 server."""

import json
import pickle
from collections.abc import Iterator

import pytest

pytest.importorskip("moto")

from tests.s3_server import KEYS, S3Server, running_s3_server  # noqa: E402
from trainer.contract import ConfigError, StoreError  # noqa: E402
from trainer.store import open_store  # noqa: E402
from trainer.text_sources import open_source  # noqa: E402

TEXTS = [f"document {i}\nof two lines" for i in range(40)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3_server() as started:
        yield started


@pytest.fixture(autouse=True)
def _bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    server.make_bucket("corpora")
    store = open_store(server.url("corpora", "c"))
    store.put("a.txt", "\n\n".join(TEXTS[:30]).encode())
    store.put("deep/b.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS[30:]).encode())
    store.put("deep/c.bin", b"no text")


@pytest.mark.parametrize(("path", "expected"), [
    ("c", TEXTS), ("c/a.txt", TEXTS[:30]), ("c/**/*.jsonl", TEXTS[30:]), ("c/*.txt", TEXTS[:30])])
def test_files_of_a_bucket_are_read_like_local_ones(server, path, expected):
    source = pickle.loads(pickle.dumps(open_source(server.url("corpora", path), unit_bytes=100)))
    assert len(source.units) > 1
    pieces = [piece for unit in source.units for piece in unit.pieces]
    assert [row.text for piece in pieces for row in source.rows(piece, {})] == expected
    assert list(source.ignored) == (["deep/c.bin"] if path == "c" else [])


@pytest.mark.parametrize(("path", "expected"), [
    ("c/d#1/e#2.txt", ["hash"]), ("c/d#1", ["hash"]), ("c/?.txt", TEXTS[:30]), ("c/d#1/e?2.txt", ["hash"])])
def test_a_key_may_have_a_hash_and_a_glob_a_question_mark(server, path, expected):
    open_store(server.url("corpora", "c")).put("d#1/e#2.txt", b"hash")
    source = open_source(server.url("corpora", path))
    pieces = [piece for unit in source.units for piece in unit.pieces]
    assert [row.text for piece in pieces for row in source.rows(piece, {})] == expected
    open_store(server.url("corpora", "c")).delete(["d#1/e#2.txt"])


def test_an_object_that_was_written_again_is_another_source(server):
    before = open_source(server.url("corpora", "c")).listing
    assert open_source(server.url("corpora", "c")).listing == before
    open_store(server.url("corpora", "c")).put("a.txt", "\n\n".join(TEXTS[:30]).upper().encode())
    assert open_source(server.url("corpora", "c")).listing != before


@pytest.mark.parametrize(("bucket", "path", "kind", "problem"), [
    ("corpora", "nothing", ConfigError, "0 files match"),
    ("corpora", "c/*.pdf", ConfigError, "0 files match"),
    ("corpora", "c/none.txt", ConfigError, "no such object"),
    ("none", "c", StoreError, "bucket does not exist")])
def test_text_that_is_not_in_the_bucket_is_an_error_with_its_place(server, bucket, path, kind, problem):
    with pytest.raises(kind, match=problem) as caught:
        open_source(server.url(bucket, path))
    assert bucket in (caught.value.place or "")
