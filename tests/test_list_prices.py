"""What Azure and GCP list, beside what the real SkyPilot would pay by the same catalogs; torn catalogs."""

import os
import shutil
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sky_prices
from sky_catalogs import CATALOGS, run_beside_catalogs

from launcher.list_prices import list_prices
from launcher.priced_offers import Found, PricedOffer

# Cards that GCP sells apart from a machine of any size; dollars made up.
T4_ROWS = ["n1-standard-4,4,15,,,,us-west1,us-west1-a,0.19,0.04",
           "n1-highmem-4,4,26,,,,us-west1,us-west1-a,0.24,0.05",
           "n1-standard-8,8,30,,,,us-west1,us-west1-a,0.38,0.08",
           ",,,T4,1,,us-west1,us-west1-a,0.35,0.14", ",,,T4,1,,us-west1,us-west1-b,0.35,0.14"]
MACHINES = [*(("azure", gpu) for gpu in ("H100:1", "A100-80GB:4", "T4:1")),
            *(("gcp", gpu) for gpu in ("H100:8", "H100:1", "A100-80GB:8", "A100:1", "H200:8", "L4:1", "L4:2",
                                       "RTXPRO6000:1", "T4:1"))]
SEEN_AT = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(CATALOGS, tmp_path / ".sky/catalogs")
    for cloud in ("azure", "gcp"):
        os.utime(catalog(tmp_path, cloud), (SEEN_AT.timestamp(),) * 2)
    return tmp_path


def catalog(home: Path, cloud: str) -> Path:
    return home / f".sky/catalogs/v8/{cloud}/vms.csv"


def cheapest(found: Found, terms: str) -> dict[str, list[Any]]:
    by_region: dict[str, PricedOffer] = {}
    for one in sorted(found.offers, key=lambda one: one.price_usd_per_hour):
        if one.terms == terms:
            by_region.setdefault(one.region, one)
    return {region: [one.instance_type, float(one.price_usd_per_hour)] for region, one in by_region.items()}


def test_every_price_is_the_one_that_skypilot_itself_would_pay(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pays = run_beside_catalogs(sky_prices.__file__, {"machines": MACHINES, "gcp_rows": T4_ROWS}, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    listed = {f"{cloud} {gpu} {terms}": cheapest(list_prices(cloud, [gpu]), terms)
              for cloud, gpu in MACHINES for terms in ("spot", "on-demand")}
    assert listed == pays
    assert pays["gcp T4:1 spot"] == {"us-west1": ["n1-highmem-4", 0.19]}


def test_an_offer_says_what_its_machine_costs_on_demand_and_when_the_list_was_fetched(home: Path) -> None:
    spot = [one for one in list_prices("azure", ["H100:1"]).offers if one.terms == "spot"]
    assert [(one.infra, one.price_usd_per_hour, one.on_demand_usd_per_hour) for one in spot] == [
        ("azure/eastus", Decimal("2.79"), Decimal("6.98")),
        ("azure/southeastasia", Decimal("1.55"), Decimal("7.4"))]
    assert {one.instance_type for one in spot} == {"Standard_NC40ads_H100_v5"}
    assert {(one.seen_at, one.source) for one in spot} == {(SEEN_AT, "SkyPilot's catalog")}


def test_the_zones_of_a_region_are_one_offer_at_the_cheapest(home: Path) -> None:
    with catalog(home, "gcp").open("a") as file:
        for zone, usd in (("b", "6.10"), ("c", "6.50")):
            file.write(f"a3-highgpu-1g,26,234,,,,us-central1,us-central1-{zone},0,0\n"
                       f",,,H100,1,,us-central1,us-central1-{zone},11.06,{usd}\n")
    found = [one for one in list_prices("gcp", ["H100:1"]).offers if one.terms == "spot"]
    assert [(one.region, str(one.price_usd_per_hour)) for one in found] == [("us-central1", "6.10")]


def test_a_card_without_a_number_is_wanted_in_any(home: Path) -> None:
    found = list_prices("gcp", ["H100", "L4:2"]).offers
    assert {one.accelerators for one in found} == {"H100:1", "H100:8", "L4:2"}


def test_a_catalog_that_is_not_here_is_named_with_what_to_type(home: Path) -> None:
    catalog(home, "gcp").unlink()
    assert list_prices("gcp", ["A100:1"]) == Found(down={
        "gcp": "SkyPilot's catalog is not here; fetch it: .venv/bin/sky gpus list A100 --infra gcp "
               "--all-regions"})


def test_a_torn_catalog_is_named_with_what_is_wrong(home: Path) -> None:
    path = catalog(home, "azure")
    path.write_text("InstanceType,AcceleratorName,AcceleratorCount,Price\n")
    assert list_prices("azure", ["H100"]).down["azure"] == (
        f"{path} is no catalog of SkyPilot's (it has no column SpotPrice); delete it, and SkyPilot "
        "fetches it again")
    path.write_bytes(b"\xff\xfe\x00")
    assert "is no catalog of SkyPilot's" in list_prices("azure", ["H100"]).down["azure"]


@pytest.mark.parametrize(("price", "spot", "said", "left"), [
    ("-1", "2.0", "line 13: Price is -1, which nobody can mean", ["spot"]),
    ("7.0", "1e9", "line 13: SpotPrice is 1e9, which nobody can mean", ["on-demand"]),
    ("inf", "2.0", "line 13: Price is inf, which nobody can mean", ["spot"]),
    ("EUR 7", "2.0", "line 13: Price is 'EUR 7', no number of dollars", ["spot"]),
    ("", "2.0", "", ["spot"]), ("7.0", "nan", "", ["on-demand"]), ("7.0", "0", "", ["on-demand"])])
def test_holes_are_passed_over_and_what_nobody_can_mean_is_named(
        home: Path, price: str, spot: str, said: str, left: list[str]) -> None:
    with catalog(home, "azure").open("a") as file:
        file.write(f"Odd,B200,1,96,1900,,{price},{spot},westus,V2\n")
    found = list_prices("azure", ["B200"])
    assert sorted(one.terms for one in found.offers) == sorted(left)
    assert found.problems == (() if not said else (
        f"azure: passed over in SkyPilot's catalog: {said}; a newer one: delete {catalog(home, 'azure')}",))


def test_a_row_without_region_is_named_and_no_more_than_three_are(home: Path) -> None:
    with catalog(home, "azure").open("a") as file:
        file.write("Odd,B200,1,96,1900,,7.0,,,V2\n" * 5)
    (problem,) = list_prices("azure", ["B200:1"]).problems
    assert "line 13: it has no region; line 14: it has no region; line 15: it has no region; and 2" in problem


def test_a_machine_of_no_size_and_one_of_a_thousand_cards_are_named(home: Path) -> None:
    with catalog(home, "gcp").open("a") as file:
        file.write("n1-standard-8,,30,,,,us-west1,us-west1-a,0.38,0.08\n"
                   ",,,T4,1,,us-west1,us-west1-a,0.35,0.14\n")
    with catalog(home, "azure").open("a") as file:
        file.write("Odd,B200,1000,96,1900,,7.0,,westus,V2\n")
    assert "could not convert string to float" in list_prices("gcp", ["T4"]).problems[0]
    assert "num_gpus is 1000, and it should be less than or equal to 64" in list_prices(
        "azure", ["B200"]).problems[0]
