"""What Vast has for rent now for a task, as its launch is judged by it. Pure.

SkyPilot's server, which has the account's key, looks: `launcher/market_search.py`. Whoever launches asks it.
"""

from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_UP, Decimal
from typing import Any

from launcher.errors import NoOfferError
from launcher.frozen import Frozen
from launcher.infra import is_within
from launcher.offers import Offer
from launcher.recipe import Candidate, Recipe
from launcher.vast_search import KEY
from trainer.contract import Document, set_option

MARKET = "/plugins/api/ldlm/market"  # where SkyPilot's server tells of it


class Wish(Frozen):
    """What one document of a task would rent at Vast.

    Attributes:
        gpu: SkyPilot's name and number, `H100:2`.
        settings: As the plugin would have them, see `launcher/vast_search.py`.
        region: SkyPilot's; None: anywhere.
        bid_usd_per_hour: None: on demand.
    """

    gpu: str
    settings: dict[str, Any]
    disk_gib: int
    region: str | None = None
    bid_usd_per_hour: float | None = None


class Market(Frozen):
    """What there is for a wish.

    Attributes:
        num_fit: Machines that would be rented.
        num_at_any_price: Those that fit but for their price.
        from_usd_per_hour: Of the cheapest of these: the lowest bid that gets it, or what it costs on demand.
        excluded_by: Where there is none: filters without which there would be some, each by itself.
    """

    num_fit: int
    num_at_any_price: int
    from_usd_per_hour: Decimal | None = None
    excluded_by: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One line for a plan."""
        if self.from_usd_per_hour is None:
            return "no machine fits"
        from_on = f"from ${_cents_up(self.from_usd_per_hour)}/h"
        if self.num_fit == 0:
            return f"no machine fits at this price, {self.num_at_any_price} {from_on} on"
        return f"{self.num_fit} machine{' fits' if self.num_fit == 1 else 's fit'}, {from_on}"


def wishes(documents: Sequence[Mapping[str, Any]]) -> dict[Document, Wish]:
    """What the documents of a task would rent at Vast; those that may go elsewhere, too, are left out."""
    return dict(_wishes(documents))


def _wishes(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Document, Wish]]:
    for document in documents:
        resources = document.get("resources") or {}
        cloud, _, region = str(resources.get("infra") or "").partition("/")
        if cloud != "vast" or document.get("name") not in list(Document):
            continue
        options = document["config"]["vast"]["create_instance_kwargs"]
        yield Document(document["name"]), Wish(
            gpu=resources["accelerators"], settings=options[KEY], disk_gib=resources["disk_size"],
            region=region or None, bid_usd_per_hour=options.get("bid_price"))


def refusal(recipe: Recipe, document: Document, wish: Wish, market: Market, *,
            resuming: bool) -> NoOfferError | None:
    """Why a launch would wait in vain; None: there is a machine for it."""
    if market.num_fit:
        return None
    place = recipe.place("hardware", str(document))
    candidates = recipe.hardware.train if document is Document.TRAIN else recipe.hardware.bench
    where = _candidate(candidates, wish)
    key = f"hardware.{document}.{where}"
    if market.num_at_any_price and market.from_usd_per_hour:
        return _too_cheap(candidates[where], wish, market, place, key, resuming)
    why = f": without {' or '.join(market.excluded_by)} there would be some" if market.excluded_by else ""
    fix = "try again later, or elsewhere: --infra" if resuming else (
        f"try again later; or name another card: {set_option(f'{key}.gpu', 'NAME:NUMBER')}; or --infra")
    return NoOfferError(f"no machine at Vast fits {wish.gpu} now{why}", place=place, fix=fix)


def refusal_by_list(recipe: Recipe, document: Document, offer: Offer, *,
                    resuming: bool) -> NoOfferError | None:
    """The same by what lists and markets had when the plan was made; None: something was within its price."""
    if offer.too_low is None:
        return None
    candidates = recipe.hardware.train if document is Document.TRAIN else recipe.hardware.bench
    where = next((index for index, found in enumerate(candidates)
                  if found.gpu == offer.accelerators and is_within(offer.infra, found.infra)), 0)
    name = _price_name(candidates[where], is_bid=offer.bid_usd_per_hour is not None)
    least = _cents_up(offer.least_usd_per_hour or Decimal(0))
    change = set_option(f"hardware.{document}.{where}.{name}", least)
    return NoOfferError(f"{offer.label}: {offer.too_low}", place=recipe.place("hardware", str(document)),
                        fix="try again later, or elsewhere: --infra" if resuming else
                            f"add {change}, or try again later")


def _price_name(candidate: Candidate, *, is_bid: bool) -> str:
    """What a candidate calls the most that it pays; with `bid: auto` of an hour on demand, too."""
    if candidate.most_bid_usd_per_hour is not None:
        return "most_bid_usd_per_hour"
    return "bid_usd_per_hour" if is_bid else "price_usd_per_hour"


def _too_cheap(candidate: Candidate, wish: Wish, market: Market, place: str, key: str, resuming: bool
               ) -> NoOfferError:
    number, least = market.num_at_any_price, _cents_up(market.from_usd_per_hour or Decimal(0))
    is_bid = wish.bid_usd_per_hour is not None
    ours = wish.settings.get("usd_per_hour")
    change = set_option(f"{key}.{_price_name(candidate, is_bid=is_bid)}", least)
    return NoOfferError(
        f"no machine at Vast fits {wish.gpu} at {'a bid of ' if is_bid else ''}${ours:.2f}/h: "
        f"{number} would from ${least}/h on", place=place,
        fix="try again later, or elsewhere: --infra" if resuming else f"add {change}, or try again later")


def _cents_up(usd: Decimal) -> Decimal:
    """A bid that is rounded down would lose."""
    return usd.quantize(Decimal("0.01"), rounding=ROUND_UP)


def _candidate(candidates: Sequence[Candidate], wish: Wish) -> int:
    """Which candidate of the recipe a wish is of; the first where that cannot be told."""
    return next((index for index, found in enumerate(candidates)
                 if found.cloud == "vast" and found.gpu == wish.gpu), 0)
