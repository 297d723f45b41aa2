"""What a canary asks of its provider: our plugin in a server, behind it Vast's SDK and the lab's fake."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from test_sweep_command import ROOT, lab, server
from test_vast_market import Lab

from launcher import rental_log
from launcher.rentals import Price, Rental, Terms

RTX_3060 = 6101
__all__ = ["lab", "server"]  # fixtures
ASK = """
import sys
from launcher.reconcile import charges_path
from launcher.sky_engine import SkyEngine
from trainer.store import open_store
engine = SkyEngine(open_store(f"file://{sys.argv[1]}"))
"""


def asked(server: str, tmp_path: Path, program: str) -> "subprocess.CompletedProcess[str]":
    """What a program with an engine of this server prints."""
    return subprocess.run([sys.executable, "-c", ASK + program, str(tmp_path)], cwd=ROOT, text=True,
                          env=os.environ | {"SKYPILOT_API_SERVER_ENDPOINT": server, "NO_PROXY": "127.0.0.1"},
                          capture_output=True, check=False, timeout=120)


@pytest.fixture
def rented(lab: Lab) -> str:
    """A machine of run `one`, which has trained on it for 1,000 s at $0.0001 a second."""
    lab.now = Decimal(int(datetime.now(UTC).timestamp()) - 1000)
    number = str(lab.rent(RTX_3060, bid="0.36", disk_gb=72))
    began = datetime.fromtimestamp(float(lab.now), UTC)
    price = Price(at=began, usd_per_hour=Decimal("0.36"))
    rental_log.rented(Rental(run_id="one", instance_id=number, machine_id=RTX_3060, rented_at=began,
                             prices=(price,), terms=Terms(disk_gb=72)))
    lab.now += 1000
    return number


def test_the_machine_of_a_run_is_taken_and_no_other(lab, server, rented, tmp_path) -> None:
    before = {str(row["id"]) for row in lab.market.rows()}
    done = asked(server, tmp_path, 'engine.take_machines("one")')
    assert done.returncode == 0, done.stderr
    assert before - {str(row["id"]) for row in lab.market.rows()} == {rented}
    assert rental_log.read()[rented].ended_at is not None


def test_what_vast_has_charged_for_a_run_comes_through_the_server(lab, server, rented, tmp_path) -> None:
    done = asked(server, tmp_path, """
found = engine.rentals("one").rentals
print(engine.charges(charges_path(found)).model_dump_json())
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"charges": [{"instance_id": rented, "usd": "0.104", "usd_by_kind": {
        "gpu": "0.1", "disk": "0.004", "bwd": "0.0", "bwu": "0.0"}}]}


def test_a_provider_that_gives_no_charges_is_an_error_with_a_fix(lab, server, rented, tmp_path) -> None:
    lab.market.charges = lambda query: {"success": False, "msg": "no such range"}
    done = asked(server, tmp_path, """
from launcher.errors import EngineError
try:
    engine.charges(charges_path(engine.rentals("one").rentals))
except EngineError as error:
    print(error)
""")
    assert "SkyPilot's API server answers 500" in done.stdout and "fix: look into" in done.stdout
