"""Launches by the command line, with nodes that only play theirs: attached, detached, interrupted, killed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from cli_lab import (
    FAKE_NODE,
    LDLM,
    RECIPE,
    Checkout,
    Terminal,
    environment,
    files_below,
    ldlm,
    refused,
    without_quotes,
)
from engine_lab import wait_until

from launcher.engine import EnginePhase
from launcher.engine_folder import EngineFolder, engine_home
from launcher.local_engine import LocalEngine

RUN = ["launch", "example", "--run-id", "r1"]


@pytest.fixture
def store(tmp_path) -> Iterator[str]:
    """A store of this test; whatever runs in it is ended afterwards."""
    yield str(tmp_path / "store")
    for folder in engine_home().glob("*"):
        for _ in range(2):
            with contextlib.suppress(Exception):
                LocalEngine().cancel(folder.name)
                time.sleep(0.2)
        wait_until(lambda folder=folder: not EngineFolder(folder).is_locked(), "the supervisor was gone")


def phase() -> EnginePhase:
    return LocalEngine().state("r1").phase


def test_a_launch_tells_what_happens_and_ends_with_the_bill(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} beat:100,100 beat:400,400 exit:0")
    done = checkout.ldlm(*RUN, "--yes", "--store", store)
    assert done.returncode == 0, done.stderr
    assert "attempt 1: training on 2 CPU cores here (spot), setting up" in done.stderr
    assert "attempt 2: benchmark on" in done.stderr
    assert done.stdout.index("Plan for example") < done.stdout.index("Cost of r1 (simulated price)")
    assert done.stdout.endswith("run r1: finished (train finished)\n")


def test_a_key_for_w_and_b_reaches_the_node_and_stands_in_no_file(tmp_path, store, monkeypatch):
    key = "k0" * 20
    monkeypatch.setenv("WANDB_API_KEY", key)
    checkout = Checkout(tmp_path, f'test "$WANDB_API_KEY" = {key} && {FAKE_NODE} beat:400,400 exit:0')
    done = checkout.ldlm(*RUN, "--yes", "--store", store, "--set", "train.wandb.mode=online")
    assert done.returncode == 0, done.stderr
    written = [path for folder in (Path(store), engine_home()) for path in folder.rglob("*")
               if path.is_file()]
    assert len(written) > 5
    # The template is ours: it compares with the key, and is not what a user writes.
    told = f'test "$WANDB_API_KEY" = {key}'.encode()
    assert all(key.encode() not in path.read_bytes().replace(told, b"") for path in written)


def test_w_and_b_online_without_a_key_is_refused_before_anything_is_written(tmp_path, store):
    said = refused(3, *RUN, "--yes", "--store", store, "--set", "train.wandb.mode=online",
                   cwd=Checkout(tmp_path, "exit 0").folder)
    assert "--set train.wandb.mode=online: mode is online, and the environment has no WANDB_API_KEY" in said
    assert not Path(store).exists()


def test_a_run_that_fails_ends_with_code_5_and_where_to_read_why(tmp_path, store):
    said = refused(5, *RUN, "--yes", "--store", store, cwd=Checkout(tmp_path, "exit 78").folder)
    assert "run r1 failed: bad recipe or data" in said
    assert "read ldlm logs r1" in said


def test_a_run_that_fails_ends_with_what_its_node_says_to_do(tmp_path, store):
    said = refused(5, *RUN, "--yes", "--store", store,
                   cwd=Checkout(tmp_path, f"{FAKE_NODE} end:78 exit:78").folder)
    assert "x.json: the node's own word" in said and said.rstrip().endswith("fix: none")


def test_a_benchmark_that_fails_or_is_stopped_is_told_and_bench_runs_it_alone(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} exit:0", f"test -e {tmp_path}/go && exec sleep 60; exit 78")
    said = refused(5, *RUN, "--yes", "--store", store, cwd=checkout.folder)
    told = "trained; benchmark failed (bench: recipe or data is wrong (exit code 78)): ldlm bench r1"
    assert told in said
    assert told in " ".join(ldlm("status", "r1").stdout.split())
    assert "trained; no benchmark" in ldlm("status", "--store", store).stdout
    (tmp_path / "go").touch()
    terminal = Terminal("bench", "r1", "--yes", cwd=checkout.folder)
    terminal.wait_for("attempt 3: benchmark")
    wait_until(lambda: ldlm("stop", "r1").returncode == 0, "the run could be stopped")
    assert terminal.wait() == 0
    assert "trained; benchmark stopped by you" in terminal.plain()
    attempts = json.loads(ldlm("cost", "r1", "--json").stdout)["attempts"]
    assert [attempt["document"] for attempt in attempts] == ["train", "bench", "bench"]
    task = yaml.safe_load_all((Path(store) / "r1" / "task.yaml").read_text())
    assert [document["name"] for document in task] == ["r1", "bench"]  # no machine that would train


def test_a_run_that_has_not_trained_is_not_benchmarked(tmp_path, store):
    refused(5, *RUN, "--yes", "--store", store, cwd=Checkout(tmp_path, f"{FAKE_NODE} exit:78").folder)
    said = refused(6, "bench", "r1", "--store", store)
    assert "run r1 has not finished training" in said and "ldlm resume r1" in said


def test_a_run_that_the_engine_cannot_take_says_that_it_is_recorded_and_can_be_resumed(tmp_path, store):
    checkout = Checkout(tmp_path, "exit 0")
    in_the_way = engine_home() / "r1" / "task.yaml"
    in_the_way.mkdir(parents=True)
    said = refused(5, *RUN, "--yes", "--store", store, cwd=checkout.folder)
    assert "cannot write the engine's folder" in said
    which = f"r1 --store file://{store}"
    assert f"the run is recorded but does not run: ldlm resume {which}, or ldlm rm {which} --all" in said
    in_the_way.rmdir()
    done = checkout.ldlm("resume", "r1", "--yes", "--store", store, "--max-cost", "2.5", "--deadline", "3")
    assert done.returncode == 0, done.stderr
    (resumed,) = (Path(store) / "r1" / "events").glob("*-resumed.json")
    limits = json.loads(resumed.read_text())["detail"]["limits"]
    assert limits == {"max_cost_usd": "2.5", "max_hours": None, "deadline_hours": 3.0, "deadline": None,
                      "policy": "ours", "wait_hours": 6.0, "bench_wait_hours": 1.0, "bench_hours": 1.0}


def test_a_run_goes_on_detached_and_can_be_looked_at_listed_stopped_and_deleted(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} on-term:75 beat:7,5 sleep:60")
    done = checkout.ldlm(*RUN, "--yes", "--detach", "--store", store)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "run r1 is under way: ldlm status r1, ldlm logs -f r1, ldlm stop r1")
    wait_until(lambda: "did beat:7,5" in ldlm("logs", "r1").stdout, "the node has beaten")
    seen = json.loads(ldlm("status", "r1", "--json").stdout)
    assert (seen["step"], seen["durable_step"], seen["attempts"], seen["outcome"]) == (7, 5, 1, None)
    assert ldlm("cost", "r1").returncode == 0
    assert "a run 'r1' exists already" in refused(6, *RUN, "--yes", "--store", store, cwd=checkout.folder)
    assert "run r1 is running" in refused(6, "resume", "r1", "--yes")
    assert "stop it first: ldlm stop r1" in refused(6, "rm", "r1", "--yes")
    assert ldlm("stop", "r1").returncode == 0
    wait_until(lambda: phase() is EnginePhase.ENDED, "the run was stopped")
    assert json.loads(ldlm("status", "r1", "--json").stdout)["outcome"] == "stopped"
    assert "not running on this machine" in refused(5, "stop", "r1")
    assert ldlm("rm", "r1", "--yes", "--all").stdout.splitlines()[-1].startswith("deleted r1: ")
    assert files_below(tmp_path / "store") == files_below(engine_home()) == []
    assert "no run 'r1'" in refused(6, "logs", "r1")


def test_a_run_whose_store_was_deleted_can_still_be_stopped(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} on-term:75 beat:7,5 sleep:60")
    assert checkout.ldlm(*RUN, "--yes", "--detach", "--store", store).returncode == 0
    wait_until(lambda: "did beat:7,5" in ldlm("logs", "r1").stdout, "the node has beaten")
    shutil.rmtree(store)
    done = ldlm("stop", "r1")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: phase() is EnginePhase.ENDED, "the run was stopped")


def test_a_run_that_would_save_for_long_is_ended_now_with_all_that_it_holds(tmp_path, store):
    checkout = Checkout(tmp_path, f"trap '' TERM; {FAKE_NODE} beat:7,5 sleep:3000")
    assert checkout.ldlm(*RUN, "--yes", "--detach", "--store", store).returncode == 0
    wait_until(lambda: "did beat:7,5" in ldlm("logs", "r1").stdout, "the node has beaten")
    held = [psutil.Process(int(words.split()[-1])) for words in LocalEngine().resources("r1")]
    done = ldlm("stop", "r1", "--now")
    assert done.returncode == 0, done.stderr
    assert f"ending r1 at once: supervisor {held[0].pid}, process {held[1].pid}" in done.stderr
    assert done.stdout == ("r1 has ended and holds nothing any more; go on from its newest checkpoint: "
                           "ldlm resume r1\n")
    assert {process.status() for process in held if process.is_running()} <= {psutil.STATUS_ZOMBIE}
    assert phase() is EnginePhase.ENDED
    assert "not running on this machine" in refused(5, "stop", "r1", "--now")


def test_what_a_killed_supervisor_has_left_is_ended_now_and_nobody_waits_for_its_word(tmp_path, store):
    checkout = Checkout(tmp_path, f"trap '' TERM; {FAKE_NODE} beat:7,5 sleep:3000")
    assert checkout.ldlm(*RUN, "--yes", "--detach", "--store", store).returncode == 0
    wait_until(lambda: "did beat:7,5" in ldlm("logs", "r1").stdout, "the node has beaten")
    os.kill(int(LocalEngine().resources("r1")[0].split()[-1]), signal.SIGKILL)
    wait_until(lambda: phase() is EnginePhase.UNKNOWN, "the supervisor is dead")
    done = ldlm("stop", "r1", "--now")
    assert done.returncode == 0 and "holds nothing any more" in done.stdout, done.stderr
    assert LocalEngine().resources("r1") == []


def test_ctrl_c_while_attached_ends_only_the_watching(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} beat:7,5 sleep:60")
    terminal = Terminal(*RUN, "--yes", "--store", store, cwd=checkout.folder)
    terminal.wait_for("checkpoint of step 5 is durable")
    terminal.type("\x03")
    assert terminal.wait() == 130
    last = terminal.plain().rstrip("\n").splitlines()[-1]
    assert last == "no longer watching, the run goes on: ldlm status r1, ldlm logs -f r1, ldlm stop r1"
    assert "Traceback" not in terminal.text
    assert phase() is EnginePhase.RUNNING
    status = json.loads(ldlm("status", "r1", "--json").stdout)
    assert (status["step"], status["outcome"]) == (7, None)


def supervises(folder):
    """True once a process has become the supervisor of this engine folder."""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any("launcher.supervisor" in command and str(folder) in command for command in commands)


def test_ctrl_c_while_the_supervisor_starts_leaves_a_run_that_goes_on(tmp_path, store):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} beat:7,5 sleep:60")
    checkout.slow_down("supervisor", 3)
    terminal = Terminal(*RUN, "--yes", "--store", store, cwd=checkout.folder)
    # Not the lock: the client holds it before there is a supervisor to pass it on to.
    wait_until(lambda: supervises(engine_home() / "r1"), "the supervisor was started")
    terminal.type("\x03")
    assert terminal.wait() == 130
    assert "no longer watching, the run goes on: ldlm status r1" in terminal.plain()
    wait_until(lambda: json.loads(ldlm("status", "r1", "--json").stdout)["step"] == 7, "the run went on")


@pytest.mark.parametrize(("keys", "code", "says"), [
    ("\x03", 130, "interrupted, so nothing was done"),
    ("n\n", 1, "you said no, so nothing was done"),
    ("\n", 1, "you said no, so nothing was done"),
])
def test_at_the_question_anything_but_yes_leaves_nothing_behind(tmp_path, keys, code, says):
    terminal = Terminal("launch", RECIPE, "--store", str(tmp_path / "store"))
    terminal.wait_for("Start it? [y/N]")
    terminal.type(keys)
    assert terminal.wait() == code
    assert says in terminal.plain()
    assert "Traceback" not in terminal.text
    assert files_below(tmp_path) == []
    assert without_quotes(engine_home().parent) == []


def test_yes_at_the_question_starts_the_run(tmp_path, store):
    terminal = Terminal(*RUN, "--store", store, cwd=Checkout(tmp_path, "exit 0").folder)
    terminal.wait_for("Start it? [y/N]")
    terminal.type("y\n")
    assert terminal.wait() == 0
    assert "run r1: finished" in terminal.plain()


@pytest.mark.parametrize("command", ["plan", "launch"])
def test_ctrl_c_while_planning_is_one_word(tmp_path, command):
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "nvidia-smi").write_text(f"#!/bin/bash\ntouch {tmp_path}/asked\nexec sleep 9\n")
    (slow / "nvidia-smi").chmod(0o755)
    process = subprocess.Popen([*LDLM, command, RECIPE, "--store", str(tmp_path / "store")], text=True,
                               env=environment(PATH=f"{slow}:/usr/bin:/bin"), start_new_session=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until((tmp_path / "asked").exists, "the plan looks for GPUs")
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "interrupted\n")
    assert process.returncode == 130
    assert not (tmp_path / "store").exists()


def test_ctrl_c_while_the_command_is_imported_is_one_word(tmp_path):
    checkout = Checkout(tmp_path, "exit 0")
    checkout.slow_down("cli", 9)
    path = checkout.folder / "launcher" / "cli.py"
    path.write_text(f"open({str(tmp_path / 'begun')!r}, 'w').close()\n" + path.read_text())
    process = subprocess.Popen([*LDLM, "recipes"], cwd=checkout.folder, env=environment(), text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until((tmp_path / "begun").exists, "its modules are imported")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "interrupted\n")
    assert process.returncode == 130


def test_a_killed_supervisor_is_noticed_and_resume_finishes_the_run(tmp_path, store):
    marker = tmp_path / "second"
    run = f"test -e {marker} && exit 0; touch {marker}; {FAKE_NODE} beat:7,5 sleep:60"
    checkout = Checkout(tmp_path, run)
    terminal = Terminal(*RUN, "--yes", "--store", store, cwd=checkout.folder)
    terminal.wait_for("checkpoint of step 5 is durable")
    psutil.Process(LocalEngine().state("r1").pid).kill()
    assert terminal.wait() == 5
    assert "continue it: ldlm resume r1" in terminal.plain()
    shown = ldlm("status", "r1").stdout
    assert "unknown: its supervisor was killed, or the machine" in " ".join(shown.split())
    assert "nobody supervises this run any more; continue it: ldlm resume r1" in " ".join(shown.split())
    done = checkout.ldlm("resume", "r1", "--yes")
    assert done.returncode == 0, done.stderr
    assert json.loads(ldlm("status", "r1", "--json").stdout)["outcome"] == "finished"
