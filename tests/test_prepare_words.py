"""What `ldlm data prepare` tells whoever types it: rows that are bad, options that are wrong, progress."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from data_examples import command, documents, files_in, prepared, run, text_bytes, write_text  # noqa: E402

from trainer import prepare, prepare_command, prepare_progress, preparing  # noqa: E402
from trainer.claims import remove_prepared  # noqa: E402
from trainer.contract import StoreError  # noqa: E402
from trainer.shards import Part, RowCounts, find_manifest  # noqa: E402
from trainer.store import Store, local_store_url, open_store  # noqa: E402
from trainer.text_sources import open_source, uncut_files  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def test_repeated_documents_are_kept_however_the_text_is_cut(tmp_path):
    texts = [*documents(20), *documents(20), *documents(5)]
    source = write_text(tmp_path / "a.txt", texts)
    for unit_bytes in (300, 10**6):
        _, store = prepared(source, tmp_path / str(unit_bytes), unit_bytes=unit_bytes)
        manifest = find_manifest(store)
        assert manifest and manifest.rows.num_documents == 45
        # A byte is a token, and each document is closed by one.
        assert sum(map(manifest.num_tokens, ("train", "heldout"))) == sum(len(text) + 1 for text in texts)


def test_after_a_wrong_key_the_right_one_is_free_to_come(tmp_path, capsys, tokenizer):
    import pyarrow
    from pyarrow import parquet

    for number, rows in (("few", 40), ("many", 3_000)):
        table = pyarrow.table({"num": list(range(rows)), "body": documents(rows)})
        parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=1_000)
        arguments = command(tmp_path / f"{number}.parquet", tokenizer, "--text-key")
        code, _, err = run(capsys, *arguments, "num")
        which = "no row" if number == "few" else "none of the first 1,000 rows"
        assert code == 3 and f"{which} has text under the key `num`; keys with text are body" in err
        assert "such as --text-key body" in err
        assert not (tmp_path / "out" / "plan.json").exists()
        code, _, err = run(capsys, *arguments, "body")
        assert code == 0, err
        remove_prepared(open_store(local_store_url(tmp_path / "out")))


def test_a_wrong_key_is_seen_at_the_first_rows(tmp_path, capsys, monkeypatch, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"num": 1, "title": "t", "content": "words"}\n' * 2_000)
    monkeypatch.setattr(preparing, "prepare_all", lambda *_: pytest.fail("it was all read"))
    code, _, err = run(capsys, *command(tmp_path / "a.jsonl", tokenizer), "--text-key", "num")
    assert code == 3 and "keys with text are content, title" in err and "--text-key content" in err


@pytest.mark.parametrize(("name", "content", "fix"), [
    ("a.jsonl", rb'{"text": "cut \ud83d"}' + b"\n", "cut within a character"),
    ("a.txt", b"\x00\x01\xff\xfe\x9f random \x07 bytes", "these are no texts"),
    ("a.jsonl", b'{"text": 5}\n', "name a source whose rows hold text"),
])
def test_the_fix_of_bad_rows_is_one_that_helps(tmp_path, capsys, name, content, fix, tokenizer):
    (tmp_path / name).write_bytes(content)
    code, _, err = run(capsys, *command(tmp_path / name, tokenizer))
    assert code == 3 and fix in err.partition("fix:")[2] and "latin1" not in err
    assert not (tmp_path / "out" / "plan.json").exists()


def test_bad_rows_are_counted_and_named(tmp_path, capsys, tokenizer):
    lines = [json.dumps({"text": text}) for text in documents(40)]
    lines[7:7] = ["{", '{"text": null}', '{"body": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    code, out, _ = run(capsys, *command(tmp_path / "a.jsonl", tokenizer))
    assert code == 0
    assert "documents  40 of 43 rows" in out
    assert "bad rows   3 of 43 (no text key: 1, not JSON: 1, null: 1)\n" in out
    assert "a.jsonl:8: not JSON" in out and "a.jsonl:9: null" in out and "a.jsonl:10: no key `text`" in out
    code, out, err = run(capsys, *command(tmp_path / "a.jsonl", tokenizer, "--json"))
    summary = json.loads(out)
    assert summary["complete"] and summary["num_units_made"] == 0
    assert summary["rows"]["bad"] == {"no text key": 1, "not JSON": 1, "null": 1}
    assert summary["num_train_tokens"] + summary["num_heldout_tokens"] == sum(
        len(text.encode()) + 1 for text in documents(40))


@pytest.mark.parametrize(("content", "problem", "fix"), [
    ('{"body": "x", "id": 1}\n' * 2000, "none of the first 1,000 rows has the key `text`; keys with text are "
     "body", "--text-key body"),
    ('{"body": "x"}\n' * 3, "no row has the key `text`; keys with text are body", "--text-key body"),
    ("not json\n" * 3, "3 of 3 rows are bad (not JSON: 3); the first is a.jsonl:1", ".jsonl"),
    ("\n\n", "holds no text", "text in it"),
])
def test_when_no_row_is_good_the_error_says_why(tmp_path, capsys, content, problem, fix, tokenizer):
    (tmp_path / "a.jsonl").write_text(content)
    code, out, err = run(capsys, *command(tmp_path / "a.jsonl", tokenizer))
    assert code == 3 and out == ""
    assert problem in err and fix in err.partition("fix:")[2]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_text_in_another_encoding_is_named_with_a_way_out(tmp_path, capsys, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    code, _, err = run(capsys, *command(tmp_path / "a.txt", tokenizer))
    assert code == 3 and "a.txt:1: not UTF-8: byte 3 is 0xe9" in err and "iconv" in err


def test_an_empty_held_out_split_is_an_error_also_the_second_time(tmp_path, capsys, tokenizer):
    arguments = command(write_text(tmp_path / "a.txt", documents(5)), tokenizer)
    for _ in range(2):
        code, _, err = run(capsys, *arguments, "--heldout", "0.000001")
        assert code == 3 and "the heldout split is empty" in err and "larger --heldout" in err
        assert "bad rows" not in err
    assert run(capsys, *arguments, "--heldout", "0.4", "--restart")[0] == 0


def test_an_empty_split_shows_the_bad_rows_that_were_counted(tmp_path, capsys, tokenizer):
    lines = [json.dumps({"text": text}) for text in documents(5)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", "[1]"]))
    code, out, err = run(capsys, *command(tmp_path / "a.jsonl", tokenizer), "--heldout", "0.000001")
    assert code == 3 and out == "" and "the heldout split is empty" in err
    assert "documents  5 of 7 rows" in err and "bad rows   2 of 7 (" in err
    assert "a.jsonl:6: not JSON" in err and "a.jsonl:7: not an object" in err


def test_what_was_taken_and_what_was_passed_over_is_said_and_recorded(tmp_path, capsys, tokenizer):
    write_text(tmp_path / "corpus" / "a.txt", documents(30))
    write_text(tmp_path / "corpus" / "sub" / "b.txt", documents(30, first=30))
    write_text(tmp_path / "corpus" / "README.md", ["about the corpus"])
    code, _, err = run(capsys, *command(tmp_path / "corpus", tokenizer))
    assert code == 0
    assert err.splitlines()[:3] == [
        "taken: 2 files (2 .txt)", "passed over, by their names: 1 file (README.md)",
        "1 unit, 0 finished, 1 to do here"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["preparation"]["num_files"] == {".txt": 2}
    assert manifest["rows"]["num_documents"] == 60


def test_paths_may_be_typed_as_they_are(tmp_path, capsys, monkeypatch, tokenizer):
    write_text(tmp_path / "a.txt", documents(30))
    monkeypatch.chdir(tmp_path)
    for out in ("out-1", "./out-2", str(tmp_path / "out-3"), f"file://{tmp_path}/out-4"):
        code, said, _ = run(capsys, "a.txt", "--tokenizer", "bytes", "--out", out, "--heldout", "0.2")
        assert code == 0 and f"file://{tmp_path}/out-" in said
    found = [files_in(tmp_path / f"out-{number}") for number in range(1, 5)]
    assert all(files == found[0] for files in found)
    assert json.loads(found[0]["plan.json"])["source"] == str(tmp_path / "a.txt")


def test_another_tokenizers_name_is_refused_before_anything_is_fetched(tmp_path, capsys, monkeypatch):
    source = write_text(tmp_path / "a.txt", documents(30))
    prepared(source, tmp_path / "out", tokenizer=text_bytes("owner/one"))
    monkeypatch.setattr(prepare_command, "_load_tokenizer", lambda *_: pytest.fail("it was loaded"))
    code, _, err = run(capsys, str(tmp_path / "a.txt"), "--tokenizer", "owner/two", "--out",
                       str(tmp_path / "out"), "--heldout", "0.2")
    assert code == 3 and "its tokenizer is owner/one, not owner/two" in err
    assert "--tokenizer owner/one" in err and "--restart" in err


@pytest.mark.parametrize("name", ["owner/name", "no-such-name"])
def test_errors_of_the_tokenizer_name_the_option_that_was_typed(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    code, _, err = run(capsys, str(write_text(tmp_path / "a.txt", documents(5))), "--tokenizer", name,
                       "--out", str(tmp_path / "out"))
    assert code == 3 and "error: --tokenizer" in err and "token_encoder" not in err and "--store" not in err


@pytest.mark.parametrize(("change", "code", "words"), [
    (["--tokenizer", "/no/such/model"], 3, "--tokenizer: /no/such/model"),
    (["--out", "ftp://x"], 6, "--out: cannot open a store"), (["--out", "s3:bucket"], 6, "cannot open"),
    (["--shard", "3/3"], 2, "I/N"), (["--shard", "x"], 2, "I/N"), (["--heldout", "0.7"], 2, "0 and 0.5"),
    (["--processes", "0"], 2, "positive"), (["--restart", "--shard", "0/2"], 2, "without --shard"),
])
def test_a_wrong_option_is_told_before_anything_is_done(tmp_path, capsys, change, code, words, tokenizer):
    arguments = command(write_text(tmp_path / "a.txt", documents(5)), tokenizer)
    try:
        ended = prepare.main([*arguments, *change])
    except SystemExit as usage:
        ended = int(usage.code or 0)
    assert ended == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / "plan.json").exists()


def test_a_full_disk_is_a_clean_message_and_what_is_finished_stays(tmp_path, capsys, monkeypatch, tokenizer):
    source = write_text(tmp_path / "a.txt", documents(60))
    real = Store.put

    def put(self: Store, key: str, data: bytes, **more: bool) -> None:
        if key == "train/00003.bin":
            raise StoreError("cannot write: No space left on device", place=key, fix="free disk space")
        real(self, key, data, **more)

    monkeypatch.setattr(Store, "put", put)
    monkeypatch.setattr(prepare_command, "open_source", lambda spec, key: preparing_source(spec, key))
    code, out, err = run(capsys, *command(source, tokenizer, "--processes", "1"))
    assert code == 6 and "No space left" in err and "Traceback" not in err
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 3


def preparing_source(spec: str, key: str) -> object:
    return open_source(spec, key, 500)


def test_without_a_terminal_progress_is_plain_lines(tmp_path, capsys, monkeypatch, tokenizer):
    monkeypatch.setattr(prepare_progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(prepare_command, "open_source", lambda spec, key: preparing_source(spec, key))
    code, _, err = run(capsys, *command(write_text(tmp_path / "a.txt", documents(60)), tokenizer,
                                        "--processes", "1"))
    lines = err.splitlines()
    assert code == 0 and "\r" not in err
    assert lines[1].endswith("to do here") and "0 finished" in lines[1]
    assert "units" in lines[-1] and "tokens" in lines[-1] and "100%" in lines[-1] and "left" in lines[-1]


def a_dataset(folder: Path, num_files: int) -> str:
    for part in range(num_files):
        lines = [json.dumps({"text": text}) + "\n" for text in documents(30, 30 * part)]
        (folder / f"train-{part}.jsonl").write_text("".join(lines))
    return f"hf://{folder}:train"


def test_units_are_counted_where_no_size_is_known(tmp_path, capsys, monkeypatch):
    (tmp_path / "hf").mkdir()
    source = open_source(a_dataset(tmp_path / "hf", 2))
    assert [unit.weight for unit in source.units] == [0, 0]
    monkeypatch.setattr(prepare_progress, "_LINE_EVERY_S", 0.0)
    progress = prepare_progress.Progress()
    progress.begin(2, 0, {0: 0, 1: 0})
    progress.tell(0, 10_000, 2_000)
    progress.done(Part(preparation="", unit=0, shards=(), source_sha256="", lines=(), rows=RowCounts()))
    begun, first, second = capsys.readouterr().err.splitlines()
    assert begun == "2 units, 0 finished, 2 to do here"
    assert first.startswith("  0%, 0/2 units, 2 k tokens, ") and "left" not in first
    assert second.startswith(" 50%, 1/2 units, ") and second.endswith(" left")


def test_a_dataset_of_few_files_says_that_it_cannot_be_cut_and_leaves_nothing_behind(tmp_path, tokenizer):
    (tmp_path / "hf").mkdir()
    arguments = command(a_dataset(tmp_path / "hf", 2), tokenizer, "--processes", "3")
    done = subprocess.run([sys.executable, "-m", "trainer.prepare", *arguments], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    # A busy machine takes long enough to be told how far it is.
    assert [line for line in done.stderr.splitlines() if "/2 units, " not in line] == [
        "2 large files cannot be cut: each is read by one process from its start, also",
        "  after an interruption; 1 of 3 processes will have nothing to do",
        "2 units, 0 finished, 2 to do here"]


def test_a_compressed_file_is_told_to_be_one_unit_only_when_it_is_large(tmp_path):
    for num_bytes, told in ((10**6, 0), (10**8, 1)):
        with (tmp_path / "a.jsonl.gz").open("wb") as file:
            file.truncate(num_bytes)
        assert uncut_files(open_source(str(tmp_path / "a.jsonl.gz"))) == told
    assert uncut_files(open_source("python-docs")) == 0


def test_what_is_said_of_rows_fits_a_terminal(tmp_path, capsys, tokenizer):
    lines = [json.dumps({"text": text}) for text in documents(40)]
    lines += ["{", '{"text": null}', '{"body": 1}', "[]", '{"text": 5}', '{"text": " "}']
    lines.append('{"text": "\\ud83d"}')
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    code, out, err = run(capsys, *command(tmp_path / "a.jsonl", tokenizer))
    assert code == 0 and "no text key: 1" in " ".join(out.split())
    said = [line for line in (out + err).splitlines() if not line.startswith("file://")]
    assert max(map(len, said)) <= 80 and len(said) > 10
