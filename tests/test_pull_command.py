"""`ldlm pull` from a bucket, as it is typed: what is shown and asked, and what a killed one has left.

The S3 server is moto's; the trainer's environment is the one that LDLM_TRAIN_PYTHON names, or the checkout's.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_lab import LDLM, ROOT, Terminal, environment, ldlm, refused
from run_stories import every_fate
from s3_gate import Gate, gate_before
from s3_server import KEYS, S3Server, running_s3_server

from launcher.trainer_commands import trainer_python
from trainer.contract import LdlmError
from trainer.store import open_store

NUM_PIECES = 24  # of each of two ranks


def trains_here() -> bool:
    """True where the trainer's environment is made."""
    try:
        return trainer_python().exists()
    except LdlmError:
        return False


pytestmark = pytest.mark.skipif(not trains_here(), reason="no trainer's environment")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3_server() as started:
        yield started


@pytest.fixture
def gate(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with gate_before(server.endpoint) as gate:
        yield gate


@pytest.fixture
def store(server: S3Server, gate: Gate, tmp_path: Path) -> str:
    """Address of a store with a run that has ended and has one checkpoint, of step 400."""
    bucket = server.bucket_of_its_own(tmp_path)
    direct = server.url(bucket, "my runs")
    folder = every_fate(direct).folder
    folder.store.delete(found.key for found in folder.store.objects(folder.key("checkpoints")))
    subprocess.run([trainer_python(), "-m", "tests.stored_checkpoints", direct, "story-1", "400",
                    str(NUM_PIECES)], cwd=ROOT, check=True)
    return direct.replace(server.endpoint, gate.endpoint)


def test_a_killed_pull_goes_on_where_it_was(store: str, gate: Gate, tmp_path: Path) -> None:
    args = ["pull", "story-1", "--store", store, "--to", str(tmp_path / "home"), "--yes", "--json"]
    gate.shut_after = NUM_PIECES
    process = subprocess.Popen([*LDLM, *args], cwd=ROOT, env=environment(), start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert gate.is_shut.wait(100)
    give_up = time.monotonic() + 100
    while gate.num_under_way and time.monotonic() < give_up:
        time.sleep(0.1)
    time.sleep(0.5)  # to the disk
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    drafts = list((tmp_path / "home").rglob("*.part"))
    assert drafts and not (tmp_path / "home" / "story-1" / "recipe.json").exists()
    gate.open()
    done = ldlm(*args)
    assert done.returncode == 0, done.stderr
    pulled = json.loads(done.stdout)
    assert pulled["steps"] == [400]
    shards = [found.num_bytes for found in open_store(store).objects("story-1/checkpoints")
              if found.key.endswith(".bin")]
    # The first had come, but for what was on its way; ranges are read of checkpoints alone.
    assert shards[1] <= gate.read_bytes < shards[1] + shards[0] / 2
    shown = ldlm("status", "story-1", "--store", str(tmp_path / "home"))
    assert "step       400/400 (durable: 400)" in shown.stdout
    cost = [ldlm("cost", "story-1", "--store", where).stdout for where in (store, str(tmp_path / "home"))]
    parts = [part for part in cost[0].split("\n\n") if not part.startswith("  ! ")]  # a bucket bills on
    assert "\n\n".join(parts) == cost[1]


def test_what_would_come_and_its_price_are_shown_and_without_a_yes_nothing_comes(store, tmp_path):
    to = str(tmp_path / "home")
    assert "nobody is here to answer" in refused(1, "pull", "story-1", "--store", store, "--to", to)
    terminal = Terminal("pull", "story-1", "--store", store, "--to", to)
    terminal.wait_for("[y/N]")
    terminal.type("n\n")
    assert terminal.wait() == 1
    shown = terminal.plain()
    assert "checkpoint of step 400" in shown and "what this store asks for it is not known here" in shown
    assert max(map(len, shown.splitlines())) <= 80 + len(to)
    assert not (tmp_path / "home").exists()
