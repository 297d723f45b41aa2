"""A whole run whose controller is another machine, where nothing is prepared: pip makes its environment, the
laptop hands the run over through ssh, a machine is rented from there, the bill has what the controller costs.

The other machine is this one under another home, behind a real sshd (tests/vps.py).
"""

import json
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from vps import Laptop, Vps, vps_and_laptop

from tests.lab.runs import LAB, ROOT, SECRET, durable, record_of, running_store, wait_for
from tests.lab.vast_client import HOST_ADDRESS, FakeVast
from trainer.run_folder import STARTS

pytestmark = pytest.mark.lab
USD_PER_HOUR = Decimal("0.9")  # more than a VPS costs: a run of minutes has to show it
NO_PROXY = f"127.0.0.1,{HOST_ADDRESS}"


@pytest.fixture
def store() -> Iterator[str]:
    with running_store(HOST_ADDRESS) as url, pytest.MonkeyPatch.context() as patch:
        patch.delenv("SKYPILOT_API_SERVER_ENDPOINT")  # the lab's own server has no part in this
        yield url


@pytest.fixture
def vast() -> FakeVast:
    key = (LAB / "sky/.config/vastai/vast_api_key").read_text().strip()
    fake = FakeVast(f"http://{HOST_ADDRESS}:8099", key)
    fake.restock()
    return fake


@pytest.fixture
def places(tmp_path_factory: pytest.TempPathFactory, vast: FakeVast) -> Iterator[tuple[Vps, Laptop]]:
    with vps_and_laptop(tmp_path_factory.mktemp("c")) as (vps, laptop):
        (laptop.home / ".config/vastai/vast_api_key").write_text(vast.key)
        vps.shut_down()
        vps.variables |= {"VAST_URL": vast.url, "NO_PROXY": NO_PROXY,
                          "PYTHONPATH": str(ROOT / "tests/lab/site")}
        for name in (".config/pip/pip.conf", ".pip/pip.conf"):  # without, pip may not reach its packages
            if (Path.home() / name).is_file():
                (vps.home / name).parent.mkdir(parents=True)
                shutil.copy(Path.home() / name, vps.home / name)
        shutil.copytree(LAB / "sky/.sky/catalogs", vps.home / ".sky/catalogs")
        vps.boot()
        yield vps, laptop
        for row in vast.instances():
            vast.destroy(row["id"])


def test_a_run_is_supervised_elsewhere_and_its_bill_says_what_that_costs(
        store: str, vast: FakeVast, places: tuple[Vps, Laptop]) -> None:
    vps, laptop = places

    def typed(*words: str) -> str:
        done = laptop.ldlm(*words, NO_PROXY=NO_PROXY)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    said = typed("controller", "up", "--ssh", vps.address, "--usd-per-hour", str(USD_PER_HOUR), "--yes")
    assert "its API server, started" in said
    assert (vps.home / "ldlm/.venv/ldlm-installed.json").exists()

    run_id = "controller-run"
    typed("launch", "tests/lab/vast.yaml", "--allow-dirty", "--infra", "vast",
                "--store", store, "--run-id", run_id,
          "--set", "train.steps=120", "--yes", "--detach")
    wait_for(lambda: durable(store, run_id) > 0, "a checkpoint")
    refusal = laptop.refused(5, "controller", "down", "--yes", NO_PROXY=NO_PROXY)
    assert f"it has runs: {run_id}" in refusal and f"ldlm stop {run_id}" in refusal
    for folder in (laptop.home / "l", vps.home / ".ldlm"):
        assert not [path for path in folder.rglob("*")
                    if path.is_file() and SECRET.encode() in path.read_bytes()]

    wait_for(lambda: json.loads(typed("status", run_id, "--store", store, "--json"))["status"] == "ended",
             "the end")
    bill = json.loads(typed("cost", run_id, "--store", store, "--json"))
    print(typed("cost", run_id, "--store", store))
    events = record_of(store, run_id).events
    (start,) = [event for event in events if event.kind in STARTS]
    by_hand = USD_PER_HOUR * Decimal((events[-1].at - start.at).total_seconds()) / 3600
    assert events[-1].kind == "ended" and by_hand > Decimal("0.01")
    assert abs(Decimal(bill["usd_by_category"]["controller"]) - by_hand) < Decimal("0.000002")
    assert sum(map(Decimal, bill["usd_by_category"].values())) == Decimal(bill["spent_usd"])

    wait_for(lambda: not vast.instances(), "the machines to be given back")
    assert "ended; removed there: ~/.config/vastai/vast_api_key" in typed("controller", "down", "--yes")
    assert vps.server() is None and not (vps.home / ".config/vastai/vast_api_key").exists()
    wait_for(lambda: not vps.processes(), "the last of SkyPilot's watchers to see that it is over")
