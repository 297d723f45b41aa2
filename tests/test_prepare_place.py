"""`ldlm data prepare` and the folder it writes: whose files it deletes, and who else may write there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from data_examples import command, documents, files_in, prepared, run, text_bytes, write_text  # noqa: E402

from trainer import prepare_units, preparing  # noqa: E402
from trainer.claims import claim, remove_prepared  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.preparing import Share  # noqa: E402
from trainer.store import Store, local_store_url, open_store  # noqa: E402
from trainer.text_files import check_apart  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def write_rows(path: Path, key: str, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return path


# -- files of others


@pytest.mark.parametrize("more", [[], ["--restart"], ["--text-key", "content"]])
def test_a_source_in_the_place_for_its_shards_is_refused_and_stays(tmp_path, capsys, tokenizer, more):
    for name in ("a", "b"):
        write_rows(tmp_path / "c1" / "train" / f"{name}.jsonl", "content", documents(30))
    before = files_in(tmp_path / "c1")
    for source, out in (("c1", "c1"), ("c1", "c1/shards"), ("c1/train/a.jsonl", "c1"),
                        ("c1/**/*.jsonl", "c1")):
        arguments = command(tmp_path / source, tokenizer)
        arguments[arguments.index("--out") + 1] = str(tmp_path / out)
        code, _, err = run(capsys, *arguments, *more)
        assert code == 3 and "the place for" in err and "outside of the source" in err.partition("fix:")[2]
        assert files_in(tmp_path / "c1") == before


@pytest.mark.parametrize(("source", "out", "is_apart"), [
    ("s3://b/web", "s3://b/web", False), ("s3://b/web/**/*.json", "s3://b/web/x", False),
    ("s3://b/web/*.jsonl.gz", "s3://b/web/x", True), ("s3://b/web/a.jsonl", "s3://b", False),
    ("s3://b/web", "s3://b/web2", True), ("s3://b/web", "s3://c/web", True),
    ("gs://b/web", "s3://b/web", True), ("hf://b/web", "s3://b/web", True), ("python-docs", "file:///", True),
    ("s3://b/w?endpoint=http://one", "s3://b/w?endpoint=http://two", True),
    ("hf:///tmp:train", "file:///tmp/x", False)])
def test_a_place_is_apart_from_a_source_that_cannot_come_across_it(source, out, is_apart):
    if is_apart:
        check_apart(source, out)
        return
    with pytest.raises(ConfigError, match="the place for"):
        check_apart(source, out)


@pytest.mark.parametrize("ending", ["restart", "no document"])
def test_only_files_of_a_preparation_are_ever_deleted(tmp_path, capsys, tokenizer, ending):
    theirs = {"train/a.jsonl": "{}", "train/00000.txt": "x", "heldout/notes.bin": "y", "parts/x.json": "{}",
              "train/sub/00000.bin": "z", "README": "r"}
    source = write_text(tmp_path / "a.txt", documents(40))
    if ending == "restart":
        assert run(capsys, *command(source, tokenizer))[0] == 0
    for name, content in theirs.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    if ending == "restart":
        remove_prepared(open_store(local_store_url(tmp_path / "out")))
    else:
        code, _, err = run(capsys, *command(write_rows(tmp_path / "b.jsonl", "body", ["x"] * 9), tokenizer))
        assert code == 3 and "no row has the key `text`" in err
    assert {name: content.decode() for name, content in files_in(tmp_path / "out").items()} == theirs


@pytest.mark.parametrize("name", ["manifest.json", "train/00000.bin", "parts/00003.json"])
def test_a_place_with_files_that_would_be_written_over_is_refused(tmp_path, capsys, tokenizer, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("of somebody else")
    for more in ([], ["--restart"]):
        code, _, err = run(capsys, *command(write_text(tmp_path / "a.txt", documents(40)), tokenizer, *more))
        assert code == 3 and f"no preparation of this program has left: {name}" in err and "--out" in err
        assert files_in(tmp_path / "out") == {name: b"of somebody else"}


def test_a_plan_of_another_program_is_not_deleted(tmp_path, capsys, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json").write_text('{"recipe": "of a run"}')
    source = write_text(tmp_path / "a.txt", documents(40))
    code, _, err = run(capsys, *command(source, tokenizer, "--restart"))
    assert code == 3 and "plan.json is not of a prepared text" in err
    assert files_in(tmp_path / "out") == {"plan.json": b'{"recipe": "of a run"}'}


@pytest.mark.parametrize("torn", [b"", b'{\n "form', b'{\n "format": 1,\n "source": "x"}\n'])
def test_restart_clears_what_a_full_disk_or_an_earlier_version_has_left(tmp_path, capsys, tokenizer, torn):
    source = write_text(tmp_path / "a.txt", documents(40))
    assert run(capsys, *command(source, tokenizer))[0] == 0
    (tmp_path / "out" / "plan.json").write_bytes(torn)
    code, _, err = run(capsys, *command(source, tokenizer))
    assert code == 3 and "is damaged" in err and "--restart" in err
    assert run(capsys, *command(source, tokenizer, "--restart"))[0] == 0


@pytest.mark.parametrize(("change", "words"), [
    ({"--tokenizer": "nope"}, "--tokenizer"), ({"source": "nope.txt"}, "No such file"),
    ({"source": "key.jsonl"}, "none of the first 1,000 rows has the key `text`")])
def test_a_restart_that_cannot_succeed_deletes_nothing(tmp_path, capsys, tokenizer, monkeypatch, change,
                                                       words):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_rows(tmp_path / "key.jsonl", "body", documents(1_100))
    arguments = command(write_text(tmp_path / "a.txt", documents(40)), tokenizer)
    assert run(capsys, *arguments)[0] == 0
    before = files_in(tmp_path / "out")
    if "source" in change:
        arguments[0] = str(tmp_path / change["source"])
    else:
        arguments[arguments.index("--tokenizer") + 1] = change["--tokenizer"]
    code, _, err = run(capsys, *arguments, "--restart")
    assert code == 3 and words in err
    assert files_in(tmp_path / "out") == before


# -- one end, however many share the work


@pytest.fixture
def one_file_of_another_key(tmp_path: Path) -> Path:
    """A good file, and behind it one whose every unit is bad."""
    write_rows(tmp_path / "source" / "a.jsonl", "text", documents(40))
    write_rows(tmp_path / "source" / "c.jsonl", "content", documents(6_000))
    return tmp_path / "source"


UNIT_BYTES = 100_000  # above a thousand rows


def test_one_file_of_another_key_ends_alike_for_one_machine_and_for_four(tmp_path, one_file_of_another_key):
    result, _ = prepared(one_file_of_another_key, tmp_path / "one", unit_bytes=UNIT_BYTES)
    assert result.manifest and result.num_units >= 5
    assert result.manifest.rows.num_documents == 40
    assert result.manifest.rows.bad == {"no text key": 6_000}
    for index in (2, 3, 1, 0):
        prepared(one_file_of_another_key, tmp_path / "four", unit_bytes=UNIT_BYTES, share=Share(index, 4))
    assert files_in(tmp_path / "four") == files_in(tmp_path / "one")


DIES = """
import os, signal, sys
from trainer import prepare_units, text_sources
real = prepare_units.write_record
def dying(store, key, record, **more):
    real(store, key, record, **more)
    if key == "parts/00001.json":
        os.kill(os.getpid(), signal.SIGKILL)
