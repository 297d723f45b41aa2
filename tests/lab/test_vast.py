"""The real SkyPilot rents from the fake of Vast: what it rents, that it ends, and what it has cost.

`make lab` starts and ends what they need.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from s3_server import KEYS, running_s3_server  # noqa: E402

from tests.lab.vast_client import HOST_ADDRESS, FakeVast  # noqa: E402
from tests.lab.vast_host import DISKS, processes_in  # noqa: E402
from tests.lab.vast_offers import machines  # noqa: E402
from trainer.store import open_store  # noqa: E402

pytestmark = pytest.mark.lab
LAB = Path(os.environ.get("LAB", "/tmp/ldlm-lab"))
_LONGEST_S = 600
_SLACK_S = 1.0  # between what the fake has billed and what a test has seen


@pytest.fixture(scope="module")
def vast() -> FakeVast:
    if not (LAB / "vast/fake.pid").exists():
        pytest.skip("the lab is not up: make lab")
    return FakeVast("http://10.88.0.1:8099", (LAB / "sky/.config/vastai/vast_api_key").read_text().strip())


@pytest.fixture(autouse=True)
def nothing_is_left_rented(vast: FakeVast) -> Iterator[None]:
    vast.restock()
    yield
    left = vast.instances()
    for row in left:
        vast.destroy(row["id"])
    assert not left


def sky(*words: str) -> str:
    """What SkyPilot's command line says, in the lab's environment."""
    done = subprocess.run(["bash", "-c", '. "$0"/env.sh && cd && exec sky "$@"', str(LAB), *words], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=_LONGEST_S)
    assert done.returncode == 0, done.stdout
    return done.stdout


def ssh(address: str, command: str) -> str:
    """What a command prints on an instance that takes the lab's key."""
    words = ["ssh", "-i", str(LAB / "slurm/ssh/id"), "-oStrictHostKeyChecking=no",
             "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", f"root@{address}", command]
    return subprocess.run(words, text=True, capture_output=True, check=True, timeout=60).stdout


class Watch:
    """When the only instance was seen to be what: Unix seconds of the first look at each status."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def seconds(self, status: str, until: str) -> float:
        return self.seen[until] - self.seen[status]


@contextmanager
def watching(vast: FakeVast) -> Iterator[Watch]:
    watch, is_over = Watch(), threading.Event()

    def look() -> None:
        while not is_over.wait(0.1):
            rows = vast.instances()
            status = rows[0]["actual_status"] if rows else "gone" if watch.seen else ""
            if status:
                watch.seen.setdefault(status, time.time())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        time.sleep(0.5)
        is_over.set()
        thread.join()


def rent_one(vast: FakeVast) -> dict[str, Any]:
    """An interruptible RTX 5090, running, that takes the lab's key."""
    public_key = (LAB / "slurm/ssh/id.pub").read_text().strip()
    offer = vast.offers(gpu_name={"eq": "RTX 5090"})[0]
    vast.rent(offer["id"], price=offer["min_bid"], disk=10, onstart=f"mkdir -p ~/.ssh; sleep 100000 &\n"
              f"echo '{public_key}' >> ~/.ssh/authorized_keys")
    return vast.wait_for("running")


def card_of(machine_id: int) -> str:
    return next(one.card.name for one in machines() if one.machine_id == machine_id)


def test_skypilot_rents_an_instance_and_ends_it_and_the_bill_is_right(vast: FakeVast) -> None:
    with watching(vast) as watch:
        printed = sky("launch", "-y", "-c", "zero", "--infra", "vast", "--gpus", "RTX5090:1", "--disk-size",
                      "20", "nvidia-smi; hostname")
        row = vast.wait_for("running")
        sky("down", "-y", "zero")
    assert vast.instances() == [] and not (DISKS / str(row["id"])).exists()
    assert card_of(row["machine_id"]) in printed and f"vast{row['id']}" in printed

    bill = vast.bill()[str(row["id"])]
    assert float(bill["loading_s"]) == pytest.approx(watch.seconds("loading", "running"), abs=_SLACK_S)
    assert float(bill["running_s"]) == pytest.approx(watch.seconds("running", "gone"), abs=_SLACK_S)
    machine = next(one for one in machines() if one.machine_id == row["machine_id"])
    a_second = float(machine.dph_base) / 3600
    assert float(bill["gpu_usd"]) == pytest.approx(watch.seconds("running", "gone") * a_second,
                                                   abs=_SLACK_S * a_second)
    hours = watch.seconds("loading", "gone") / 3600
    storage_usd_per_hour = float(machine.storage_cost) * 20 / 720
    assert float(bill["storage_usd"]) == pytest.approx(hours * storage_usd_per_hour,
                                                       abs=_SLACK_S * storage_usd_per_hour / 3600)
    by_the_byte = bill["bytes_up"] * machine.inet_up_cost + bill["bytes_down"] * machine.inet_down_cost
    assert 0 < Decimal(bill["network_usd"]) == pytest.approx(by_the_byte / 10**9, abs=Decimal("1e-9"))


def test_an_outbid_instance_is_dead_to_its_last_process_and_its_disk_is_kept(vast: FakeVast) -> None:
    row = rent_one(vast)
    number, address = row["id"], row["ssh_host"]
    namespace = ssh(address, "echo kept > /opt/kept; setsid sleep 100000 > /dev/null 2>&1 & "
                             "readlink /proc/self/ns/pid").strip()
    assert len(processes_in(namespace)) >= 3  # sshd and both sleeps

    vast.outbid(number)
    assert processes_in(namespace) == []
    assert vast.wait_for("exited")["intended_status"] == "running"
    vast.price(row["machine_id"], bid_price="1.00")
    vast.wait_for("running")
    assert ssh(address, "cat /opt/kept") == "kept\n"
    namespace = ssh(address, "readlink /proc/self/ns/pid").strip()
    vast.vanish(number)
    assert processes_in(namespace) == [] and vast.instances() == []
    assert not (DISKS / str(number)).exists()


def test_an_instance_reaches_the_store_by_the_url_that_this_machine_uses(
        vast: FakeVast, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    row = rent_one(vast)
    with running_s3_server(HOST_ADDRESS) as server:
        server.make_bucket("lab")
        open_store(server.url("lab", "runs")).put("hello", b"from this machine")
        client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
        signed = client.generate_presigned_url("get_object", {"Bucket": "lab", "Key": "runs/hello"})
        assert ssh(row["ssh_host"], f"curl -sf '{signed}'") == "from this machine"
    vast.destroy(row["id"])
