"""What the lab's tests do with runs: the command line as a person types it, and looks at the store."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.run_record import RunRecord, load_record
from tests.lab.vast_client import FakeVast
from tests.s3_server import running_s3_server
from trainer.contract import Env
from trainer.store import open_store

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("LAB", "/tmp/ldlm-lab"))
API_SERVER = "http://127.0.0.1:46680"
SECRET = "a-key-that-nobody-may-see"
LONGEST_S = 1500  # a node installs the trainer's environment anew, which takes minutes on a busy machine


def server_environment() -> dict[str, str]:
    """Where SkyPilot's server and the keys of the store are, for processes that tests start."""
    return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,10.88.0.1", "SKYPILOT_API_SERVER_ENDPOINT": API_SERVER}


@contextmanager
def running_store(address: str = "127.0.0.1") -> Iterator[str]:
    """URL of an S3 store at an address, whose keys and API server every process of the block finds."""
    if not (LAB / "env.sh").exists():
        pytest.skip("the lab is not up: make lab")
    with pytest.MonkeyPatch.context() as patch, running_s3_server(address) as server:
        for name, value in server_environment().items():
            patch.setenv(name, value)
        server.make_bucket("lab")
        yield server.url("lab", "runs")


@contextmanager
def stocked_vast() -> Iterator[FakeVast]:
    """The fake of Vast with its first stock; what a test leaves rented is given back."""
    fake = FakeVast("http://10.88.0.1:8099", (LAB / "sky/.config/vastai/vast_api_key").read_text().strip())
    fake.restock()
    yield fake
    for row in fake.instances():
        fake.destroy(row["id"])


def ldlm(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command, to its end."""
    return subprocess.run([ROOT / ".venv/bin/ldlm", *words], text=True, capture_output=True, check=False,
                          timeout=LONGEST_S)


def record_of(store: str, run_id: str) -> RunRecord:
    """What the store knows of a run."""
    return load_record(open_store(store), run_id)


def status(store: str, run_id: str) -> dict[str, Any]:
    """What `ldlm status` says of a run."""
    done = ldlm("status", run_id, "--store", store, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def has_ended(store: str, run_id: str) -> bool:
    """True once nothing of a run is under way."""
    return bool(status(store, run_id)["status"] == "ended")


def durable(store: str, run_id: str) -> int:
    """The newest step that a node knows to be saved; 0 before any."""
    beats = [files.heartbeat for files in record_of(store, run_id).attempts if files.heartbeat]
    return max((beat.durable_step for beat in beats), default=0)


def trainers(run_id: str) -> list[int]:
    """Processes of a run's nodes, whoever's they are and wherever on this machine they run."""
    mark, found = f"{Env.RUN_ID}={run_id}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if (mark in (folder / "environ").read_bytes().split(b"\0")
                    and b"trainer." in (folder / "cmdline").read_bytes()):
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Look every two seconds until it holds."""
    give_up = time.monotonic() + LONGEST_S
    while not condition():
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(2)
