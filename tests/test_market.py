"""What is said of Vast's market before anything is rented: `ldlm` as it is typed, our plugin in a server,
behind it Vast's SDK, behind that the fake of Vast."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from cli_lab import ldlm
from fastapi import FastAPI
from sky_server_lab import free_port
from test_sweep_command import served
from test_vast_market import Lab
from vast_sdk_lab import reached_by_skypilot

pytest.importorskip("vastai")
from sky.adaptors import vast as adaptor  # noqa: E402
from sky.catalog import vast_catalog  # noqa: E402
from sky.server import plugins  # noqa: E402

from launcher.market import Market, Wish  # noqa: E402
from launcher.market_search import look_at_market  # noqa: E402
from launcher.sky_plugin import LdlmPlugin, launch_through  # noqa: E402
from tests.lab.fake_vast import VastServer  # noqa: E402

ROOT = Path(__file__).parents[1]
RECIPE = "tests/lab/vast.yaml"  # trains on H100:2 for $1.60, benchmarks on RTX5090:1 for $0.30
STORE = "s3://bucket/ldlm"
CHEAPEST_5090, SECOND_5090 = 5101, 5102  # from $0.23 and $0.25


class Vast(Lab):
    """The fake of Vast behind a server with our plugin."""

    url: str

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home, self.fake = home, VastServer(self.market, "the-key", 0)

    def ldlm(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """A command of somebody whose SkyPilot server this is."""
        own = {"SKYPILOT_API_SERVER_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1", "HOME": str(self.home),
               "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "LDLM_HOME": str(self.home / "ldlm"),
               "VAST_URL": f"http://127.0.0.1:{self.fake.server_port}"}
        return ldlm(*words, "--infra", "vast", "--store", STORE, env=os.environ | own)

    def refusal(self, *words: str) -> str:
        """What a launch says, which rents nothing."""
        done = self.ldlm("launch", RECIPE, "--yes", "--allow-dirty", *words)
        assert done.returncode == 4, done.stderr
        assert self.market.rows() == []
        return " ".join(done.stderr.split())

    def searches(self) -> list[dict[str, Any]]:
        """Bodies of the searches that Vast was sent."""
        return [one["body"] for one in self.fake.requests if one["path"] == "/api/v0/bundles/"]


@pytest.fixture
def vast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vast]:
    vast = Vast(tmp_path)
    subprocess.run([sys.executable, "-m", "tests.lab.vast_catalog", str(tmp_path)], cwd=ROOT, check=True)
    monkeypatch.setattr(vast_catalog, "_df", pandas.read_csv(tmp_path / "vast/vms.csv"))
    app = FastAPI()
    with reached_by_skypilot(vast.fake, tmp_path, monkeypatch):
        LdlmPlugin().install(plugins.ExtensionContext(app=app))
        for vast.url in served(app, free_port()):
            yield vast


def test_a_plan_shows_what_there_is(vast: Vast) -> None:
    done = vast.ldlm("plan", RECIPE)
    assert ("  market      to train: 3 machines fit, from $1.30/h\n"
            "              to benchmark: 2 machines fit, from $0.23/h\n"
            "  waits       for a machine up to 6 h to train, 1 h to benchmark\n") in done.stdout
    market = json.loads(vast.ldlm("plan", RECIPE, "--json").stdout)["market"]
    assert market["bench"] == {"num_fit": 2, "num_at_any_price": 2, "from_usd_per_hour": "0.23",
                               "excluded_by": []}


def test_a_plan_is_made_without_the_market_where_no_server_answers(vast: Vast) -> None:
    for vast.url, why in ((f"http://me:secret@127.0.0.1:{free_port()}", "does not answer"),
                          (next(served(FastAPI(), free_port())), "has not loaded ldlm's plugin")):
        done = vast.ldlm("plan", RECIPE)
        said = " ".join(done.stdout.split())
        assert done.returncode == 0 and "for a machine up to 6 h" in said
        assert "secret" not in said
        assert re.search(rf"market not (asked|known): SkyPilot's API server .*{why}", said), said


def test_a_bid_below_the_market_is_refused_with_the_bid_that_would_do(vast: Vast) -> None:
    vast.market.price(CHEAPEST_5090, {"min_bid": "0.4301"})
    vast.market.price(SECOND_5090, {"min_bid": "0.6"})
    said = vast.refusal()
    assert ("no machine at Vast fits RTX5090:1 at a bid of $0.30/h: 2 would from $0.44/h on fix: add "
            "--set hardware.bench.0.bid_usd_per_hour=0.44, or try again later") in said
    again = vast.ldlm("launch", RECIPE, "--dry-run", "--set", "hardware.bench.0.bid_usd_per_hour=0.44")
    assert again.returncode == 0 and "no machine at Vast" not in again.stderr
    shown = "to benchmark: no machine fits at this price, 2 from $0.44/h on"
    assert shown in " ".join(vast.ldlm("plan", RECIPE).stdout.split())


def test_a_filter_that_leaves_nothing_is_named(vast: Vast) -> None:
    said = vast.refusal("--set", "hardware.train.0.disk_gib=5000")
    assert "no machine at Vast fits H100:2 now: without disk_space there would be some" in said
    assert "--set hardware.train.0.gpu=NAME:NUMBER" in said


def test_a_market_that_is_empty_is_said_to_be(vast: Vast) -> None:
    for machine in (CHEAPEST_5090, SECOND_5090):
        vast.market.vanish(vast.rent(machine))
    assert "no machine at Vast fits RTX5090:1 now fix: try again later" in vast.refusal()


def test_the_market_is_asked_by_the_search_that_the_rental_makes(vast: Vast) -> None:
    task = vast.ldlm("launch", RECIPE, "--dry-run").stdout
    asked, bench = vast.searches()[-1], list(yaml.safe_load_all(task))[2]
    options, disk = bench["config"]["vast"]["create_instance_kwargs"], bench["resources"]["disk_size"]
    launch_through(lambda *_: "", adaptor.vast)("bench-1-head", "1x-RTX_5090-32-65536", "Spain, ES, EU", disk,
                                                "an/image:1", create_instance_kwargs=options)
    assert vast.searches()[-1] == asked | {"min_bid": {"lte": 0.3}}


def test_on_demand_the_whole_price_counts_and_a_card_that_skypilot_does_not_know_has_no_machine(
        vast: Vast) -> None:
    wish = Wish(gpu="H100:2", disk_gib=40,
                settings={"filters": {"reliability": {"gte": 0.95}}, "usd_per_hour": 3.5})
    found = Market.model_validate_json(json.dumps(look_at_market(wish)))
    # $2.40, 3.10, 3.60 and 4.20, with 40 GB of disk at $0.15 a month on top.
    assert (found.num_fit, found.num_at_any_price) == (2, 4)
    assert float(found.from_usd_per_hour or 0) == pytest.approx(2.40 + 40 * 0.15 / 720, abs=1e-6)
    unknown = look_at_market(wish.model_copy(update={"gpu": "V100:64"}))
    assert Market.model_validate_json(json.dumps(unknown)) == Market(num_fit=0, num_at_any_price=0)
