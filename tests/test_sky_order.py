"""The real SkyPilot takes the candidates of a rendered task in their order, at whatever price."""

from pathlib import Path
from typing import Any

import pytest
import sky_order
import yaml
from launch_examples import example_task
from sky_catalogs import CLOUDS, run_beside_catalogs

TASKS = {
    "spot, then on-demand": ("gcp", "train", [
        "{infra: gcp/us-east5, gpu: 'A100-80GB:8', spot: true, price_usd_per_hour: 14.22}",
        "{infra: gcp/us-central1, gpu: 'A100-80GB:8', price_usd_per_hour: 40.55}"]),
    "on-demand, then spot": ("gcp", "train", [
        "{infra: gcp/us-central1, gpu: 'A100-80GB:8', price_usd_per_hour: 40.55}",
        "{infra: gcp/us-central1, gpu: 'A100-80GB:8', spot: true, price_usd_per_hour: 22.08}"]),
    "what the first cloud does not sell": (None, "train", [
        "{infra: gcp, gpu: 'H100:2', spot: true, price_usd_per_hour: 12}",
        "{infra: azure, gpu: 'H100:2', price_usd_per_hour: 17.64}"]),
    "a bid, then another cloud": (None, "train", [
        "{infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.6}",
        "{infra: azure, gpu: 'H100:1', spot: true, price_usd_per_hour: 1.55}",
        "{infra: gcp, gpu: 'A100-80GB:1', spot: true, price_usd_per_hour: 2.76}"]),
    "a bid in two regions": ("vast", "train", [
        "{infra: 'vast/Texas, US, NA', gpu: 'RTX5090:1', bid_usd_per_hour: 0.4}",
        "{infra: 'vast/Spain, ES, EU', gpu: 'RTX5090:1', bid_usd_per_hour: 0.4}"]),
    "a dearer region on gcp": ("gcp", "train", [
        "{infra: gcp, gpu: 'A100-80GB:8', spot: true, price_usd_per_hour: 15}"]),
    "a dearer region on azure": ("azure", "train", [
        "{infra: azure, gpu: 'H100:1', spot: true, price_usd_per_hour: 1.55}"]),
    "two nodes": ("gcp", "train", [
        "{infra: gcp, gpu: 'A100-80GB:8', num_nodes: 2, spot: true, price_usd_per_hour: 28.44}"]),
    "a benchmark": ("azure", "bench", [
        "{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.6}",
        "{infra: gcp, gpu: 'RTXPRO6000:1', spot: true, price_usd_per_hour: 1.80}"]),
}


def document(infra: str | None, name: str, candidates: list[str]) -> str:
    """One document of the example's task, as SkyPilot loads it."""
    azure = "{infra: azure, gpu: 'A100-80GB:1', spot: true, price_usd_per_hour: 1.1}"
    train = ", ".join(candidates if name == "train" else [azure])
    wider = ["limits.max_cost_usd=9999", "train.global_batch_size=64"]
    more = [f"hardware.bench=[{', '.join(candidates)}]"] if name == "bench" else []
    return yaml.safe_dump(example_task(infra, f"hardware.train=[{train}]", *more, *wider).document(name))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tasks = {name: document(*given) for name, given in TASKS.items()}
    return run_beside_catalogs(sky_order.__file__, {"clouds": CLOUDS, "tasks": tasks},
                               tmp_path_factory.mktemp("sky-home"))


def order(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What SkyPilot takes, one after the other; several machine types of one kind and place as one."""
    assert "order" in found, found
    return list(dict.fromkeys((cloud, region, *gpus, *gpus.values(), spot)
                              for cloud, region, gpus, spot in found["order"]))


def test_spot_and_on_demand_of_one_card_are_taken_in_the_order_of_the_plan(asked):
    """By any_of SkyPilot would take the spot machine first in both."""
    assert order(asked["spot, then on-demand"]) == [
        ("gcp", "us-east5", "A100-80GB", 8, True), ("gcp", "us-central1", "A100-80GB", 8, False)]
    assert order(asked["on-demand, then spot"]) == [
        ("gcp", "us-central1", "A100-80GB", 8, False), ("gcp", "us-central1", "A100-80GB", 8, True)]


def test_a_region_that_is_dearer_than_the_plan_pays_is_never_taken(asked):
    """By `max_hourly_cost` alone SkyPilot goes to us-central1 at $22.08, and to eastus at $2.79."""
    assert order(asked["a dearer region on gcp"]) == [("gcp", "us-east5", "A100-80GB", 8, True)]
    assert order(asked["a dearer region on azure"]) == [("azure", "southeastasia", "H100", 1, True)]


def test_the_price_of_a_plan_is_of_all_nodes_and_skypilot_s_of_each(asked):
    assert yaml.safe_load(document(*TASKS["two nodes"]))["resources"]["max_hourly_cost"] == 14.22
    assert order(asked["two nodes"]) == [("gcp", "us-east5", "A100-80GB", 8, True)]


def test_what_no_catalog_has_is_passed_over_for_the_next(asked):
    assert order(asked["what the first cloud does not sell"]) == [("azure", "eastus", "H100", 2, False)]


def test_a_bid_on_vast_comes_before_what_other_clouds_sell_for_less(asked):
    found = order(asked["a bid, then another cloud"])
    clouds = [cloud for cloud, *_ in found]
    assert clouds == sorted(clouds, key=["vast", "azure", "gcp"].index)
    assert set(clouds) == {"vast", "azure", "gcp"}
    assert [(gpu, number) for cloud, _, gpu, number, _ in found if cloud == "gcp"] == [("A100-80GB", 1)]


def test_regions_of_vast_are_taken_in_the_order_of_the_plan(asked):
    assert order(asked["a bid in two regions"]) == [
        ("vast", "Texas, US, NA", "RTX5090", 1, False), ("vast", "Spain, ES, EU", "RTX5090", 1, False)]


def test_a_benchmark_goes_on_to_another_cloud(asked):
    found = order(asked["a benchmark"])
    assert {cloud for cloud, *_ in found[:-1]} == {"vast"}
    assert found[-1] == ("gcp", "us-central1", "RTXPRO6000", 1, True)


@pytest.mark.parametrize("name", TASKS)  # those with spot and on demand have something to decide
def test_managed_jobs_read_one_recovery_for_all_candidates(name, asked):
    decides = ("spot, then on-demand", "on-demand, then spot", "what the first cloud does not sell")
    strategy = "CourseStrategy" if name in decides else "EagerFailoverStrategyExecutor"
    assert asked[name]["recovery"] == [strategy, [75], 0]


def test_a_cloud_that_is_not_enabled_is_passed_over(tmp_path: Path):
    task = document(*TASKS["a bid, then another cloud"])
    (found,) = run_beside_catalogs(sky_order.__file__, {"clouds": ["gcp"], "tasks": {"one": task}},
                                   tmp_path).values()
    assert order(found) == [("gcp", "us-central1", "A100-80GB", 1, True)]
