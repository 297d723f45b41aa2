"""Asks whoever names prices, all at once: SkyPilot's catalogs, Vast's market; or reads a saved file.

A cloud that is down says why in one line, and the others are there.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from launcher.errors import UsageError
from launcher.list_prices import list_prices
from launcher.offers_file import is_old, read_offers
from launcher.plan import Plan
from launcher.priced_offers import Found
from launcher.recipe import Candidate
from launcher.vast_prices import vast_prices

CLOUDS = ("vast", "azure", "gcp")


def ask_prices(cards: Mapping[str, Collection[str]]) -> Found:
    """What some clouds have of some cards now.

    Args:
        cards: By cloud, of `CLOUDS`: `H100` for any number of it in a machine, `H100:8`.
    """
    asked = {cloud: gpus for cloud, gpus in cards.items() if gpus}
    if not asked:
        return Found()
    with ThreadPoolExecutor(len(asked)) as pool:
        return sum(pool.map(_prices_at, asked, asked.values()), Found())


def _prices_at(cloud: str, gpus: Collection[str]) -> Found:
    return vast_prices(gpus) if cloud == "vast" else list_prices(cloud, gpus)


def prices_of(candidates: Iterable[Candidate], path: str | None, now: datetime) -> Found:
    """What there is for candidates of a recipe; nobody is asked of the user's own machines.

    Args:
        path: Of a file of offers that is read instead; None: whoever names prices is asked.

    Raises:
        UsageError: It is no such file.
    """
    if path is not None:
        return saved_prices(path, now)
    cards: dict[str, dict[str, None]] = {cloud: {} for cloud in CLOUDS}
    for candidate in candidates:
        if candidate.gpu and candidate.cloud in CLOUDS:
            cards[candidate.cloud][candidate.gpu] = None
    return ask_prices(cards)


def price_warnings(plan: Plan, prices: Found) -> Iterator[str]:
    """What a plan says of those who were asked for its prices, where that matters to it."""
    yield from prices.problems
    offers = [offer for document in plan.offers for offer in plan.candidates(document)]
    for cloud, why in prices.down.items():
        if any(offer.cloud == cloud and offer.listed is None for offer in offers):
            yield f"{cloud}: {why}"
    # Where lists lack a price at Azure and GCP the plan says so anyway.
    yield from dict.fromkeys(
        f"{offer.label}: none is listed, so the plan goes by the recipe's word" for offer in offers
        if offer.cloud == "vast" and "vast" not in prices.down and not offer.listed and not offer.too_low)
    unsaid = {one.place: one.unsaid for one in prices.offers if one.unsaid}
    for one in plan.listed:
        if names := unsaid.get(one.place):
            yield (f"{one.accelerators} on {one.infra} says no {', '.join(names)}: counted as the dearest "
                   "that another host asks, else guessed")
        if is_old(one, plan.planned_at):
            yield f"the price of {one.accelerators} on {one.infra} is of {one.seen_at:%Y-%m-%d %H:%M} UTC"


def saved_prices(path: str, now: datetime) -> Found:
    """What a file says. Raises UsageError where it is no file of offers."""
    try:
        return read_offers(Path(path).read_text(encoding="utf-8"), path, now)
    except UnicodeDecodeError as error:
        raise UsageError("is no text", place=path,
                         fix="name a file that `ldlm offers --json` wrote") from error
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", place=path,
                         fix=f"make it: ldlm offers --gpu NAME --json > {path}") from error
