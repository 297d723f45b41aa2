"""`ldlm data prepare`: the same bytes however many work and whatever interrupts them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from data_examples import command, documents, files_in, prepared, run, text_bytes, write_text  # noqa: E402
from dying_worker import die  # noqa: E402

from trainer import prepare_units, preparing, text_sources  # noqa: E402
from trainer.contract import ConfigError, StoreError  # noqa: E402
from trainer.preparing import Share  # noqa: E402
from trainer.shards import find_manifest  # noqa: E402
from trainer.store import local_store_url, open_store  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def test_any_number_of_processes_and_machines_gives_the_same_bytes(tmp_path):
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "one")
    expected = files_in(tmp_path / "one")
    assert len([name for name in expected if name.startswith("parts/")]) > 4
    prepared(source, tmp_path / "processes", processes=2)
    assert files_in(tmp_path / "processes") == expected
    for count in (2, 3, 20):
        out = tmp_path / f"machines-{count}"
        for index in reversed(range(count)):
            assert find_manifest(open_store(local_store_url(out))) is None
            result, _ = prepared(source, out, share=Share(index, count))
        assert result.manifest and files_in(out) == expected


def test_whoever_finishes_last_commits_also_when_two_do_at_once(tmp_path):
    source = write_text(tmp_path / "a.txt", documents(60))
    _, store = prepared(source, tmp_path / "out")
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    store.delete(["manifest.json"])  # as if it died just before
    result, _ = prepared(source, tmp_path / "out", share=Share(1, 3))
    assert result.num_made == 0 and result.manifest
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest


# -- interrupted


def test_a_finished_text_is_not_made_again(tmp_path, capsys, tokenizer):
    arguments = command(write_text(tmp_path / "a.txt", documents(40)), tokenizer)
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "prepared in" in out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "was prepared already, nothing was done" in out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == stamps


@pytest.mark.parametrize("damage", [
    "shard gone", "shard torn", "record gone", "record torn", "record of another"])
def test_a_unit_whose_files_are_not_right_is_made_again_and_no_other(tmp_path, damage):
    source, out = write_text(tmp_path / "a.txt", documents(60)), tmp_path / "out"
    prepared(source, out)
    expected = files_in(out)
    shard, record = out / "train" / "00002.bin", out / "parts" / "00002.json"
    if damage == "shard gone":
        shard.unlink()
    elif damage == "shard torn":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "record gone":
        record.unlink()
    elif damage == "record torn":
        record.write_bytes(record.read_bytes()[:50])
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"preparation": "another"}))
    result, _ = prepared(source, out)
    assert result.num_made == 1
    assert files_in(out) == expected


SLOW = """
import sys, time
from trainer import prepare, prepare_units, text_sources
real = prepare_units.write_record
def slow(store, key, record, **more):
    real(store, key, record, **more)
    print("wrote", key, flush=True)
    time.sleep(0.3)
