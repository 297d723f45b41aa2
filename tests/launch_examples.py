"""A recipe, a machine and a moment that the launcher's tests share; nothing here is looked up."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from launcher.candidates import choose
from launcher.estimate import Done
from launcher.lives import Sighting, with_seen
from launcher.offers import Machine, make_offers, parse_gpus
from launcher.plan import Plan, make_plan
from launcher.recipe import Recipe, checkout_folder, load_recipe
from launcher.render import Task, Templates, render
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

GOLDEN = Path(__file__).parent / "golden"
RECIPE = GOLDEN / "example-recipe.yaml"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
TWO_CORES = Machine(num_cores=2, memory_gib=24.0)
TWO_GPUS = Machine(num_cores=8, memory_gib=64.0, gpus=parse_gpus(
    "NVIDIA H100 80GB HBM3, 81559, 570.86\nNVIDIA H100 80GB HBM3, 81559, 570.86\n"))


def example_recipe(*overrides: str) -> Recipe:
    """The example recipe, changed by `--set` items."""
    return load_recipe(str(RECIPE), overrides)


def example_plan(infra: str | None = None, *overrides: str, history: tuple = (), machine: Machine = TWO_CORES,
                 bench: str | None = None, done: Done | None = None, seen: Sequence[Sighting] = ()) -> Plan:
    """The plan of the example recipe; `bench` names the infra of another bench candidate."""
    recipe = example_recipe(*overrides)
    offers = {document: tuple(with_seen(one, seen) for one in make_offers(found, machine, NOW))
              for document, found in choose(recipe, infra, machine).items()}
    if bench:
        (candidate,) = [found for found in recipe.hardware.bench if found.infra == bench]
        offers[Document.BENCH] = make_offers([candidate], machine, NOW)
    shape = encoder_shape(recipe.train.token_encoder.name, checkout_folder())
    return make_plan(recipe, shape, offers, history, NOW, "example-1", done)


def example_task(infra: str | None = None, *overrides: str, **options) -> Task:
    """The rendered task of the example recipe, for a checkout at /checkout."""
    plan = example_plan(infra, *overrides, **options)
    return render(plan, example_recipe(*overrides), Templates.load(), Path("/checkout"))
