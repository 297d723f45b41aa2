"""What SkyPilot's answers mean. tests/lab/ asks the real one."""

import io
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli_lab import environment, refused
from run_stories import NOON, Story, at

from launcher.engine import EnginePhase, EngineState
from launcher.removing import check_not_alive, find_doomed, remove
from launcher.run_record import ending_words, load_record, status_of
from launcher.settle import settle
from launcher.sky_engine import sky_sdk
from launcher.sky_jobs import job_state
from trainer.contract import Document, Name, Outcome
from trainer.run_folder import RunFolder, RunOutcome


def row(status: str, task_id: int = 0, **more: object) -> dict[str, object]:
    return {"job_id": 3, "task_id": task_id, "task_name": ("train", "bench")[task_id], "job_name": "run",
            "status": status, "recovery_count": 0, "failure_reason": None, "cloud": "Vast",
            "region": "Spain, ES, EU"} | more


def named_alone(document: str) -> str:
    """The name that SkyPilot itself gives to the only task of a job of this test."""
    dag_utils = pytest.importorskip("sky.utils.dag_utils")
    dag = dag_utils.load_chain_dag_from_yaml_str(f"name: run\n---\nname: {document}\nrun: exit 0\n")
    dag_utils.maybe_infer_and_fill_dag_and_task_names(dag)
    return str(dag.tasks[0].name)


@pytest.mark.parametrize(("rows", "phase", "document", "detail"), [
    ([], EnginePhase.NONE, None, ""),
    ([row("PENDING", cloud=None, region=None), row("PENDING", 1)], EnginePhase.RUNNING, Document.TRAIN,
     "train: PENDING"),
    ([row("RUNNING", recovery_count=2), row("PENDING", 1)], EnginePhase.RUNNING, Document.TRAIN,
     "train: RUNNING on Vast, recovered 2 times"),
    ([row("SUCCEEDED"), row("STARTING", 1)], EnginePhase.RUNNING, Document.BENCH,
     "bench: STARTING on Vast"),
    ([row("SUCCEEDED"), row("SUCCEEDED", 1)], EnginePhase.ENDED, Document.BENCH,
     "bench: SUCCEEDED on Vast"),
    ([row("STARTING", task_name=named_alone("bench"))], EnginePhase.RUNNING, Document.BENCH,
     "bench: STARTING on Vast"),
    ([row("RUNNING", cloud="GCP", region="us-east5")], EnginePhase.RUNNING, Document.TRAIN,
     "train: RUNNING on GCP/us-east5"),
    ([row("RUNNING", task_name="mine")], EnginePhase.RUNNING, None, "mine: RUNNING on Vast"),
    ([row("CANCELLING"), row("PENDING", 1)], EnginePhase.STOPPING, Document.TRAIN,
     "train: CANCELLING on Vast"),
    ([row("FAILED", failure_reason="exit code 78"), row("CANCELLED", 1)], EnginePhase.ENDED, Document.TRAIN,
     "train: FAILED on Vast: exit code 78"),
    ([row("FROBNICATED"), row("PENDING", 1)], EnginePhase.UNKNOWN, Document.TRAIN,
     "train: FROBNICATED on Vast"),
])
def test_a_pipeline_is_where_its_first_unfinished_task_is(rows, phase, document, detail) -> None:
    state = job_state(rows)
    assert (state.phase, state.document, state.detail) == (phase, document, detail)


def test_a_job_that_ldlm_has_ended_says_how_and_why_in_words_of_ldlm() -> None:
    said = "Cancellation requested ldlm ends it (no_capacity): no machine within 1 h"
    for status in ("CANCELLING", "CANCELLED"):
        found = job_state([row("SUCCEEDED"), row(status, 1, details=said)])
        assert (found.document, found.detail, found.outcome) == (
            Document.BENCH, "no machine within 1 h", Outcome.NO_CAPACITY)
    by_its_user = job_state([row("CANCELLED", details="Cancellation requested by user me (request ID: 1)")])
    assert (by_its_user.detail, by_its_user.outcome) == ("train: CANCELLED on Vast", None)


def test_every_status_of_the_real_skypilot_has_a_meaning() -> None:
    state = pytest.importorskip("sky.jobs.state")
    for status in state.ManagedJobStatus:
        found = job_state([row(status.value)])
        assert found.phase is not EnginePhase.UNKNOWN
        assert (found.phase is EnginePhase.ENDED) == status.is_terminal()
        assert found.word == status.value


