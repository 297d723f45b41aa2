"""`ldlm sweep` as it is typed: our plugin in a server, behind it Vast's SDK, behind that the fake of Vast."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from launch_examples import example_plan, example_recipe, example_task
from sky_server_lab import free_port
from test_vast_market import H100_CHEAPEST, H100_SECOND, Lab
from vast_sdk_lab import reached_by_skypilot

pytest.importorskip("vastai")
from sky.server import plugins  # noqa: E402

from launcher import rental_log  # noqa: E402
from launcher.rentals import Price, Rental, Terms  # noqa: E402
from launcher.run_record import create_record  # noqa: E402
from launcher.sky_plugin import LdlmPlugin  # noqa: E402
from tests.lab.fake_vast import VastServer  # noqa: E402
from trainer.contract import Document, Outcome  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import open_store  # noqa: E402

HOUR = timedelta(hours=1)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A market with two rented machines: of a task of ours that nobody remembers, and of a stranger."""
    lab = Lab()
    for machine_id, label in ((H100_CHEAPEST, "train-7-0f3a9c-head"), (H100_SECOND, "my-notebook")):
        lab.market.change(lab.rent(machine_id), {"label": label})
    with reached_by_skypilot(VastServer(lab.market, "the-key", 0), tmp_path, monkeypatch):
        yield lab


@pytest.fixture
def server(lab: Lab) -> Iterator[str]:
    """A server with our plugin in it, which is all of SkyPilot's that is asked here."""
    app, port = FastAPI(), free_port()
    LdlmPlugin().install(plugins.ExtensionContext(app=app))
    yield from served(app, port)


def served(app: FastAPI, port: int) -> Iterator[str]:
    app.add_api_route("/api/health", lambda: {"status": "healthy", "version": "0.14.1"})
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    running.should_exit = True
    thread.join()