prepare_units.write_record = slow
text_sources.open_source.__defaults__ = ("text", 500)
sys.exit(prepare.main(sys.argv[1:]))
"""


def start_slowly(arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_preparation_goes_on_where_it_was(tmp_path, number, tokenizer):
    source = write_text(tmp_path / "a.txt", documents(100))
    process = start_slowly(command(source, tokenizer, "--processes", "1"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert re.search(r"^interrupted; kept: \d of \d+ units; ", err.splitlines()[-1])
        assert err.endswith("the same command goes on from there\n")
        assert "Traceback" not in err
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
    assert len(kept) >= 3
    text = text_bytes(str(tokenizer))
    result, _ = prepared(source, tmp_path / "out", tokenizer=text)
    assert result.num_made == result.num_units - len(kept) > 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    prepared(source, tmp_path / "undisturbed", tokenizer=text)
    assert files_in(tmp_path / "out") == files_in(tmp_path / "undisturbed")


def test_workers_end_when_their_parent_is_killed(tmp_path, tokenizer):
    import psutil

    source = write_text(tmp_path / "a.jsonl", [])
    source.write_text("".join(json.dumps({"text": text * 200}) + "\n" for text in documents(20_000)))
    process = subprocess.Popen([sys.executable, "-m", "trainer.prepare", *command(
        source, tokenizer, "--processes", "2")], cwd=ROOT,
        stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while not (tmp_path / "out" / "plan.json").exists() or len(workers) < 2:
        assert time.monotonic() < give_up and process.poll() is None
        workers = [child for child in psutil.Process(process.pid).children()
                   if "spawn_main" in str(child.cmdline())]
        time.sleep(0.05)
    time.sleep(1)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive


def test_a_worker_that_dies_is_told_with_a_way_out(tmp_path, monkeypatch):
    source = write_text(tmp_path / "a.txt", documents(60))
    monkeypatch.setattr(prepare_units, "_serve", die)
    with pytest.raises(prepare_units.WorkerDiedError, match="killed by signal 9") as caught:
        prepared(source, tmp_path / "out", processes=2)
    assert "--processes 1" in (caught.value.fix or "")


def test_an_error_in_a_worker_comes_out_as_it_was(tmp_path):
    source = write_text(tmp_path / "a.txt", documents(60))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").write_text("a file where a folder must be")
    with pytest.raises(StoreError, match="cannot write") as caught:
        prepared(source, tmp_path / "out", processes=2)
    assert "train/" in (caught.value.place or "") and caught.value.fix


# -- refused


def test_another_text_tokenizer_or_split_in_the_same_place_is_refused(tmp_path):
    source, out = write_text(tmp_path / "a.txt", documents(40)), tmp_path / "out"
    prepared(source, out)
    before = files_in(out)
    other = write_text(tmp_path / "b.txt", documents(41))
    changed = [
        (lambda: prepared(other, out), "its source is .*a.txt, not .*b.txt"),
        (lambda: prepared(source, out, tokenizer=text_bytes("lower", lower=True)),
         "its tokenizer is bytes .*not lower"),
        (lambda: prepared(source, out, heldout=0.3), "held-out fraction is 0.2, not 0.3"),
        (lambda: prepared(source, out, text_key="body"), "text key is text, not body"),
        (lambda: prepared(write_text(source, documents(39)), out), "a.txt has changed since"),
    ]
    for attempt, problem in changed:
        with pytest.raises(ConfigError, match=problem) as caught:
            attempt()
        assert "--restart" in (caught.value.fix or "")
    assert files_in(out) == before


def test_restart_makes_it_anew(tmp_path, capsys, tokenizer):
    assert run(capsys, *command(write_text(tmp_path / "a.txt", documents(40)), tokenizer))[0] == 0
    other = command(write_text(tmp_path / "b.txt", documents(30)), tokenizer)
    code, _, err = run(capsys, *other)
    assert code == 3 and "something else is prepared there" in err and "fix: " in err
    assert run(capsys, *other, "--restart")[0] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["rows"]["num_documents"] == 30


# -- looked at again


@pytest.mark.parametrize("ending", ["bin", "idx"])
@pytest.mark.parametrize("dies", [False, True])
def test_verify_finds_what_sizes_do_not_tell_and_makes_those_units_anew(tmp_path, capsys, tokenizer, ending,
                                                                       dies, monkeypatch):
    monkeypatch.setattr(text_sources, "_SMALLEST_UNIT", 500)
    arguments = command(write_text(tmp_path / "a.txt", documents(60)), tokenizer, "--processes", "1")
    assert run(capsys, *arguments)[0] == 0
    whole = files_in(tmp_path / "out")
    code, out, _ = run(capsys, *arguments, "--verify")
    assert code == 0 and "nothing was done (SHA-256 compared)" in out
    path = tmp_path / "out" / "train" / f"00002.{ending}"
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "nothing was done (sizes compared; --verify reads it all)" in out
    if dies:  # what is found must not be forgotten: without --verify too, it is made anew
        with monkeypatch.context() as patched, pytest.raises(RuntimeError):
            patched.setattr(preparing, "prepare_all", lambda *_: (_ for _ in ()).throw(RuntimeError()))
            run(capsys, *arguments, "--verify")
        assert not (tmp_path / "out" / "manifest.json").exists()
    code, out, err = run(capsys, *arguments, *([] if dies else ["--verify"]))
    assert code == 0 and "prepared in" in out and files_in(tmp_path / "out") == whole
    assert dies or f"train/00002.{ending}: damaged (SHA-256 differs), its unit is made anew" in err
    assert f"{len(documents(60))} of 60 rows" in out and ", 1 to do here" in err


def test_each_machine_verifies_its_share(tmp_path):
    source = write_text(tmp_path / "a.txt", documents(60))
    prepared(source, tmp_path / "out")
    whole = files_in(tmp_path / "out")
    for name in ("train/00002.bin", "train/00003.bin"):
        path = tmp_path / "out" / name
        path.write_bytes(b"\x77" + path.read_bytes()[1:])
    result, _ = prepared(source, tmp_path / "out", share=Share(0, 2), verify=True)
    assert result.num_made == 1
    result, _ = prepared(source, tmp_path / "out", share=Share(1, 2), verify=True)
    assert result.num_made == 1 and files_in(tmp_path / "out") == whole
