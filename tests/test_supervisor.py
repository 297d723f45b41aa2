"""A supervised run with real processes: shells that end in every way, and kill -9."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_lab import NODE, RUN_ID, TIMEOUT_S, Lab, has_ended, supervise, wait_until

from launcher.engine import EnginePhase
from launcher.errors import EngineError
from trainer.contract import Outcome
from trainer.run_folder import RunOutcome


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.close()


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


@pytest.mark.parametrize("progress", ["beat:9,$LDLM_ATTEMPT", "save:$LDLM_ATTEMPT"])
def test_a_newer_durable_step_gives_the_retries_back(lab: Lab, progress: str) -> None:
    crashing = f"{NODE} {progress} exit:1"
    lab.submit(f"[ $LDLM_ATTEMPT -lt 4 ] || exit 1\n{crashing}", restarts=1)
    lab.wait_for_end()
    # Durable 1, 2, 3: each crash is a first one. The fourth attempt was the retry of the third.
    assert lab.ends() == [(1, False)] * 4
    assert lab.outcome() is Outcome.LOST
    assert lab.run.read("outcome.json", RunOutcome).step == 3


@pytest.mark.parametrize(("run", "codes"), [("exit 75", [75]), ("exit 3", [3]), ("exit 0", [0])])
@pytest.mark.parametrize("envs", [
    {"LDLM_DEADLINE": "2026-01-01T00:00:00+00:00"},
    {"LDLM_MAX_COST_USD": "1", "LDLM_BENCH_RESERVE_USD": "1"},
])
def test_past_its_limits_nothing_is_started_again(
        lab: Lab, run: str, codes: list[int], envs: dict[str, object]) -> None:
    lab.submit(run, restarts=9, envs=envs)
    lab.wait_for_end()
    assert lab.ends() == [(code, False) for code in codes]
    assert lab.outcome() is (Outcome.FINISHED if run == "exit 0" else Outcome.LIMIT)


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
    assert end is not None and end.reason.startswith("x.json: the node's own word")
    assert lab.outcome() is Outcome.LIMIT


@pytest.mark.parametrize(("code", "says"), [
    (78, "bad_config: train: x.json: the node's own word (exit code 78)"),
    (70, "diverged: train: x.json: the node's own word (exit code 70)"),
    (1, "lost: train failed with exit code 1: x.json: the node's own word; all 0 retries"),
])
def test_why_a_run_failed_is_told_in_the_words_of_its_node(lab: Lab, code: int, says: str) -> None:
    lab.submit(f"{NODE} end:{code} exit:{code}")
    assert lab.wait_for_end().detail.startswith(says)
    assert says.partition(": ")[2] in lab.run.read("outcome.json", RunOutcome).reason


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


def test_a_run_whose_record_is_deleted_stops_itself_and_says_why(lab: Lab) -> None:
    lab.run.write_bytes("recipe.json", b"{}")
    run = "trap 'touch told; exit 75' TERM; echo $$ > node.pid; while :; do sleep 0.05; done"
    supervisor = supervise(lab, run, "supervisor._RECORD_POLL_S = 0.2")
    lab.pid_in("node.pid")
    assert not lab.ends()
    shutil.rmtree(Path(lab.store_url.removeprefix("file://")) / RUN_ID)
    supervisor.wait(TIMEOUT_S)
    assert (lab.workdir / "told").exists()
    assert lab.wait_for_end().detail == (
        f"lost: somebody deleted the run's record: no {lab.store_url}/{RUN_ID}/recipe.json")
    assert lab.run.store.objects(RUN_ID) == []


@pytest.mark.parametrize(("document", "setup", "says"), [
    ("train", "", "waiting for a last checkpoint"),
    ("train", "here", "set-up has nothing to save"),
    ("bench", "", "the benchmark has nothing to save"),
])
def test_a_stop_says_what_it_waits_for(lab: Lab, document: str, setup: str, says: str) -> None:
    wait = "trap '' TERM; echo $$ > node.pid; while :; do sleep 0.05; done"
    texts = {"train": "exit 0", "bench": "exit 0", **({} if setup else {document: wait})}
    lab.engine.submit(lab.task(*(lab.document(name, text, setup=wait if setup else None)
                                 for name, text in texts.items())))
    lab.pid_in("node.pid")
    lab.engine.cancel(RUN_ID)
    wait_until(lambda: lab.engine.state(RUN_ID).phase is EnginePhase.STOPPING, "it was stopping")
    assert lab.engine.state(RUN_ID).detail == says
    lab.engine.cancel(RUN_ID)
    lab.wait_for_end()


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
