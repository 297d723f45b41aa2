"""Every task that a recipe gives for a cloud is loaded by the real SkyPilot, which chooses what was meant."""

from pathlib import Path
from typing import Any

import pytest
from cli_lab import ldlm
from launch_examples import NOW, TWO_CORES
from sky_catalogs import CLOUDS, optimized

from launcher.candidates import choose
from launcher.offers import make_offers
from launcher.plan import make_plan
from launcher.recipe import checkout_folder, list_recipes, load_recipe
from launcher.render import Task, Templates, render
from launcher.vast_search import IMAGE
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

RECIPES = {found.name: load_recipe(found.name) for found in list_recipes()}
CASES = list(dict.fromkeys((name, candidate.infra) for name, recipe in RECIPES.items()
                           for candidate in recipe.hardware.train if candidate.cloud in CLOUDS))
STORE = "s3://bucket/ldlm"
# The one machine that a cloud sells with these cards, by the clouds' own lists.
INSTANCES = {
    "azure": {"A100-80GB:1": "Standard_NC24ads_A100_v4", "A100-80GB:8": "Standard_ND96amsr_A100_v4",
              "H100:8": "Standard_ND96isr_H100_v5", "H200:8": "Standard_ND96isr_H200_v5",
              "T4:1": "Standard_NC4as_T4_v3"},
    "gcp": {"A100-80GB:1": "a2-ultragpu-1g", "A100-80GB:8": "a2-ultragpu-8g", "L4:1": "g2-standard-4",
            "H100:8": "a3-highgpu-8g", "H200:8": "a3-ultragpu-8g"},
    "vast": {"RTX5090:1": "1x-RTX_5090-", "RTX4090:1": "1x-RTX_4090-", "H100:1": "1x-H100_SXM-",
             "H100:8": "8x-H100_SXM-", "H200:1": "1x-H200-", "RTX3060:1": "1x-RTX_3060-"}}


def rendered(name: str, infra: str) -> Task:
    """The task of a recipe on a cloud."""
    recipe = RECIPES[name].model_copy(update={"store": STORE})
    offers = {document: make_offers(found, TWO_CORES, NOW)
              for document, found in choose(recipe, infra, TWO_CORES).items()}
    shape = encoder_shape(recipe.train.token_encoder.name, checkout_folder())
    plan = make_plan(recipe, shape, offers, (), NOW, "run-1")
    return render(plan, recipe, Templates.load(), Path("/checkout"))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What SkyPilot chose for each case, and for what the target's dry runs print."""
    tasks = {f"{name} {infra}": rendered(name, infra).text for name, infra in CASES}
    for cloud in CLOUDS:
        done = ldlm("launch", "qwen3.6-35b-a3b", "--infra", cloud, "--dry-run")  # with no store at all
        assert done.returncode == 0, done.stderr
        tasks[f"dry run {cloud}"] = done.stdout
    return optimized(tasks, tmp_path_factory.mktemp("sky-home"))


def test_every_recipe_that_is_for_a_cloud_names_all_three():
    assert len(CASES) >= 3 * 9
    for name in ("qwen3.6-35b-a3b", "qwen3.6-27b", "smoke", "paper-gpt2"):
        assert {infra for recipe, infra in CASES if recipe == name} == set(CLOUDS)


@pytest.mark.parametrize(("name", "infra"), CASES, ids=lambda value: value)
def test_skypilot_chooses_what_was_planned(name, infra, chosen):
    found = chosen[f"{name} {infra}"]
    documents = rendered(name, infra).documents()[1:]
    assert [one["document"] for one in found] == list(Document), found
    planned = choose(RECIPES[name], infra, TWO_CORES).values()
    for one, document, (candidate, *_) in zip(found, documents, planned, strict=True):
        gpu, _, number = (candidate.gpu or "").partition(":")
        assert one["cloud"] == candidate.cloud
        assert one["gpus"] == {gpu: int(number)}
        assert one["instance"].startswith(INSTANCES[candidate.cloud][candidate.gpu or ""])
        assert (one["spot"], one["disk_gb"], one["num_nodes"]) == (
            candidate.spot, candidate.disk_gib, candidate.num_nodes)
        assert one["images"] == ([f"docker:{IMAGE}"] if candidate.cloud == "vast" else [])
        asked = document["resources"].get("memory", "0+")
        assert one["memory_gb"] >= float(asked.rstrip("+"))


@pytest.mark.parametrize(("cloud", "instance"), [
    ("vast", "1x-H200-24-196608"), ("azure", "Standard_ND96isr_H200_v5"), ("gcp", "a3-ultragpu-8g")])
def test_a_dry_run_of_the_target_prints_what_skypilot_accepts(cloud, instance, chosen):
    train, bench = chosen[f"dry run {cloud}"]
    assert (train["document"], train["cloud"], train["instance"]) == ("train", cloud, instance)
    assert (bench["document"], bench["cloud"], bench["gpus"]) == ("bench", "vast", {"RTX5090": 1})
    assert train["spot"] == (cloud != "vast")


def test_skypilot_takes_the_cheaper_region_of_a_spot_machine(chosen):
    """Of GCP's two regions with eight A100 the one at $14.22."""
    train, _ = chosen["qwen3.6-27b gcp"]
    assert train["region"] == "us-east5"
