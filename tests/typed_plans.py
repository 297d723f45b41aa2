"""Plans as they are typed: the words of `ldlm plan`, and what a fix says to add to them."""

import re
import shlex
from decimal import Decimal

from launch_examples import NOW, RECIPE, TWO_CORES

from launcher.candidates import choose
from launcher.errors import NoOfferError, RecipeError
from launcher.estimate import Done
from launcher.offers import Machine, make_offers, parse_gpus
from launcher.plan import Plan, make_plan
from launcher.recipe import load_recipe
from trainer.encoder_shape import encoder_shape

LIMITS = {"--max-cost": "max_cost_usd", "--deadline": "deadline_hours"}
ONE_3090 = Machine(num_cores=16, memory_gib=64.0,
                   gpus=parse_gpus("NVIDIA GeForce RTX 3090, 24576, 570.86"))


def planned(words: list[str], machine: Machine = TWO_CORES, done: Done | None = None) -> Plan:
    """What `ldlm plan` makes of its words, without a store."""
    name, overrides, limits, infra = words[0], [], {}, None
    for option, value in zip(words[1::2], words[2::2], strict=True):
        if option == "--set":
            overrides.append(value)
        elif option == "--infra":
            infra = value
        else:
            limits[LIMITS[option]] = Decimal(value)
    recipe = load_recipe(name, overrides, limits)
    offers = {document: make_offers(found, machine, NOW)
              for document, found in choose(recipe, infra, machine).items()}
    return make_plan(recipe, encoder_shape(recipe.train.token_encoder.name), offers, (), NOW, "run-1", done)


def typed(fix: str) -> list[str]:
    """The options of a fix: everything from `add` or `use` on, up to a remark."""
    options = re.match(r"(?:add|use) ((?:--[a-z-]+ (?:\"[^\"]*\"|[^ ;,(]+) ?)+)", fix)
    assert options, fix
    return shlex.split(options[1])


def fixed(words: list[str], machine: Machine = TWO_CORES) -> Plan | None:
    """The plan after one fix; None where none was needed."""
    try:
        planned(words, machine)
    except (NoOfferError, RecipeError) as error:
        return planned([*words, *typed(error.fix or "")], machine)
    return None


def profile(name: str, gpu: str, *more: str) -> list[str]:
    """A profile on one rented card, under the example's cap of a dollar and deadline of two hours."""
    train = (f"train={{profile: {name}, steps: 1000, data: {{source: 'shards:x'}}, "
             "checkpoint: {every_steps: 10}}")
    card = f"hardware.train=[{{infra: vast, gpu: '{gpu}', bid_usd_per_hour: 1.5}}]"
    return [str(RECIPE), "--infra", "vast", "--set", train, "--set", card,
            *(part for item in more for part in ("--set", item))]
