"""What to type so that a plan succeeds: changes of a recipe, all of them tried before they are said. Pure."""

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from launcher.errors import NoOfferError, RecipeError
from launcher.gpu_kinds import gpu_kind
from launcher.offers import Offer
from launcher.recipe import LIMIT_OPTIONS, Recipe
from trainer.config import TrainConfig
from trainer.contract import set_option

# New values by dotted name: `train.micro_batch_size`, `limits.max_cost_usd`, `hardware.train.0.gpu`.
Changes = dict[str, Any]
_MAX_REFUSALS = 5  # one after the other; more would be a circle


def typed(changes: Mapping[str, Any]) -> str:
    """Changes as options of the command line: `--set train.zero_stage=2 --max-cost 12.5`."""
    options = {f"limits.{name}": option for name, option in LIMIT_OPTIONS.items()}
    return " ".join(f"{options[key]} {value:f}" if key in options else set_option(key, value)
                    for key, value in changes.items())


def changed_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A config with the changes that are about it."""
    own = {key.removeprefix("train."): value for key, value in changes.items() if key.startswith("train.")}
    encoder = {key.removeprefix("token_encoder."): own.pop(key) for key in [*own]
               if key.startswith("token_encoder.")}
    return config.model_copy(
        update={**own, "token_encoder": config.token_encoder.model_copy(update=encoder)})


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with the changes of its training and its limits."""
    limits = {key.removeprefix("limits."): Decimal(value) for key, value in changes.items()
              if key.startswith("limits.")}
    return recipe.model_copy(update={"train": changed_config(recipe.train, changes),
                                     "limits": recipe.limits.changed(limits)})


def changed_offer(offer: Offer, changes: Mapping[str, Any]) -> Offer:
    """An offer of training with the GPU that the changes name, at the same price."""
    told: dict[str, object] = {}
    for key, value in changes.items():
        kind = key.rpartition(".")[2] if key.startswith("hardware.train.") else ""
        if kind == "gpu":
            name, _, number = value.partition(":")
            told |= {"gpu": name, "num_gpus": int(number), "gpu_memory_gib": gpu_kind(name).memory_gib}
        elif kind == "gpu_memory_gib":
            told[kind] = float(value)
    return offer.model_copy(update=told)


def what_to_type(error: RecipeError | NoOfferError, plan_with: Callable[[Changes], object]) -> str:
    """A fix that leads to a plan: the error's changes, and those of every refusal behind it.

    Args:
        error: Has changes.
        plan_with: Plans with changes; raises as this error was.
    """
    changes, notes, beyond = Changes(error.changes), [error.note], ""
    for _ in range(_MAX_REFUSALS):
        try:
            plan_with(changes)
            break
        except (RecipeError, NoOfferError) as later:
            more = {key: value for key, value in later.changes.items() if changes.get(key) != value}
            if not more:
                beyond = f", and {later.fix or later.problem}"
                break
            changes.update(more)
            notes.append(later.note)
    said = "; ".join(dict.fromkeys(filter(None, notes)))
    return f"add {typed(changes)}{beyond}" + (f" ({said})" if said else "")
