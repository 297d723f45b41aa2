"""The local engine as its client sees it: submit, state, logs, cancel."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from engine_lab import ROOT, RUN_ID, TIMEOUT_S, Lab, has_ended, supervise, wait_until

from launcher.engine import EnginePhase
from launcher.errors import EngineError, UsageError
from launcher.follow_logs import follow_logs
from launcher.local_engine import LocalEngine, _clear_disk_errors
from launcher.preempt_at import parse_preempt_at
from trainer.contract import Document, Outcome


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.close()


# -- supervisors ------------------------------------------------------------------------------


def test_two_submits_at_once_give_one_supervisor(lab: Lab) -> None:
    errors: list[EngineError] = []

    def submit() -> None:
        try:
            lab.submit("sleep 60")
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["already being run" in str(error) for error in errors] == [True]
    wait_until(lambda: lab.run.attempts(), "an attempt was claimed")
    assert len(lab.run.attempts()) == 1


def test_only_the_winner_of_two_submits_writes_to_the_record(lab: Lab) -> None:
    wrote: list[str] = []
    task = lab.task(lab.document("train", "sleep 60"))
    lab.engine.submit(task, on_lock=lambda: wrote.append("winner"))
    with pytest.raises(EngineError, match="already being run"):
        lab.engine.submit(task, on_lock=lambda: wrote.append("loser"))
    assert wrote == ["winner"]


def test_a_killed_supervisor_leaves_no_trainer_and_the_run_can_be_submitted_again(lab: Lab) -> None:
    lab.submit("echo $$ > node.pid; exec sleep 60")
    node = lab.pid_in("node.pid")
    found = lab.folder.read_supervisor()
    assert found is not None
    os.kill(found[0], signal.SIGKILL)
    wait_until(lambda: lab.engine.state(RUN_ID).phase is EnginePhase.UNKNOWN, "the loss was seen")
    wait_until(lambda: has_ended(node), "the trainer ended")
    lab.submit("exit 0")
    lab.wait_for_end()
    assert lab.ends() == [(None, False), (0, False)]


def test_an_attempt_waits_for_the_trainer_of_a_killed_supervisor(lab: Lab) -> None:
    # A shell that catches SIGTERM and needs a second for its last checkpoint.
    lab.submit("trap 'sleep 1; touch saved; exit 75' TERM; echo $$ > node.pid; while :; do sleep 0.05; done")
    lab.pid_in("node.pid")
    found = lab.folder.read_supervisor()
    assert found is not None
    os.kill(found[0], signal.SIGKILL)
    lab.submit("[ -e saved ] && exit 0; exit 70")
    lab.wait_for_end()
    assert lab.outcome() is Outcome.FINISHED


def test_an_attempt_of_another_machine_is_charged_to_its_last_sign_of_life(lab: Lab) -> None:
    begun = datetime.now(UTC) - timedelta(hours=5)
    lab.run.claim_attempt(Document.TRAIN, billed_from=begun, price_usd_per_hour=Decimal(1), offer="",
                          host="elsewhere")
    lab.submit("exit 0")
    lab.wait_for_end()
    end = lab.run.attempts()[0].end
    assert end is not None and end.at == begun


def test_closing_the_terminal_of_the_client_does_not_stop_the_run(lab: Lab) -> None:
    task = lab.workdir / "task.yaml"
    task.write_text(lab.task(lab.document("train", "sleep 0.5; exit 0")))
    program = (f"from launcher.local_engine import LocalEngine; import pathlib, time; "
               f"LocalEngine().submit(pathlib.Path({str(task)!r}).read_text()); "
               f"print('ok', flush=True); time.sleep(60)")
    client = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True,
                              stdout=subprocess.PIPE)
    assert client.stdout is not None and client.stdout.readline() == b"ok\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        os.killpg(client.pid, number)
    client.communicate()
    lab.wait_for_end()
    assert lab.outcome() is Outcome.FINISHED


def test_a_pid_that_now_belongs_to_another_process_is_not_signalled(lab: Lab) -> None:
    lab.folder.path.mkdir(parents=True)
    stranger = subprocess.Popen(["sleep", "60"])
    lock = lab.folder.take_lock()
    try:
        (lab.folder.path / "supervisor.pid").write_text(f'{{"pid": {stranger.pid}, "identity": "boot/1"}}')
        lab.engine.cancel(RUN_ID)
        time.sleep(0.2)
        assert stranger.poll() is None
    finally:
        os.close(lock)
        stranger.kill()
        stranger.wait()


def test_what_a_killed_supervisor_has_left_is_named_and_ended(lab: Lab) -> None:
    lab.submit("trap '' TERM; echo deaf; while true; do sleep 0.1; done")
    wait_until(lambda: "deaf" in lab.log(1), "it hears no SIGTERM")
    found = lab.folder.read_supervisor()
    assert found and f"supervisor {found[0]}" in lab.engine.resources(RUN_ID)
    os.kill(found[0], signal.SIGKILL)
    wait_until(lambda: not lab.folder.is_locked(), "the supervisor is dead")
    left = [int(words.removeprefix("process ")) for words in lab.engine.resources(RUN_ID)]
    assert left and all(psutil.pid_exists(pid) for pid in left)
    lab.engine.tear_down(RUN_ID)
    wait_until(lambda: not lab.engine.resources(RUN_ID), "it holds nothing")


# -- logs -------------------------------------------------------------------------------------


def test_following_the_logs_goes_on_over_attempts_and_ends_with_the_run(lab: Lab) -> None:
    lab.submit("echo begin $LDLM_ATTEMPT; sleep 0.4; echo -n end $LDLM_ATTEMPT\n"
               "[ $LDLM_ATTEMPT = 2 ] || exit 75")
    assert list(lab.engine.logs(RUN_ID, follow=True)) == [
        "==> attempt 1 <==", "begin 1", "end 1", "==> attempt 2 <==", "begin 2", "end 2"]
    assert len(list(lab.engine.logs(RUN_ID))) == 6


def test_logs_start_over_when_the_file_was_truncated(lab: Lab) -> None:
    lab.folder.path.mkdir(parents=True)
    lock = lab.folder.take_lock()
    path = lab.folder.attempt_log(1)
    path.write_text("one\ntwo\n")
    lines = follow_logs(lab.folder, follow=True)
    assert [next(lines) for _ in range(3)] == ["==> attempt 1 <==", "one", "two"]
    path.write_text("new\n")
    assert next(lines) == "new"
    os.close(lock)
    assert list(lines) == []


def test_a_run_that_was_never_here_has_no_logs_and_no_state(lab: Lab) -> None:
    assert lab.engine.state(RUN_ID).phase is EnginePhase.NONE
    with pytest.raises(EngineError, match="has no logs"):
        lab.engine.logs(RUN_ID)


# -- what cannot be run -----------------------------------------------------------------------


@pytest.mark.parametrize(("change", "message"), [
    ({"envs": {"LDLM_RUN_ID": "r1"}}, "LDLM_STORE is missing"),
    ({"envs": {"LDLM_RUN_ID": "../r1", "LDLM_STORE": "file:///x"}}, "cannot name a folder"),
    ({"envs": {"LDLM_RUN_ID": "Mine", "LDLM_STORE": "file:///x"}}, "use up to 60 lower-case letters"),
    ({"envs": {"LDLM_RUN_ID": "r1", "LDLM_STORE": "file:///x", "A": None}}, "envs.A is None, not text"),
    ({"envs": {"LDLM_RUN_ID": "r1", "LDLM_STORE": "file:///x", "LDLM_PRICE_USD_PER_HOUR": "a"}}, "dollars"),
    ({"envs": {"LDLM_RUN_ID": "r1", "LDLM_STORE": "file:///x", "LDLM_GPU": "H100"}}, "NAME:COUNT"),
    ({"workdir": "relative"}, "not the absolute path"),
    ({"run": None}, "no `run` text"),
])
def test_a_task_that_cannot_run_is_refused_before_anything_starts(
        lab: Lab, change: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        lab.engine.submit(lab.task({**lab.document("train", "exit 0"), **change}))
    assert lab.engine.state(RUN_ID).phase is EnginePhase.NONE


def test_text_that_is_not_yaml_is_refused(lab: Lab) -> None:
    with pytest.raises(EngineError, match="is not YAML"):
        lab.engine.submit("a: [")


def test_a_store_that_cannot_be_opened_is_told_by_submit(lab: Lab) -> None:
    with pytest.raises(EngineError, match="(?s)supervisor died.*cannot open a store at 'ftp://x'"):
        lab.submit("exit 0", envs={"LDLM_STORE": "ftp://x"})


def test_a_store_that_takes_no_attempt_ends_the_run_with_a_message(lab: Lab) -> None:
    (Path(lab.store_url.removeprefix("file://")) / RUN_ID).write_text("a file where the run folder should be")
    supervise(lab, "exit 0", "supervisor._STORE_PAUSES_S = (0.01,)").wait(TIMEOUT_S)
    state = lab.engine.state(RUN_ID)
    assert state.phase is EnginePhase.ENDED
    assert "cannot" in state.detail and "fix:" in state.detail


def test_an_engine_folder_that_cannot_be_written_is_named_with_a_fix(
        lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LDLM_HOME", str(tmp_path / "file"))
    lab.engine = LocalEngine()
    with pytest.raises(EngineError, match="LDLM_HOME"):
        lab.submit("exit 0")


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="free disk space"), _clear_disk_errors(tmp_path):
        Path("/dev/full").write_text("x")


@pytest.mark.parametrize("text", ["", "step", "step:0", "step:x", "time:-1", "time:inf", "time:nan", "h:3"])
def test_a_preemption_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="step:N or time:SECONDS"):
        parse_preempt_at(text)
