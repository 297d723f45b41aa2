"""The canary as a new user types it, under the real SkyPilot on the fake of Vast.

It takes its machine away through the provider, is resumed on another, benchmarked, and its bill is laid
beside the fake's own record.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.lab.runs import LONGEST_S, ROOT, SECRET, has_ended, record_of, running_store
from tests.lab.vast_charges import LAG_S
from tests.lab.vast_client import FakeVast

pytestmark = pytest.mark.lab
PROVIDER_S = "the bill is the provider's, to the cent"
# No GPU is behind an instance, so its benchmark says that it ran on a CPU.
NOT_SHOWN = ["it is benchmarked on an RTX 5090"]


def typed(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The command in a folder, where it leaves its file."""
    done = subprocess.run([ROOT / ".venv/bin/ldlm", *words], cwd=folder, text=True, capture_output=True,
                          check=False, timeout=LONGEST_S)
    print(done.stdout, done.stderr)
    return done


def claims(said: dict[str, Any], verdict: str) -> list[str]:
    """Those that have a verdict."""
    return [found["claim"] for found in said["verdicts"] if found["verdict"] == verdict]


def test_the_canary_keeps_every_promise_and_a_provider_that_bills_too_much_is_caught(
        store: str, vast: FakeVast, tmp_path: Path) -> None:
    done = typed(tmp_path, "launch", "canary", "--infra", "vast", "--max-cost", "1", "--store", store,
                 "--run-id", "canary-1", "--yes")
    assert done.returncode == 0, done.stderr
    assert "took the machine away, as a cloud does" in done.stderr
    report = tmp_path / "canary-canary-1.json"
    written = report.read_text()
    assert SECRET not in written and vast.key not in written and str(Path.home()) not in written
    read = json.loads(written)
    assert (claims(read, "FAIL"), claims(read, "not shown")) == ([], NOT_SHOWN)

    record = record_of(store, "canary-1")
    assert [(files.attempt.document, files.end.preempted) for files in record.attempts if files.end] == [
        ("train", True), ("train", False), ("bench", False)]
    assert has_ended(store, "canary-1") and vast.instances() == []
    rented = vast.requests("PUT", "/api/v0/asks/")[-3:]
    assert [row["body"]["price"] for row in rented] == [0.10, 0.10, 0.60]
    theirs = [vast.bill()[rental.instance_id]["total_usd"] for rental in record.rentals]
    ours = [found["ours_usd"] for found in read["reconciliation"]["machines"]]
    print("ours", ours, "theirs", theirs)

    vast.surcharge("0.02")
    time.sleep(LAG_S)
    caught = typed(tmp_path, "canary", "canary-1", "--store", store, "--json")
    assert caught.returncode == 1
    assert claims(json.loads(caught.stdout), "FAIL") == [PROVIDER_S]
    assert f"1 of 16 promises were not kept: {PROVIDER_S}" in caught.stderr


def test_on_a_cluster_of_one_s_own_skypilot_takes_the_machine_away(tmp_path: Path) -> None:
    with running_store() as store:
        done = typed(tmp_path, "launch", "canary", "--infra", "slurm/ldlm", "--store", store, "--run-id",
                     "canary-slurm", "--yes", "--set", "train.steps=240", "--set",
                     "train.checkpoint.every_steps=40")
        assert done.returncode == 0, done.stderr
        read = json.loads((tmp_path / "canary-canary-slurm.json").read_text())
        assert [files.end.preempted for files in record_of(store, "canary-slurm").attempts if files.end] == [
            True, False, False]
    assert (claims(read, "FAIL"), claims(read, "not shown")) == ([], [
        "every machine that worked has the card that is paid for",
        "no key of a cloud lies on a rented machine", "no machine costs more than its bid",
        *NOT_SHOWN, PROVIDER_S, "nothing is left rented"])