def sweep(server: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return ldlm(server, "sweep", *words)


def ldlm(server: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", "from launcher.cli import main; main()", *words],
                          env=os.environ | {"SKYPILOT_API_SERVER_ENDPOINT": server, "NO_PROXY": "127.0.0.1"},
                          cwd=ROOT, text=True, capture_output=True, check=False, timeout=120)


def rented(lab: Lab) -> list[str]:
    return [row["label"] for row in lab.market.rows()]


def remember(lab: Lab, run_id: str | None = None, rented_at: datetime | None = None) -> None:
    """What the plugin notes down when it rents a machine: here the one with a name of ours."""
    number, then = str(lab.market.rows()[0]["id"]), rented_at or datetime.now(UTC)
    rental_log.rented(Rental(instance_id=number, machine_id=H100_CHEAPEST, rented_at=then, run_id=run_id,
                             terms=Terms(disk_gb=48), prices=(Price(at=then, usd_per_hour=Decimal("3.1")),)))


def test_what_only_has_a_name_of_ours_may_be_another_server_s_and_stays(lab: Lab, server: str) -> None:
    (shown,) = json.loads(sweep(server, "--json").stdout)
    assert (shown["label"], shown["is_remembered"]) == ("train-7-0f3a9c-head", False)
    done = sweep(server, "--yes")
    assert done.returncode == 0 and "a run of another server may be on it" in done.stderr
    assert rented(lab) == ["train-7-0f3a9c-head", "my-notebook"]


def test_only_what_is_ours_is_shown_and_only_after_a_yes_it_is_given_back(lab: Lab, server: str) -> None:
    remember(lab)
    (shown,) = json.loads(sweep(server, "--json").stdout)
    assert (shown["label"], shown["run_id"], shown["status"]) == ("train-7-0f3a9c-head", None, "running")
    assert float(shown["usd_per_day"]) == pytest.approx(24 * (3.10 + 48 * 0.15 / 720), rel=1e-4)
    refused = sweep(server)
    assert refused.returncode == 1 and "add --yes" in refused.stderr
    assert "train-7-0f3a9c-head" in refused.stdout and "my-notebook" not in refused.stdout
    assert max(map(len, refused.stdout.splitlines())) <= 80
    assert rented(lab) == ["train-7-0f3a9c-head", "my-notebook"]
    done = sweep(server, "--yes")
    assert done.returncode == 0 and done.stdout.endswith("gave back 1 machine, $74.64 a day\n")
    assert rented(lab) == ["my-notebook"]
    assert sweep(server, "--yes").stdout == "no machine is without a run\n"
    assert json.loads(sweep(server, "--json").stdout) == []


def test_a_stopped_machine_is_found_with_what_its_disk_costs_a_day(lab: Lab, server: str) -> None:
    """Outbid and left alone: its GPUs are others', its 48 GB are billed at $0.15 a month."""
    remember(lab)
    number = lab.market.rows()[0]["id"]
    lab.market.change(number, {"state": "stopped"})
    (shown,) = json.loads(sweep(server, "--json").stdout)
    assert (shown["status"], shown["usd_per_day"]) == ("exited", "0.2400")
    said = sweep(server)
    assert re.search(r"exited .* \$0\.24\n", said.stdout) and "74" not in said.stdout
    assert sweep(server, "--yes").stdout.endswith("gave back 1 machine, $0.24 a day\n")
    assert rented(lab) == ["my-notebook"] and len(lab.host.disks) == 1


def test_a_volume_is_told_with_its_price_and_left_alone(lab: Lab, server: str) -> None:
    row = {"id": 9, "label": "my-data", "disk_space": 100.0, "storage_cost": 0.15, "start_date": 1.0}
    lab.market.volumes = [row, {"id": 10, "start_date": 1.0}]
    said = sweep(server, "--yes")
    told = " ".join(said.stderr.split())
    assert said.returncode == 0
    assert "volume V.9 at Vast (my-data), $0.50 a day, is not of ldlm" in told
    assert "volume V.10 at Vast (without a name), price not known, is not of ldlm" in told
    assert "vastai delete volume 10" in told
    assert [one["kind"] for one in json.loads(sweep(server, "--json").stdout)] == ["instance"]
    lab.market.volumes = [{}]  # of a form that nobody has seen
    assert sweep(server, "--json").returncode == 0


def test_a_machine_that_lives_on_after_its_run_has_given_it_back_is_in_the_bill_and_swept(
        lab: Lab, server: str, tmp_path: Path) -> None:
    now, store = datetime.now(UTC), f"file://{tmp_path}/runs"
    folder = RunFolder(open_store(store), "example-1")
    create_record(folder, example_recipe(), example_plan("vast"), example_task("vast"), now - HOUR)
    folder.close(Outcome.FINISHED, now, "done", Document.TRAIN)
    remember(lab, run_id="example-1", rented_at=now - HOUR / 2)
    number = str(lab.market.rows()[0]["id"])
    rental_log.given_back(number, now - HOUR / 4)
    cost = ("cost", "example-1", "--store", store)
    assert "ldlm sweep" not in ldlm(server, *cost).stdout
    (shown,) = json.loads(sweep(server, "--json").stdout)
    assert (shown["instance_id"], shown["run_id"]) == (number, "example-1")
    told = " ".join(ldlm(server, *cost).stdout.split())
    assert f"instance {number} at vast was given back or thought gone, is still there, and billed" in told
    assert sweep(server, "--yes").returncode == 0
    assert rented(lab) == ["my-notebook"] and "ldlm sweep" not in ldlm(server, *cost).stdout


def test_a_machine_that_vast_does_not_end_is_named_with_the_place_to_end_it(lab: Lab, server: str) -> None:
    number = lab.market.rows()[0]["id"]
    remember(lab)
    lab.host.kill = lambda instance_id: 1 / 0  # type: ignore[method-assign]
    said = sweep(server, "--yes")
    assert said.returncode == 5 and f"{number}: " in said.stderr
    assert "1 of 1 machine could not be given back" in said.stderr and "cloud.vast.ai" in said.stderr
    assert len(rented(lab)) == 2


def test_where_vast_does_not_answer_it_is_said_and_clusters_are_shown_all_the_same(
        lab: Lab, server: str) -> None:
    lab.market.rows = lambda: 1 / 0  # type: ignore[assignment]
    said = sweep(server, "--yes")
    assert said.returncode == 5 and said.stdout == "no cluster is without a run\n"
    assert "Vast does not answer: of its machines nothing is known" in said.stderr
    assert "ldlm doctor --infra vast" in said.stderr and "Traceback" not in said.stderr
    listed = sweep(server, "--json")
    assert listed.returncode == 5 and json.loads(listed.stdout) == []


def test_of_a_vast_that_was_not_asked_there_is_no_all_clear(lab: Lab, server: str) -> None:
    (Path.home() / ".config/vastai/vast_api_key").unlink()

    never = sweep(server)
    assert (never.returncode, never.stdout) == (0, "no cluster is without a run\n")
    assert "Vast was not asked: SkyPilot's API server has no key of it, and nothing" in never.stderr

    remember(lab)
    said = sweep(server)
    assert said.returncode == 5 and said.stdout == "no cluster is without a run\n"
    words = " ".join(said.stderr.split())
    assert "Vast could not be asked: SkyPilot's API server, which has rented 1 machine there that" in words
    assert "fix: write the account's API key into this file on the server's machine" in words

    rental_log.given_back(str(lab.market.rows()[0]["id"]), datetime.now(UTC))
    assert sweep(server).returncode == 0, "all that it rented has ended"


def test_a_server_without_the_plugin_and_one_that_does_not_answer_are_told_apart() -> None:
    for url in served(FastAPI(), free_port()):
        said = sweep(url)
        assert said.returncode == 5 and "has not loaded ldlm's plugin" in said.stderr
        assert "fix: ldlm doctor" in said.stderr
    said = sweep(f"http://127.0.0.1:{free_port()}")
    assert said.returncode == 5 and "API server does not answer" in said.stderr
