"""`ldlm offers` as it is typed: catalogs of ours, the lab's fake of Vast behind Vast's SDK, saved files."""

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_lab import check_golden, environment, ldlm
from sky_catalogs import CATALOGS
from test_vast_market import Lab

pytest.importorskip("vastai")
from tests.lab.fake_vast import VastServer  # noqa: E402

KEY = "the-key"
PAPER = ("paper-gpt2", "--store", "s3://bucket/x", "--max-cost", "400")
CARDS = ("--gpu", "H100:1", "--gpu", "RTX5090", "--gpu", "A100-80GB:1")


class Clouds:
    """A home with lists of Azure and GCP that are three hours old, and a key of the fake of Vast."""

    def __init__(self, home: Path) -> None:
        self.home, self.fake = home, VastServer(Lab().market, KEY, 0)
        shutil.copytree(CATALOGS, home / ".sky/catalogs")
        for cloud in ("azure", "gcp"):
            os.utime(self.catalog(cloud), (time.time() - 3 * 3600 - 60,) * 2)
        (home / ".config/vastai").mkdir(parents=True)
        self.key.write_text(KEY)

    @property
    def key(self) -> Path:
        return self.home / ".config/vastai/vast_api_key"

    def catalog(self, cloud: str) -> Path:
        return self.home / f".sky/catalogs/v8/{cloud}/vms.csv"

    def ldlm(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        own = {"HOME": str(self.home), "VAST_URL": f"http://127.0.0.1:{self.fake.server_port}",
               "NO_PROXY": "127.0.0.1", "COLUMNS": "80"}
        kept = {name: value for name, value in environment().items() if name != "VAST_API_KEY"}
        return ldlm(*words, env=kept | own | env)


@pytest.fixture
def clouds(tmp_path: Path) -> Iterator[Clouds]:
    clouds = Clouds(tmp_path)
    threading.Thread(target=clouds.fake.serve_forever, daemon=True).start()
    yield clouds
    clouds.fake.shutdown()
    clouds.fake.server_close()


def test_one_list_over_clouds_fits_eighty_columns(clouds: Clouds) -> None:
    done = clouds.ldlm("offers", *CARDS)
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    check_golden("screen-offers.txt", done.stdout)


def test_what_they_are_sorted_by_is_shown_and_nothing_is_folded(clouds: Clouds) -> None:
    for sort, heading in (("reliability", "reliable"), ("upload", "up Mbit/s"), ("per-gpu", "per GPU")):
        first, _, *rows = clouds.ldlm("offers", *CARDS, "--sort", sort).stdout.split("\n\n")[0].splitlines()
        assert heading in first and len(rows) == 14 and max(map(len, rows)) <= 80


def test_with_one_cloud_down_the_others_are_shown_and_it_is_said_which_and_why(clouds: Clouds) -> None:
    clouds.fake.key = "another"
    clouds.catalog("gcp").unlink()
    done = clouds.ldlm("offers", "--gpu", "A100-80GB:1")
    assert done.returncode == 0
    check_golden("screen-offers-down.txt", done.stdout)


def test_a_saved_list_stands_for_all_who_name_prices_and_nothing_is_rented_by_an_old_one(
        clouds: Clouds, tmp_path: Path) -> None:
    saved = tmp_path / "offers.json"
    listed = clouds.ldlm("offers", *CARDS, "--json").stdout
    saved.write_text(listed)
    num_requests = len(clouds.fake.requests)
    shutil.rmtree(clouds.home / ".sky")
    words = (*PAPER, "--infra", "gcp", "--offers", str(saved))
    assert clouds.ldlm("offers", "--offers", str(saved), "--json").stdout == listed
    plan = json.loads(clouds.ldlm("plan", *words, "--json").stdout)
    assert len(clouds.fake.requests) == num_requests
    train = plan["offers"]["train"]
    assert (train["infra"], train["price_usd_per_hour"], train["on_demand_usd_per_hour"]) == (
        "gcp/us-central1", "2.76", "5.07")
    assert plan["usd"] is not None and plan["offers"]["bench"]["listed"]["price_usd_per_hour"] == "0.23"
    saved.write_text(listed.replace(train["seen_at"][:10], "2026-01-01"))
    said = " ".join(clouds.ldlm("launch", *words, "--dry-run").stderr.split())
    assert "and nothing is rented by prices older than 7 d" in said
    assert "the price of A100-80GB:1 on gcp/us-central1 is of 2026-01-01" in said


def test_a_recipe_s_cloud_is_priced_by_its_list_region_by_region(clouds: Clouds) -> None:
    said = " ".join(clouds.ldlm("plan", *PAPER, "--infra", "gcp").stdout.split())
    assert ("A100-80GB:1 on gcp/us-central1 (spot), $2.76/h, on demand $5.07 (SkyPilot's catalog, 3 h old)"
            ) in said
    assert "on vast (interruptible), $0.60/h, wins from $0.23, on demand $0.51 (Vast, 0 min old)" in said
    assert "bid advised to benchmark on RTX5090:1: " in said
    clouds.catalog("gcp").unlink()
    said = " ".join(clouds.ldlm("plan", *PAPER, "--infra", "gcp").stdout.split())
    assert ("gcp: SkyPilot's catalog is not here; fetch it: .venv/bin/sky gpus list A100-80GB --infra gcp "
            "--all-regions") in said


def test_the_task_pays_no_more_than_the_price_that_its_region_lists(clouds: Clouds) -> None:
    done = clouds.ldlm("launch", *PAPER, "--infra", "azure", "--dry-run")
    assert "infra: azure/eastus\n" in done.stdout and "max_hourly_cost: 1.1\n" in done.stdout
    assert "PRICE_USD_PER_HOUR: '1.1'\n" in done.stdout


def test_what_cannot_be_listed_is_refused_with_what_to_type(clouds: Clouds) -> None:
    for words, code, said in (((), 2, "--gpu: names no GPU"), (("--gpu", "H10"), 2, "did you mean H100?"),
                              (("--gpu", "L4", "--infra", "local"), 2, "nobody names prices for local"),
                              (("--gpu", "L4", "--infra", "gcp", "--region", "mars"), 4, "no such offer"),
                              (("--offers", "/no/such/file"), 2, "cannot be read: No such file")):
        done = clouds.ldlm("offers", *words)
        assert done.returncode == code and said in done.stderr and "fix:" in done.stderr


def test_a_card_that_is_nowhere_is_named_beside_those_that_are_somewhere(clouds: Clouds) -> None:
    words = ("offers", "--gpu", "A100-80GB:1", "--gpu", "H200:3")
    assert "  ! H200:3: no such offer\n" in clouds.ldlm(*words).stdout
    assert json.loads(clouds.ldlm(*words, "--json").stdout)["problems"] == ["H200:3: no such offer"]


def test_a_bid_above_the_price_on_demand_and_a_card_of_the_file_alone_are_told(
        clouds: Clouds, tmp_path: Path) -> None:
    saved = tmp_path / "offers.json"
    bid = {"cloud": "vast", "region": "Utah, US", "gpu": "FOO", "num_gpus": 1, "terms": "bid", "source": "me",
           "price_usd_per_hour": "0.90", "on_demand_usd_per_hour": "0.41", "machine_id": 1,
           "seen_at": "2026-11-01T00:00:00Z"}
    saved.write_text(json.dumps({"version": 1, "currency": "USD", "offers": [bid, bid | {"machine_id": 2}]}))
    done = clouds.ldlm("offers", "--gpu", "FOO", "--offers", str(saved))
    assert (done.returncode, done.stderr) == (0, "")
    said = " ".join(done.stdout.split())
    assert "! FOO:1 on vast/Utah, US (bid) costs no less than on demand, and 1 more" in said
    assert "no room" not in said
    saved.write_text(json.dumps({"version": 1, "currency": "USD", "offers": [
        bid | {"cuda": 12.8, "reliability": 0.99, "upload_mbit_s": 500, "on_demand_usd_per_hour": "1"}]}))
    said = " ".join(clouds.ldlm("offers", "--offers", str(saved), COLUMNS="60").stdout.split())
    assert "costs no less" not in said and "! no room for CUDA, up Mbit/s: --json" in said


def test_nothing_is_shown_for_a_reason_that_can_be_put_right(clouds: Clouds, tmp_path: Path) -> None:
    saved = tmp_path / "offers.json"
    saved.write_text(clouds.ldlm("offers", "--gpu", "A100-80GB:1", "--infra", "gcp", "--json").stdout)
    for words, fix in ((("--spot", "--region", "mars"), "ask for another --region or --on-demand"),
                       (("--gpu", "L4"), "ask for another --gpu"),
                       (("--max-usd-per-hour", "0.02"), "ask for a higher --max-usd-per-hour")):
        assert clouds.ldlm("offers", "--offers", str(saved), *words).stderr == (
            f"error: {saved}: there is no such offer\n  fix: {fix}\n")
    saved.write_text(saved.read_text().replace('"spot"', '"bid"').replace('"on-demand"', '"bid"'))
    assert clouds.ldlm("offers", "--offers", str(saved)).stderr == (
        f"error: {saved}: none of its offers can be used\n"
        f"  fix: make it anew: ldlm offers --gpu NAME --json > {saved}\n")
    shutil.rmtree(clouds.home / ".sky")
    done = clouds.ldlm("offers", "--gpu", "L4", "--infra", "gcp")
    assert (done.returncode, done.stderr) == (4, "error: no price is known: gcp could not be asked\n"
                                                 "  fix: do what is said of each, and repeat it\n")


def test_a_plan_says_who_was_not_asked_though_the_recipe_names_a_price(clouds: Clouds) -> None:
    clouds.key.unlink()
    said = " ".join(clouds.ldlm("plan", *PAPER, "--infra", "vast").stdout.split())
    assert "H100:1 on vast (interruptible), $1.60/h (by the recipe alone)" in said
    assert "! vast: its key is not here; write it to ~/.config/vastai/vast_api_key" in said