def test_a_run_that_skypilot_recovers_is_recovering_whatever_its_last_node_wrote(tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    story.beat(1, 5, step=3, durable=2)
    record = load_record(story.folder.store, story.folder.run_id)
    assert status_of(record, EngineState(EnginePhase.RUNNING, word="RECOVERING"), NOON) == "recovering"


def test_nodes_of_a_rented_run_say_that_they_live_where_skypilot_cannot_be_asked(tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store")
    story.folder.add_event("resumed", at(1), infra="vast")
    story.attempt(1, 2)
    story.beat(1, 50, step=3, durable=2, train=5)
    record, silent = load_record(story.folder.store, story.folder.run_id), EngineState(EnginePhase.UNKNOWN)
    assert record.infra == "vast"
    assert status_of(record, silent, at(60)) == "running"
    assert status_of(record, silent, at(3600)) == "unknown"


def test_a_damaged_record_can_be_deleted(tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store")
    story.folder.write_bytes("plan.json", b"torn")
    check_not_alive(story.folder)
    remove(story.folder, find_doomed(story.folder, everything=True))
    assert not story.folder.exists()


@pytest.mark.parametrize(("word", "document", "outcome", "bench"), [
    ("CANCELLED", Document.TRAIN, Outcome.STOPPED, None),
    ("FAILED_NO_RESOURCE", Document.TRAIN, Outcome.NO_CAPACITY, None),
    ("FAILED_CONTROLLER", Document.TRAIN, Outcome.LOST, None),
    ("FAILED_NO_RESOURCE", Document.BENCH, Outcome.NO_CAPACITY, "no_capacity")])
def test_what_no_node_could_write_is_written_by_whoever_looks(word, document, outcome, bench,
                                                              tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    story.beat(1, 5, step=3, durable=2)
    folder, now = RunFolder(story.folder.store, story.folder.run_id), datetime.now(UTC)
    state = EngineState(EnginePhase.ENDED, document, detail=f"{document}: {word}", word=word)
    assert settle(folder, load_record(folder.store, folder.run_id), state, now)
    record = load_record(folder.store, folder.run_id)
    assert record.has_ended and record.outcome.outcome is outcome
    assert record.events[-1].detail.get("bench") == bench
    end = record.attempts[-1].end
    assert (end.at, end.exit_code, end.preempted) == (at(5), None, word == "FAILED_NO_RESOURCE")
    assert not settle(folder, record, state, now)


@pytest.mark.parametrize(("document", "words"), [
    (Document.TRAIN, "no machine to be had (no machine within 1 h): ldlm resume one, or elsewhere: "
                     "ldlm resume one --infra CLOUD"),
    (Document.BENCH, "trained; benchmark found no machine (no machine within 1 h): ldlm bench one")])
def test_a_run_that_waited_in_vain_says_what_starts_it_again(document, words, tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store", "one")
    if document is Document.BENCH:
        story.folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.FINISHED, at=NOON, step=9, reason="done"))
    state = EngineState(EnginePhase.ENDED, document, detail="no machine within 1 h", word="CANCELLED",
                        outcome=Outcome.NO_CAPACITY)
    record = load_record(story.folder.store, story.folder.run_id)
    assert settle(story.folder, record, state, at(9))
    assert ending_words(load_record(story.folder.store, "one")) == words


def test_a_run_that_is_being_handed_over_is_not_closed_by_the_end_of_its_job_before(tmp_path: Path) -> None:
    """It was resumed a minute after that end; where SkyPilot has no newer job after ten, it has not begun."""
    story = Story(f"file://{tmp_path}/store")
    story.outcome(Outcome.STOPPED, 60, 3)
    story.folder.add_event("resumed", at(120))
    record = load_record(story.folder.store, story.folder.run_id)
    before = EngineState(EnginePhase.ENDED, word="CANCELLED", ended_at=at(60))
    assert not settle(story.folder, record, before, at(125))
    assert settle(story.folder, record, before, at(800))
    newer = EngineState(EnginePhase.ENDED, word="CANCELLED", ended_at=at(130))
    assert settle(story.folder, record, newer, at(131))


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    story = Story(f"file://{tmp_path}/store")
    record = load_record(story.folder.store, story.folder.run_id)
    for phase in (EnginePhase.RUNNING, EnginePhase.STOPPING, EnginePhase.UNKNOWN, EnginePhase.NONE):
        assert not settle(story.folder, record, EngineState(phase), NOON)
    assert load_record(story.folder.store, story.folder.run_id).outcome is None


def test_an_api_server_that_does_not_answer_is_named_and_nothing_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("sky.jobs.state")
    asked = {"SKYPILOT_API_SERVER_ENDPOINT": "http://127.0.0.1:1", "HOME": str(tmp_path)}
    store = f"file://{tmp_path}/store"
    said = refused(5, "launch", "tests/lab/smoke.yaml", "--allow-dirty", "--infra", "slurm/x", "--set",
                   "hardware.train.0.infra=slurm/x", "--store", store, "--yes", env=environment(**asked))
    assert "http://127.0.0.1:1: SkyPilot's API server does not answer" in said
    assert "ldlm init --api-server URL" in said and "SKYPILOT_API_SERVER_ENDPOINT=URL" in said
    assert list((tmp_path / "store").rglob("*")) == []


def test_skypilots_own_lines_go_to_stderr_and_what_others_listen_with_stays() -> None:
    logging.getLogger("sky").addHandler(other := logging.StreamHandler(heard := io.StringIO()))
    try:
        with sky_sdk(with_server=False) as sky:
            sky.sky_logging.init_logger("sky.test").warning("a line of SkyPilot's")
        own = [handler for handler in logging.getLogger("sky").handlers
               if isinstance(handler, sky.sky_logging.EnvAwareHandler)]
    finally:
        logging.getLogger("sky").removeHandler(other)
    assert "a line of SkyPilot's" in heard.getvalue()
    assert own and all(handler.stream is sys.stderr for handler in own)
