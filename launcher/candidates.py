"""Which hardware of a recipe a run may take, and which of it one task can hold. Pure.

SkyPilot goes from one to the next where the first has none, at each recovery again. What a task has once
must be the same on all of them: its nodes, its ranks, one bid or none and one search on Vast.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import NoOfferError, RecipeError
from launcher.fit import Fit, fit
from launcher.infra import is_within
from launcher.offers import Machine, Offer
from launcher.recipe import Candidate, Recipe
from launcher.vast_search import settings_of
from trainer.contract import Document
from trainer.encoder_shape import EncoderShape

_BENCH_GPU = "'RTX5090:1'"
_OWN_CLUSTERS = ("slurm", "k8s")


def choose(recipe: Recipe, infra: str | None, machine: Machine) -> dict[Document, tuple[Candidate, ...]]:
    """The candidates of a run, those first that are wanted most: what `--infra` asks for, else this machine,
    else the recipe's.

    `--infra gcp` takes any region that the recipe names, `--infra gcp/us-central1` also narrows a
    candidate that names none. A local candidate whose GPUs are not here comes last: its plan is for
    another machine. A local run is benchmarked where it trains, and has no other candidates. The benchmark
    of any other may be on everything that can be rented for it, first on what lies where it trains.

    Raises:
        NoOfferError: The recipe has nothing on `infra`; the message names what it has.
    """
    everything = recipe.hardware.train
    train = sorted(everything, key=lambda candidate: not _possible(candidate, machine))
    wanted = [found for candidate in train if (found := _narrowed(candidate, infra or "local"))
              and (infra or _possible(found, machine))]
    chosen = wanted or ([] if infra else train)
    if not chosen:
        has = list(dict.fromkeys(candidate.infra for candidate in everything))
        others = f" (the recipe also has {', '.join(has[1:])})" if has[1:] else ""
        here = ' (--set "hardware.train=[{infra: local}]" takes this machine)' if infra == "local" else ""
        raise NoOfferError(f"recipe {recipe.name} has no hardware on {infra}",
                           place=recipe.place("hardware", "train"),
                           fix=f"use --infra {has[0]}{others}; or add a candidate to hardware.train{here}")
    if chosen[0].is_local:
        return {Document.TRAIN: (chosen[0],), Document.BENCH: (chosen[0],)}
    bench = [candidate for candidate in recipe.hardware.bench if not candidate.is_local]
    bench.sort(key=lambda candidate: not _narrowed(candidate, chosen[0].infra))
    if not bench:
        raise NoOfferError("the recipe benchmarks only on this machine, which a rented run cannot reach",
                           place=recipe.place("hardware", "bench"),
                           fix=f'add --set "hardware.bench=[{{infra: vast, gpu: {_BENCH_GPU}, '
                               'bid_usd_per_hour: 0.60}]"')
    rented = dict.fromkeys(candidate for candidate in chosen if not candidate.is_local)
    return {Document.TRAIN: tuple(rented), Document.BENCH: tuple(dict.fromkeys(bench))}


def _possible(candidate: Candidate, machine: Machine) -> bool:
    return not candidate.is_local or candidate.gpu is None or machine.lacks(candidate.gpu) is None


def _narrowed(candidate: Candidate, infra: str) -> Candidate | None:
    """The candidate if it lies within `infra`, or moved there if `infra` is a region of its cloud."""
    if is_within(candidate.infra, infra):
        return candidate
    is_wider = not candidate.is_local and is_within(infra, candidate.infra)
    return candidate.model_copy(update={"infra": infra}) if is_wider else None


@dataclass(frozen=True)
class Others:
    """What stands behind the offer that a document is planned for.

    Attributes:
        offers: Where SkyPilot goes when that one has none, in this order.
        warnings: Why the rest was left out.
    """

    offers: tuple[Offer, ...] = ()
    warnings: tuple[str, ...] = ()


def others_for_training(recipe: Recipe, shape: EncoderShape | None, fitted: Fit, offers: Sequence[Offer],
                        too_dear: Callable[[Offer], str | None]) -> Others:
    """Of the offers of training those that can stand behind the first.

    Args:
        fitted: How the run lies on the first: its encoder lies there on all of them.
        too_dear: Why the cap forbids an offer; None if it does not.
    """
    placed = recipe.model_copy(update={"train": fitted.config})

    def unfit(offer: Offer) -> str | None:
        try:
            fit(placed, shape, offer)
        except (RecipeError, NoOfferError) as error:
            return error.problem
        return too_dear(offer)

    return _sorted_out(recipe, offers, unfit)


def others_for_benchmark(recipe: Recipe, offers: Sequence[Offer],
                         too_dear: Callable[[Offer], str | None]) -> Others:
    """Of the offers of the benchmark those that can stand behind the first."""
    return _sorted_out(recipe, offers, too_dear)


def _sorted_out(recipe: Recipe, offers: Sequence[Offer], unfit: Callable[[Offer], str | None]) -> Others:
    taken = [offers[0]]
    left_out: Mapping[str, list[str]] = defaultdict(list)
    for offer in offers[1:]:
        reason = _why_not(recipe, taken, offer) or unfit(offer)
        if reason is None:
            taken.append(offer)
        else:
            left_out[reason].append(offer.label)
    return Others(tuple(taken[1:]), tuple(
        f"{', '.join(dict.fromkeys(labels))} cannot stand in for {offers[0].label}: {reason}"
        for reason, labels in left_out.items()))


def _why_not(recipe: Recipe, taken: Sequence[Offer], other: Offer) -> str | None:
    """Why an offer cannot be of one task with those that are taken; None if it can."""
    first = taken[0]
    ranks = [offer.num_gpus or offer.cpu_ranks for offer in (first, other)]
    if other.num_nodes != first.num_nodes:
        return f"a task has one number of nodes, here {first.num_nodes}"
    if (other.gpu is None) != (first.gpu is None) or ranks[0] != ranks[1]:
        return f"a run keeps its number of GPUs, {first.num_gpus} a node" if first.gpu else \
            f"a run keeps its number of ranks, {ranks[0]} a node, without a GPU"
    if other.price_usd_per_hour is None and first.price_usd_per_hour is not None:
        return "its price is not known, so a run that went there could not stop at its cap"
    if other.torch_index != first.torch_index:
        return "a task has one place to take torch from"
    on_vast = [one for one in taken if one.cloud == other.cloud == "vast"]
    if any(one.spot != other.spot for one in on_vast):
        if recipe.limits.deadline_hours is None:
            return "without --deadline a task on vast either bids or rents on demand"
        on_vast = [one for one in on_vast if one.spot == other.spot] or [_of_kind(on_vast[0], other)]
    if any(_wish(one) != _wish(other) for one in on_vast):
        return "a task has one price and one kind of machine on vast"
    is_file = (recipe.store or "").startswith("file:")
    if is_file and first.cloud in _OWN_CLUSTERS and other.cloud not in _OWN_CLUSTERS:
        return "the store is a folder, which a rented machine does not reach"
    return None


def _of_kind(taken: Offer, other: Offer) -> Offer:
    """A machine that is taken, as it would be rented at the price of another and in its way."""
    names = ("spot", "bid_usd_per_hour", "bid_from_usd_per_hour", "price_usd_per_hour", "limit_usd_per_hour")
    return taken.model_copy(update={name: getattr(other, name) for name in names})


def _wish(offer: Offer) -> tuple[object, ...]:
    """What a task tells Vast, once for all its candidates."""
    return offer.accelerators, offer.bid_usd_per_hour, settings_of(offer, None, None)


def other_than_planned(document: Document, first: Offer, others: Sequence[Offer]) -> Iterator[str]:
    """What is not as the plan says where a document runs on one of the others."""
    planned = first.price_usd_per_hour
    for other in others:
        price = other.price_usd_per_hour
        if price is not None and planned is not None and price > planned:
            yield (f"{other.label} costs ${price:,.2f} an hour, and the plan counts the ${planned:,.2f} of "
                   f"{first.label}: there the cap comes sooner")
        if document is Document.BENCH and first.gpu == "RTX5090" != other.gpu:
            yield f"on {other.label} the benchmark's figures are not RTX 5090 figures"
