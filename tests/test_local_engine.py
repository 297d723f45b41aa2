"""The local engine with real processes: shells that end in every way, and kill -9."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import yaml

from launcher.engine import EnginePhase, EngineState
from launcher.engine_folder import EngineFolder, engine_home
from launcher.errors import EngineError, UsageError
from launcher.follow_logs import follow_logs
from launcher.local_engine import LocalEngine, _clear_disk_errors
from launcher.preempt_at import parse_preempt_at
from trainer.contract import Outcome
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import open_store

if sys.platform != "linux":
    pytest.skip("the local engine needs Linux", allow_module_level=True)

ROOT = Path(__file__).parents[1]
NODE = f"exec {sys.executable} {ROOT / 'tests' / 'fake_node.py'}"
RUN_ID = "r1"
TIMEOUT_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.03)


class Lab:
    """One run of one engine, with its store."""

    def __init__(self, folder: Path) -> None:
        self.workdir = folder / "work"
        self.workdir.mkdir()
        self.store_url = f"file://{folder}/store"
        self.engine = LocalEngine()
        self.folder = EngineFolder(engine_home() / RUN_ID)
        self.run = RunFolder(open_store(self.store_url), RUN_ID)

    def document(self, name: str, run: str, *, setup: str | None = None, restarts: int = 0,
                 envs: dict[str, object] | None = None) -> dict[str, object]:
        recovery = {"strategy": "FAILOVER", "max_restarts_on_errors": restarts, "recover_on_exit_codes": [75]}
        found: dict[str, object] = {
            "name": name, "workdir": str(self.workdir), "run": run, "resources": {"job_recovery": recovery},
            "envs": {"LDLM_RUN_ID": RUN_ID, "LDLM_STORE": self.store_url,
                     "LDLM_PRICE_USD_PER_HOUR": "1.50", "LDLM_OFFER": "this machine", **(envs or {})}}
        return found if setup is None else {**found, "setup": setup}

    def task(self, *documents: dict[str, object]) -> str:
        return yaml.safe_dump_all([{"name": RUN_ID, "execution": "serial"}, *documents])

    def submit(self, run: str, *, preempt_at: str | None = None, **keys: object) -> None:
        task = self.task(self.document("train", run, **keys))  # type: ignore[arg-type]
        self.engine.submit(task, preempt_at=parse_preempt_at(preempt_at) if preempt_at else None)

    def wait_for_end(self) -> EngineState:
        wait_until(lambda: self.engine.state(RUN_ID).phase is EnginePhase.ENDED, "the run ended")
        wait_until(lambda: not self.folder.is_locked(), "the supervisor was gone")
        return self.engine.state(RUN_ID)

    def outcome(self) -> Outcome:
        return self.run.read("outcome.json", RunOutcome).outcome

    def write_outcome(self, outcome: Outcome) -> None:
        old = RunOutcome(outcome=outcome, at=datetime.now(UTC), step=1, reason="old")
        self.run.write("outcome.json", old)

    def ends(self) -> list[tuple[int | None, bool]]:
        """Exit code of each attempt, and whether it was preempted."""
        return [(files.end.exit_code, files.end.preempted) for files in self.run.attempts() if files.end]

    def log(self, attempt: int = 1) -> str:
        path = self.folder.attempt_log(attempt)
        return path.read_text() if path.exists() else ""

    def pid_in(self, name: str) -> int:
        path = self.workdir / name
        wait_until(lambda: path.exists() and path.read_text().strip(), f"{name} was written")
        return int(path.read_text())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    for _ in range(2):
        if found.folder.is_locked():
            found.engine.cancel(RUN_ID)
            time.sleep(0.3)
    wait_until(lambda: not found.folder.is_locked(), "the supervisor was gone")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# -- the exit code table ----------------------------------------------------------------------


@pytest.mark.parametrize(("run", "outcome", "codes"), [
    ("exit 0", Outcome.FINISHED, [0]),
    ("exit 78", Outcome.BAD_CONFIG, [78]),
    ("exit 70", Outcome.DIVERGED, [70]),
    ("[ $LDLM_ATTEMPT -lt 5 ] && exit 75; exit 0", Outcome.FINISHED, [75, 75, 75, 75, 0]),
    ("exit 3", Outcome.LOST, [3, 3, 3]),
    ("[ $LDLM_ATTEMPT = 2 ] && exit 0; kill -9 $$", Outcome.FINISHED, [137, 0]),
])
def test_each_exit_code_has_its_consequence(lab: Lab, run: str, outcome: Outcome, codes: list[int]) -> None:
    lab.submit(run, restarts=2)
    state = lab.wait_for_end()
    assert lab.outcome() is outcome
    assert lab.ends() == [(code, False) for code in codes]
    assert state.detail.startswith(outcome)
    assert state.attempt == len(codes)
    kinds = [event.kind for event in lab.run.events()]
    assert kinds == ["engine_started", *["attempt_ended"] * len(codes), "ended"]


def test_a_newer_durable_step_gives_the_retries_back(lab: Lab) -> None:
    crashing = f"{NODE} beat:9,$LDLM_ATTEMPT exit:1"
    lab.submit(f"[ $LDLM_ATTEMPT -lt 4 ] || exit 1\n{crashing}", restarts=1)
    lab.wait_for_end()
    # Durable 1, 2, 3: each crash is a first one. The fourth attempt was the retry of the third.
    assert lab.ends() == [(1, False)] * 4
    assert lab.outcome() is Outcome.LOST
    assert lab.run.read("outcome.json", RunOutcome).step == 3


def test_a_failing_setup_is_called_so_and_retried_like_a_crash(lab: Lab) -> None:
    lab.submit("exit 0", setup="echo no such package; exit 78", restarts=1)
    state = lab.wait_for_end()
    assert lab.ends() == [(78, False)] * 2
    assert "setup failed with exit code 78" in state.detail
    assert "no such package\nldlm: setup failed with exit code 78\n" in lab.log()


def test_what_the_node_wrote_about_its_end_and_outcome_stays(lab: Lab) -> None:
    lab.submit(f"""echo '{{"outcome":"limit","at":"2026-01-01T00:00:00Z","step":7,"reason":"cap"}}' \
        > ${{LDLM_STORE#file://}}/{RUN_ID}/outcome.json; {NODE} end:0 exit:0""")
    lab.wait_for_end()
    end = lab.run.attempts()[0].end
    assert end is not None and end.reason == "the node's own word"
    assert lab.outcome() is Outcome.LIMIT


# -- documents --------------------------------------------------------------------------------


def test_the_benchmark_runs_after_training_and_its_failure_does_not_undo_it(lab: Lab) -> None:
    lab.engine.submit(lab.task(lab.document("train", "exit 0"), lab.document("bench", "exit 70")))
    state = lab.wait_for_end()
    assert [files.attempt.document for files in lab.run.attempts()] == ["train", "bench"]
    assert lab.outcome() is Outcome.FINISHED
    assert "bench" in state.detail and "70" in state.detail


def test_a_run_that_finished_training_resumes_with_the_benchmark(lab: Lab) -> None:
    lab.write_outcome(Outcome.FINISHED)
    lab.engine.submit(lab.task(lab.document("train", "exit 70"), lab.document("bench", "exit 0")))
    lab.wait_for_end()
    assert [files.attempt.document for files in lab.run.attempts()] == ["bench"]


def test_a_node_finds_the_variables_of_a_node(lab: Lab) -> None:
    lab.submit("cd / && env | sort && echo dir=$OLDPWD", envs={"LDLM_GPU": "RTX5090:2"})
    lab.wait_for_end()
    lines = lab.log().splitlines()
    assert {"SKYPILOT_NODE_RANK=0", "SKYPILOT_NODE_IPS=127.0.0.1", "SKYPILOT_NUM_NODES=1",
            "SKYPILOT_NUM_GPUS_PER_NODE=2", "LDLM_ATTEMPT=1", f"LDLM_RUN_ID={RUN_ID}",
            f"dir={lab.workdir}"} <= set(lines)
    attempt = lab.run.attempts()[0].attempt
    assert (str(attempt.price_usd_per_hour), attempt.offer) == ("1.50", "this machine")


# -- preemption -------------------------------------------------------------------------------


def test_a_preemption_at_a_step_leaves_no_process_and_the_run_goes_on(lab: Lab) -> None:
    stubborn = 'trap "" TERM HUP; echo $$ > stubborn.pid; while :; do sleep 0.05; done'
    # Forked twice and in a session of its own: no child of the shell any more.
    lab.submit(f"[ $LDLM_ATTEMPT = 2 ] && exit 0\n( setsid bash -c '{stubborn}' & )\n"
               f"{NODE} beat:4,3 sleep:0.3 beat:5,3 sleep:60", preempt_at="step:5")
    stubborn_pid = lab.pid_in("stubborn.pid")
    lab.wait_for_end()
    assert has_ended(stubborn_pid)
    assert lab.ends() == [(None, True), (0, False)]
    assert "did beat:5,3" in lab.log()
    assert "killing every process" in lab.log()
    assert "preempted" in [event.kind for event in lab.run.events()]
    assert lab.outcome() is Outcome.FINISHED


def test_a_preemption_at_a_step_waits_for_a_durable_checkpoint_and_says_so(lab: Lab) -> None:
    lab.submit(f"[ $LDLM_ATTEMPT = 2 ] && exit 0\n{NODE} beat:9,0 sleep:1 beat:12,8 sleep:60",
               preempt_at="step:5")
    wait_until(lambda: "waits for a first durable checkpoint" in lab.log(), "the wait was told")
    assert not lab.ends()
    lab.wait_for_end()
    assert "did beat:12,8" in lab.log()
    assert lab.ends() == [(None, True), (0, False)]


def test_a_preemption_at_a_time_happens_once(lab: Lab) -> None:
    lab.submit("[ $LDLM_ATTEMPT = 2 ] && sleep 0.8 && exit 0; sleep 60", preempt_at="time:0.4")
    lab.wait_for_end()
    assert lab.ends() == [(None, True), (0, False)]


@pytest.mark.parametrize("text", ["", "step", "step:0", "step:x", "time:-1", "time:inf", "time:nan", "h:3"])
def test_a_preemption_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="step:N or time:SECONDS"):
        parse_preempt_at(text)


# -- stop -------------------------------------------------------------------------------------


def test_a_stop_lets_the_node_commit_and_starts_nothing_again(lab: Lab) -> None:
    lab.submit(f"{NODE} on-term:75 beat:3,2 sleep:60")
    wait_until(lambda: "did beat" in lab.log(), "the node was at work")
    lab.engine.cancel(RUN_ID)
    state = lab.wait_for_end()
    assert lab.ends() == [(75, False)]
    assert lab.outcome() is Outcome.STOPPED
    assert "after a last checkpoint" in state.detail
    assert "stop_requested" in [event.kind for event in lab.run.events()]
    with pytest.raises(EngineError, match="not running"):
        lab.engine.cancel(RUN_ID)


def test_a_second_stop_kills_at_once(lab: Lab) -> None:
    lab.submit("trap '' TERM; echo $$ > node.pid; while :; do sleep 0.05; done")
    pid = lab.pid_in("node.pid")
    lab.engine.cancel(RUN_ID)
    wait_until(lambda: lab.engine.state(RUN_ID).phase is EnginePhase.STOPPING, "it was stopping")
    assert not has_ended(pid)
    lab.engine.cancel(RUN_ID)
    lab.wait_for_end()
    assert has_ended(pid)
    assert lab.outcome() is Outcome.STOPPED


@pytest.mark.parametrize("trap", ["", "trap 'exit 0' TERM; "])
def test_a_stop_during_setup_ends_the_run_without_starting_it(lab: Lab, trap: str) -> None:
    lab.submit("touch ran", setup=f"{trap}echo $$ > setup.pid; while :; do sleep 0.05; done", restarts=2)
    lab.pid_in("setup.pid")
    lab.engine.cancel(RUN_ID)
    lab.wait_for_end()
    assert lab.ends() == [(143, False)]
    assert lab.outcome() is Outcome.STOPPED
    assert not (lab.workdir / "ran").exists()


def test_a_node_that_ignores_the_stop_is_killed_after_its_grace(lab: Lab) -> None:
    lab.folder.path.mkdir(parents=True)
    run = "trap '' TERM; echo $$ > node.pid; while :; do sleep 0.05; done"
    supervisor = supervise(lab, run, "runner.STOP_GRACE_S = 0.5")
    pid = lab.pid_in("node.pid")
    supervisor.terminate()
    supervisor.wait(TIMEOUT_S)
    assert has_ended(pid)
    assert lab.ends() == [(137, False)]
    assert lab.outcome() is Outcome.STOPPED


def supervise(lab: Lab, run: str, change: str) -> subprocess.Popen[bytes]:
    """Run the supervisor program with one of its constants changed."""
    lab.folder.path.mkdir(parents=True, exist_ok=True)
    lab.folder.task.write_text(lab.task(lab.document("train", run)))
    lock = lab.folder.take_lock()
    program = f"from launcher import attempt_runner as runner, supervisor; {change}; supervisor.main()"
    try:
        return subprocess.Popen([sys.executable, "-c", program, str(lab.folder.path), "--lock", str(lock)],
                                cwd=ROOT, pass_fds=(lock,), start_new_session=True)
    finally:
        os.close(lock)


def test_a_stopped_run_resumes_with_the_next_attempt_and_a_new_end(lab: Lab) -> None:
    lab.write_outcome(Outcome.STOPPED)
    lab.submit("while [ ! -e go ]; do sleep 0.05; done; exit 70")
    wait_until(lambda: lab.run.find("outcome.json", RunOutcome) is None, "the old outcome was gone")
    (lab.workdir / "go").touch()
    lab.wait_for_end()
    assert lab.outcome() is Outcome.DIVERGED
    lab.submit("exit 0")
    lab.wait_for_end()
    assert lab.ends() == [(70, False), (0, False)]
    assert lab.outcome() is Outcome.FINISHED
    assert lab.folder.attempt_log(1).exists()


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