prepare_units.write_record = dying
sys.path.insert(0, "tests")
from pathlib import Path
from data_examples import prepared
prepared(sys.argv[1], Path(sys.argv[2]), unit_bytes=int(sys.argv[3]))
"""


def test_a_text_with_a_file_of_another_key_goes_on_after_a_kill(tmp_path, one_file_of_another_key):
    arguments = [str(one_file_of_another_key), str(tmp_path / "killed"), str(UNIT_BYTES)]
    done = subprocess.run([sys.executable, "-c", DIES, *arguments], cwd=ROOT, capture_output=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    result, _ = prepared(one_file_of_another_key, tmp_path / "killed", unit_bytes=UNIT_BYTES)
    assert result.manifest and result.num_made == result.num_units - 2
    prepared(one_file_of_another_key, tmp_path / "whole", unit_bytes=UNIT_BYTES)
    assert files_in(tmp_path / "killed") == files_in(tmp_path / "whole")


def test_a_wrong_key_in_the_first_file_is_told_alike_by_every_machine(tmp_path):
    write_rows(tmp_path / "source" / "a.jsonl", "content", documents(3_000))
    write_rows(tmp_path / "source" / "c.jsonl", "text", documents(3_000))
    said = set()
    for index in range(4):
        with pytest.raises(ConfigError) as caught:
            prepared(tmp_path / "source", tmp_path / "out", unit_bytes=UNIT_BYTES, share=Share(index, 4))
        said.add(caught.value.problem)
    assert said == {"none of the first 1,000 rows has the key `text`; keys with text are content"}
    assert files_in(tmp_path / "out") == {}


# -- two at once


@pytest.mark.parametrize("key", ["train/00002.bin", "train/00002.idx", "parts/00002.json", "manifest.json"])
def test_whoever_is_begun_anew_writes_nothing_more(tmp_path, monkeypatch, key):
    """A second process with another split takes the place while the first works."""
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "second", heldout=0.4)
    real, last = Store.put, {"train/00002.bin": "parts/00001.json", "train/00002.idx": "train/00002.bin",
                             "parts/00002.json": "train/00002.idx"}.get(key)

    def put(self: Store, written: str, data: bytes, **more: bool) -> None:
        real(self, written, data, **more)
        if written == last:
            shutil.rmtree(tmp_path / "out")
            shutil.copytree(tmp_path / "second", tmp_path / "out")

    def taken(*_: object) -> None:
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(tmp_path / "second", tmp_path / "out")

    monkeypatch.setattr(Store, "put", put)
    if key == "manifest.json":
        whole = preparing.make_manifest
        monkeypatch.setattr(preparing, "make_manifest", lambda *parts: (taken(), whole(*parts))[1])
    with pytest.raises(ConfigError, match="something else is prepared there now") as caught:
        prepared(source, tmp_path / "out")
    assert "--out" in (caught.value.fix or "")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "second")


def test_a_deleted_place_is_not_filled_again(tmp_path, monkeypatch):
    source = write_text(tmp_path / "a.txt", documents(60))
    real = prepare_units.write_record

    def write(store: Store, key: str, *record: object) -> None:
        real(store, key, *record)
        if key == "parts/00001.json":
            remove_prepared(store)

    monkeypatch.setattr(prepare_units, "write_record", write)
    with pytest.raises(ConfigError, match="it was deleted meanwhile"):
        prepared(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_a_late_starter_leaves_the_manifest_that_another_commits(tmp_path, monkeypatch):
    """The other finishes between the late one's looks at the units and at the manifest."""
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    late = [tmp_path / "out" / name for name in ("manifest.json", "parts/00003.json")]
    for path in late:
        path.unlink()
    real, seen, deleted = Store.get, [], []

    def get(self: Store, key: str) -> bytes:
        if key == "manifest.json" or key.startswith("parts/"):
            seen.append(key)
            if len(seen) == 2:  # after the first of both looks
                for path in late:
                    shutil.copy(tmp_path / "whole" / path.relative_to(tmp_path / "out"), path)
        return real(self, key)

    monkeypatch.setattr(Store, "get", get)
    monkeypatch.setattr(Store, "delete", lambda self, keys: deleted.extend(keys))
    prepared(source, tmp_path / "out")
    assert deleted == []
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")


def test_two_that_begin_at_once_agree_on_one_plan(tmp_path):
    store = open_store(local_store_url(tmp_path))
    source = write_text(tmp_path / "a.txt", documents(40))
    prepared(source, tmp_path / "out")
    prepared_store = open_store(local_store_url(tmp_path / "out"))
    plan = preparing.find_plan(prepared_store)
    assert plan and claim(store, plan) == plan
    elsewhere = plan.model_copy(update={"source": "the/same/elsewhere"})
    assert claim(store, elsewhere) == plan
    assert text_bytes().identity == plan.tokenizer
