"""What would fit, or cost much less, than what was asked for: the cheapest change, with its dollars. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from decimal import Decimal

from launcher.advice import Changes, Refusal
from launcher.alternatives import (
    Choice,
    Cost,
    cheapest,
    hardware_changes,
    lighter_changes,
    lighter_together,
    usual_usd_per_hour,
)
from launcher.cost import total
from launcher.errors import NoOfferError, OverCapError, RecipeError
from launcher.estimate import Case, Estimate, estimate_of
from launcher.forecast import forecast
from trainer.contract import Document

# Below this share of the cost a change is worth its while; guesses differ by more than the rest (guess).
_WORTH_IT = Decimal("0.9")
# And below this one it is better than a higher cap, and other GPUs than those asked for: what these cost an
# hour is a guess, too (guess).
_MUCH_CHEAPER = Decimal("0.6")


def better(case: Case, refusal: Refusal) -> tuple[Changes, str] | None:
    """The change to advise against a refusal, with a note on its cost.

    Returns:
        No changes and a whole fix where nothing can be typed; None to do as the refusal says.
    """
    if isinstance(refusal, OverCapError):
        found = _single(case)
        return _with_note(case, *found) if found and _beats_the_cap(case, found[0]) else None
    found = _single(case, refusal.changes) or _several(case, refusal.changes)
    return _with_note(case, *found) if found else _larger_gpu_in_words(case)


def cheaper_choice(case: Case, estimate: Estimate) -> Choice | None:
    """The single change to advise if it costs clearly less than the run as it is; else None."""
    found, now = _single(case), _cost(case, estimate)
    return found[0] if found and found[0].cost.is_below(now, _WORTH_IT) else None


def _single(case: Case, own: Changes | None = None) -> tuple[Choice, Choice | None] | None:
    """The single change to advise, and the one that stands beside it: one on the same GPUs, one on others.

    Args:
        own: What the refusal itself would have changed.
    """
    same = _cheapest(case, [*([own] if own else []), *lighter_changes(case.recipe.train)])
    other = _cheapest(case, _other_hardware(case))
    if same is None:
        return (other, _cheapest(case, lighter_together(case.recipe.train))) if other else None
    if other is None or not other.cost.is_below(same.cost, _WORTH_IT):
        return same, None
    keeps_the_cap = _is_over_cap(case, same) and not _is_over_cap(case, other)
    return (other, same) if keeps_the_cap or other.cost.is_below(same.cost, _MUCH_CHEAPER) else (same, other)


def _several(case: Case, own: Changes) -> tuple[Choice, Choice | None] | None:
    """Several changes at once, for what no single one makes fit."""
    choice = _cheapest(case, [*({**own, **lighter} for lighter in lighter_together(case.recipe.train)), *(
        {**hardware, **lighter} for hardware in _other_hardware(case)
        for lighter in lighter_changes(case.recipe.train))])
    return (choice, None) if choice else None


def _beats_the_cap(case: Case, choice: Choice) -> bool:
    now = _cost(case, estimate_of(case))
    share = _MUCH_CHEAPER if _is_over_cap(case, choice) else _WORTH_IT
    return choice.cost.is_below(now, share)


def _is_over_cap(case: Case, choice: Choice) -> bool:
    return choice.cost.usd is not None and choice.cost.usd > case.recipe.limits.max_cost_usd


def _cheapest(case: Case, changes: Iterable[Changes]) -> Choice | None:
    """By what they take undisturbed, of which there are many; its cost is then what a plan of it will say.

    Where the case's own speed was measured, a change whose speed was not is no choice: a guess beside what
    was measured says nothing.
    """
    is_measured = _is_measured(case)
    choice = cheapest(changes, lambda one: _cost_with(case, one, only_measured=is_measured))
    if choice is None:
        return None
    changed = case.changed(choice.changes)
    told, _ = forecast(changed, estimate_of(changed))
    return replace(choice, cost=replace(choice.cost, usd=told.usd.mid if told.usd else None,
                                        hours=told.hours.mid))


def _is_measured(case: Case) -> bool:
    try:
        return estimate_of(case).speed.is_measured
    except (RecipeError, NoOfferError):
        return False


def _cost_with(case: Case, changes: Changes, *, only_measured: bool) -> Cost | None:
    try:
        changed = case.changed(changes)
        estimate = estimate_of(changed)
    except (RecipeError, NoOfferError):
        return None
    return _cost(changed, estimate) if estimate.speed.is_measured or not only_measured else None


def _cost(case: Case, estimate: Estimate) -> Cost:
    train = case.offers[Document.TRAIN]
    usual = usual_usd_per_hour(train.gpu, train.num_gpus * train.num_nodes) if train.gpu else None
    price = train.price_usd_per_hour or usual or Decimal(1)
    hours = total(part.hours for part in estimate.parts if part.document is Document.TRAIN)
    return Cost(hours.mid * price, estimate.usd.mid if estimate.usd else None, estimate.hours.mid)


def _other_hardware(case: Case) -> Iterator[Changes]:
    """Changes of the hardware that can be typed: nobody adds a GPU to a machine at home."""
    train = case.offers[Document.TRAIN]
    index = case.recipe.candidate_index(train.infra, train.accelerators)
    return iter(()) if index is None or train.is_local else hardware_changes(train, index)


def _with_note(case: Case, choice: Choice, beside: Choice | None) -> tuple[Changes, str]:
    """Changes, their cost, and what else would do."""
    note = choice.cost.words + _about_bid(choice)
    if beside is None:
        return choice.changes, note
    if beside.is_other_hardware:
        return choice.changes, f"{note}; on other GPUs {beside.words}{_about_bid(beside)}"
    return choice.changes, f"{note}; on {case.offers[Document.TRAIN].accelerators} {beside.words}"


def _about_bid(choice: Choice) -> str:
    return ", the bid is a guess" if any(key.endswith("bid_usd_per_hour") for key in choice.changes) else ""


def _larger_gpu_in_words(case: Case) -> tuple[Changes, str] | None:
    choice = _cheapest(case, hardware_changes(case.offers[Document.TRAIN], 0))
    if choice is None:
        return None
    return {}, f"take other GPUs: {choice.changes['hardware.train.0.gpu']} would do (gpu in hardware.train)"
