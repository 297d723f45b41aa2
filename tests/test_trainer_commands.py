"""Commands that run in the trainer's environment: found or told, on this terminal, with its exit code."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launcher.errors import LdlmError
from launcher.trainer_commands import run_in_trainer, trainer_python

ROOT = Path(__file__).resolve().parent.parent
# Stands in for the Python of the trainer's environment: says what it was asked, then does as it is told.
ECHO = """#!{python}
import os, signal, sys, time
path = os.environ["PYTHONPATH"].split(os.pathsep)[0]
print(sys.argv[1:], os.getcwd(), path, os.environ["LDLM_STORE"], flush=True)
print("talk", file=sys.stderr, flush=True)
def stop(number, frame):
    sys.exit(77)
signal.signal(signal.SIGTERM, stop)
if "--wait" in sys.argv:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted: it goes on", file=sys.stderr)
        sys.exit(130)
if "--die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 0)
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "python"
    path.write_text(ECHO.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("LDLM_TRAIN_PYTHON", str(path))
    return path


def ldlm(*arguments: str, **options: object) -> "subprocess.Popen[str]":
    code = "from launcher.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)


def test_arguments_folder_store_and_exit_code_are_passed_on(echo, tmp_path, monkeypatch):
    monkeypatch.setenv("LDLM_STORE", "s3://bucket/ldlm")
    process = ldlm("data", "prepare", "a b.txt", "--tokenizer", "x", "--shard", "0/2", "6", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    asked = ["-P", "-m", "trainer.prepare", "a b.txt", "--tokenizer", "x", "--shard", "0/2", "6"]
    assert out == f"{asked} {tmp_path} {ROOT} s3://bucket/ldlm\n"
    assert (err, process.returncode) == ("talk\n", 6)


def test_a_benchmark_of_this_machine_runs_in_the_trainer_s_environment(echo):
    out, _ = ldlm("bench-here", "--preset", "seed-27b", "--steps", "4", "--help").communicate(timeout=60)
    asked = ["-P", "-m", "trainer.bench", "generate", "--preset", "seed-27b", "--steps", "4", "--help"]
    assert out.startswith(f"{asked} ")


@pytest.mark.parametrize(("command", "module"), [
    (("data", "prepare"), "trainer.prepare"), (("weights", "mirror"), "trainer.mirror")])
def test_help_is_that_of_the_trainer_and_the_store_is_the_usual_one(echo, monkeypatch, command, module):
    monkeypatch.delenv("LDLM_STORE", raising=False)
    out, _ = ldlm(*command, "--help").communicate(timeout=60)
    assert f"['-P', '-m', '{module}', '--help']" in out
    assert out.strip().endswith("/store") and "file://" in out


def test_the_trainer_ends_when_the_command_is_killed(echo):
    process = ldlm("data", "prepare", "x", "--wait", start_new_session=True)
    assert process.stdout.readline() and process.stderr.readline() == "talk\n"
    child, = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert child.wait(timeout=20) is not None or not child.is_running()
    process.communicate()


def test_a_command_that_names_a_run_is_told_where_the_run_is(echo, tmp_path, monkeypatch):
    monkeypatch.delenv("LDLM_STORE", raising=False)
    here, elsewhere = Path(os.environ["LDLM_HOME"]) / "store", tmp_path / "elsewhere"
    for store in (here, elsewhere):
        (store / "mine").mkdir(parents=True)
        (store / "mine" / "recipe.json").write_text("{}")
    for typed, store in ((["mine", "-n", "2"], here), (["mine", "--store", str(elsewhere)], elsewhere)):
        out, _ = ldlm("sample", *typed).communicate(timeout=60)
        asked = ["-P", "-m", "trainer.sample", *typed, "--store", store.resolve().as_uri()]
        assert out.startswith(f"{asked} ")
    out, _ = ldlm("sample", "--from", "x y").communicate(timeout=60)
    assert "['-P', '-m', 'trainer.sample', '--from', 'x y']" in out


@pytest.mark.parametrize(("code", "said", "typed"), [
    (6, "no run 'mine'", ["wandb", "sync", "mine"]),
    (6, "no run 'mine'", ["sample", "mine"]), (6, "no run 'mine'", ["export", "mine"]),
    (6, "no run 'mine'", ["evaluate", "mine", "--out", "x"]),
    (2, "the following arguments are required: --out", ["evaluate", "mine"]),
    (2, "argument --steps: '0' is not a whole number from 1", ["evaluate", "mine", "--steps", "4,0"]),
    (2, "argument --steps: '0' is not a whole number above 0", ["sample", "mine", "--steps", "0"]),
    (2, "argument --temperature: 'nan' is not a number above", ["sample", "mine", "--temperature", "nan"]),
    (2, "argument --seed: '-1' is not a whole number from 0", ["sample", "mine", "--seed=-1"]),
    (2, "name either a RUN or an export by --from PATH", ["sample"]),
    (2, "name either a RUN or an export by --from PATH", ["sample", "mine", "--from", "x"]),
    (2, "argument --out: is empty", ["export", "mine", "--out", ""])])
def test_what_cannot_be_sampled_or_exported_is_refused_before_the_trainer_starts(echo, code, said, typed):
    process = ldlm(*typed)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "") and said in err and "Traceback" not in err


def test_both_commands_are_in_the_advanced_panel():
    out, _ = ldlm("--help").communicate(timeout=60)
    advanced = out.partition("Advanced:")[2]
    assert "data " in advanced and "weights " in advanced
    out, _ = ldlm("data", "--help").communicate(timeout=60)
    assert "prepare  Turn text, JSONL, Parquet" in out


@pytest.mark.parametrize("to_group", [True, False])
def test_ctrl_c_and_sigterm_reach_the_trainer_which_has_the_last_word(echo, to_group):
    process = ldlm("data", "prepare", "--wait", start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    if to_group:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == (130 if to_group else 77)
    assert "Traceback" not in err
    if to_group:
        assert err.splitlines()[-1] == "interrupted: it goes on"


def test_a_trainer_that_is_killed_gives_the_code_a_shell_would(echo):
    process = ldlm("data", "prepare", "--die")
    process.communicate(timeout=30)
    assert process.returncode == 137


def test_without_the_trainers_environment_the_make_target_is_named(tmp_path, monkeypatch):
    for named in (tmp_path / "none", tmp_path):  # nothing, and the folder of an environment
        monkeypatch.setenv("LDLM_TRAIN_PYTHON", str(named))
        with pytest.raises(LdlmError, match="no trainer's environment") as caught:
            run_in_trainer("trainer.prepare", [])
        assert "set LDLM_TRAIN_PYTHON" in (caught.value.fix or "")
    monkeypatch.delenv("LDLM_TRAIN_PYTHON")
    monkeypatch.setattr("launcher.trainer_commands.checkout_folder", lambda: tmp_path)
    with pytest.raises(LdlmError) as caught:
        trainer_python()
    assert f"make -C {tmp_path} .venv-train" in (caught.value.fix or "")


def test_signals_are_ours_again_afterwards(echo):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run_in_trainer("trainer.prepare", ["3"]) == 3
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
