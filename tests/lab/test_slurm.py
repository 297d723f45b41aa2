"""Whole runs through the real SkyPilot: real API server, real managed jobs, real trainer, nodes of a Slurm
cluster without GPUs, a store that speaks S3. `make lab` starts and ends what they need.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from s3_server import running_s3_server  # noqa: E402

from launcher.run_record import RunRecord, load_record  # noqa: E402
from trainer.contract import ExitCode, Outcome  # noqa: E402
from trainer.store import open_store  # noqa: E402

pytestmark = pytest.mark.lab
LAB = Path(os.environ.get("LAB", "/tmp/ldlm-lab"))
SECRET = "a-key-that-nobody-may-see"
API_SERVER = "http://127.0.0.1:46680"
_LONGEST_S = 1500  # a node installs the trainer's environment anew, which takes minutes on a busy machine


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    if not (LAB / "env.sh").exists():
        pytest.skip("the lab is not up: make lab")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1", "SKYPILOT_API_SERVER_ENDPOINT": API_SERVER}
    with pytest.MonkeyPatch.context() as patch, running_s3_server() as server:
        for name, value in keys.items():
            patch.setenv(name, value)
        server.make_bucket("lab")
        yield server.url("lab", "runs")


def ldlm(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".venv/bin/ldlm", *words], text=True, capture_output=True, check=False,
                          timeout=_LONGEST_S)


def launch(store: str, run_id: str, *more: str) -> subprocess.CompletedProcess[str]:
    return ldlm("launch", str(ROOT / "tests/lab/smoke.yaml"), "--infra", "slurm/ldlm", "--store", store,
                "--run-id", run_id, "--set", "train.evaluate_every_steps=60", "--yes", *more)


def record_of(store: str, run_id: str) -> RunRecord:
    return load_record(open_store(store), run_id)


def status(store: str, run_id: str) -> dict[str, Any]:
    done = ldlm("status", run_id, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + _LONGEST_S
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(2)


def processes_of_nodes() -> list[str]:
    """Command lines of trainers that run as the cluster's user."""
    found = subprocess.run(["ps", "-u", "ldlmlab", "-o", "args="], text=True, capture_output=True,
                           check=False)
    return [line for line in found.stdout.splitlines() if "trainer." in line]


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

    def durable() -> int:
        beats = [files.heartbeat for files in record_of(store, "lab-stop").attempts if files.heartbeat]
        return max((beat.durable_step for beat in beats), default=0)

    wait_for(lambda: durable() > 0, "a checkpoint")
    before = durable()
    assert ldlm("stop", "lab-stop", "--store", store).returncode == 0
    wait_for(lambda: status(store, "lab-stop")["status"] == "ended", "the end")
    record = record_of(store, "lab-stop")
    assert record.outcome is not None and record.outcome.outcome is Outcome.STOPPED
    assert record.attempts[-1].end is not None and record.attempts[-1].end.exit_code == ExitCode.RECOVER
    assert record.outcome.step >= before
    wait_for(lambda: not processes_of_nodes(), "the trainers to be gone")
