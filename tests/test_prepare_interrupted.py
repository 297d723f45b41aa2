"""Ctrl-C under `ldlm data prepare`, whenever it comes: one line, exit code 130, nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from data_examples import command, documents, write_text  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def start(arguments: list[str], *options: str) -> "subprocess.Popen[str]":
    """In a group of its own, as a terminal gives to each command."""
    return subprocess.Popen([sys.executable, *options, "-m", "trainer.prepare", *arguments], cwd=ROOT,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def said_until(process: "subprocess.Popen[str]", words: str) -> list[str]:
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return said
    raise AssertionError("".join(said))


def wait_for_the_end_of_the_group(pid: int) -> None:
    """What multiprocessing keeps beside its processes ends a moment after the last of them."""
    give_up = time.monotonic() + 10
    with suppress(ProcessLookupError):
        while time.monotonic() < give_up:
            os.killpg(pid, 0)
            time.sleep(0.02)
        raise AssertionError("a process was left behind")


def interrupted(process: "subprocess.Popen[str]") -> list[str]:
    """Press Ctrl-C: every process of the group gets it. Returns what is said then."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    wait_for_the_end_of_the_group(process.pid)
    return [line for line in err.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize("module", ["trainer.contract", "obstore", "trainer.prepare_command", "torch._C",
                                    "tokenizers", "trainer.token_encoder"])
def test_while_it_imports(tmp_path, tokenizer, module):
    arguments = command(write_text(tmp_path / "a.txt", documents(40)), tokenizer)
    process = start(arguments, "-X", "importtime")
    said_until(process, f" {module}\n")
    assert [line for line in interrupted(process) if not line.startswith("taken: ")] == [
        "interrupted before it began; what was finished earlier is kept"]


@pytest.mark.parametrize("delay_s", [0.0, 0.3, 2.0])
def test_while_workers_start_and_work(tmp_path, tokenizer, delay_s):
    lines = "".join(json.dumps({"text": text * 200}) + "\n" for text in documents(6_000))
    (tmp_path / "a.jsonl").write_text(lines)
    process = start(command(tmp_path / "a.jsonl", tokenizer, "--processes", "2"))
    said_until(process, "to do here")
    time.sleep(delay_s)
    (line,) = interrupted(process)
    assert line.startswith("interrupted; kept: ") and line.endswith("the same command goes on from there")


def test_a_job_in_the_background_stays_deaf(tmp_path, tokenizer):
    arguments = command(write_text(tmp_path / "a.txt", documents(40)), tokenizer)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(arguments)
    finally:
        signal.signal(signal.SIGINT, before)
    said_until(process, "taken: ")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "prepared in" in out, err
