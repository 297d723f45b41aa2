"""What to type so that a plan succeeds: changes of a recipe, all of them tried before they are said. Pure."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

from pydantic import BaseModel

from launcher.errors import DoesNotFitError, NoOfferError, OverCapError, RecipeError
from launcher.gpu_kinds import gpu_kind
from launcher.offers import Offer
from launcher.recipe import LIMIT_OPTIONS, Recipe
from trainer.config import TrainConfig
from trainer.contract import set_option

# New values by dotted name: `train.micro_batch_size`, `limits.max_cost_usd`, `hardware.train.0.gpu`.
Changes = dict[str, Any]
Refusal = RecipeError | NoOfferError
_Part = TypeVar("_Part", bound=BaseModel)
_MAX_REFUSALS = 5  # one after the other; more would be a circle


def typed(changes: Mapping[str, Any]) -> str:
    """Changes as options of the command line: `--set train.zero_stage=2 --max-cost 12.5`."""
    options = {f"limits.{name}": option for name, option in LIMIT_OPTIONS.items()}
    return " ".join(f"{options[key]} {value:f}" if key in options else set_option(key, value)
                    for key, value in changes.items())


def smaller_micro_batches(config: TrainConfig) -> list[int]:
    """Divisors of the micro-batch, the largest first: they keep the global batch divisible."""
    size = config.micro_batch_size
    return [size // part for part in range(2, size + 1) if size % part == 0]


def changed_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A config with the changes that are about it."""
    for key, value in changes.items():
        if key.startswith("train."):
            config = _changed(config, key.split(".")[1:], value)
        if key == "train.micro_batch_size":  # a size takes the place of `auto`
            config = _changed(config, ["probe_micro_batch"], False)
    return config


def _changed(part: _Part, names: Sequence[str], value: object) -> _Part:
    name, *inner = names
    return part.model_copy(update={name: _changed(getattr(part, name), inner, value) if inner else value})


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with the changes of its training and its limits."""
    limits = {key.removeprefix("limits."): Decimal(value) for key, value in changes.items()
              if key.startswith("limits.")}
    return recipe.model_copy(update={"train": changed_config(recipe.train, changes),
                                     "limits": recipe.limits.changed(limits)})


def changed_offer(offer: Offer, changes: Mapping[str, Any]) -> Offer:
    """An offer of training with the GPUs that the changes name, at the same price unless they bid another."""
    told: dict[str, object] = {}
    for key, value in changes.items():
        kind = key.rpartition(".")[2] if key.startswith("hardware.train.") else ""
        if kind == "gpu":
            name, _, number = value.partition(":")
            memory = offer.gpu_memory_gib if name == offer.gpu else gpu_kind(name).memory_gib
            told |= {"gpu": name, "num_gpus": int(number), "gpu_memory_gib": memory,
                     "seen": (), "seen_elsewhere": None, "least_usd_per_hour": None}
            if offer.listed:  # which is of another machine; a bid stays what it is
                own = {} if offer.bid_usd_per_hour else {"price_usd_per_hour": None}
                told |= {"listed": None, "advice": None, "on_demand_usd_per_hour": None, **own}
        elif kind == "gpu_memory_gib":
            told[kind] = float(value)
        elif kind == "bid_usd_per_hour":
            told |= {kind: value, "price_usd_per_hour": value}
        elif kind == "most_bid_usd_per_hour":  # the dearest counts, for other GPUs have another market
            told |= {"bid_usd_per_hour": value, "price_usd_per_hour": value, "limit_usd_per_hour": value}
    return offer.model_copy(update=told)


# Of a refusal and the changes so far: more changes and a note, or None.
Search = Callable[[Refusal, Changes], tuple[Changes, str] | None]


def what_to_type(error: Refusal, plan_with: Callable[[Changes], object], search: Search) -> str:
    """A fix that leads to a plan: changes against the refusal, and against all that stand behind it.

    Args:
        error: The first refusal.
        plan_with: Plans with changes; raises as this error was.
        search: Looks, once, for what is better than the changes that a refusal itself brings.
    """
    changes, notes, is_searched = Changes(), list[str](), False
    for _ in range(_MAX_REFUSALS):
        more, note = error.changes, error.note
        if isinstance(error, DoesNotFitError | OverCapError) and not is_searched:
            is_searched, (more, note) = True, search(error, changes) or (more, note)
        if all(key in changes and changes[key] == value for key, value in more.items()):
            return _said(changes, notes, (not more and note) or error.fix or error.problem)
        changes.update(more)
        notes.append(note)
        try:
            plan_with(changes)
            break
        except (RecipeError, NoOfferError) as later:
            error = later
    return _said(changes, notes)


def _said(changes: Changes, notes: list[str], beyond: str = "") -> str:
    if not changes:
        return beyond
    said = "; ".join(dict.fromkeys(filter(None, notes)))
    return f"add {typed(changes)}" + (f", and {beyond}" if beyond else "") + (f" ({said})" if said else "")
