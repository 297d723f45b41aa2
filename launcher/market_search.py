"""Vast's search, as a rental makes it and as a launch asks for it before: inside SkyPilot's server."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from launcher import rental_log
from launcher.market import Market, Wish
from launcher.vast_answers import silence_told
from launcher.vast_search import not_again, query_of

Query = dict[str, Any]


def query_at(settings: Mapping[str, Any], instance_type: str, region: str, disk_gib: int, *,
             bids: bool) -> Query:
    """The search for a machine of a task; in the region that SkyPilot names if the task insists on it."""
    left_out = not_again(rental_log.read().values(), settings.get("run_id"), datetime.now(UTC))
    query: Query = query_of(settings, instance_type, disk_gib, bids=bids, without=left_out)
    return query | _within(region) if settings.get("in_region") else query


def offers_of(sdk: Any, query: Query, disk_gib: int, *, bids: bool) -> list[dict[str, Any]]:
    """What Vast offers for a search, the cheapest first, as it says it."""
    found: list[dict[str, Any]] = sdk.search_offers(
        query=dict(query), type="bid" if bids else "on-demand", order=_price(bids=bids), no_default=True,
        storage=disk_gib)
    return found


def rentable_of(sdk: Any, query: Query, disk_gib: int, *, bids: bool) -> list[dict[str, Any]]:
    """Of those the ones that can be rented: with no price of its GPUs, no cap could hold."""
    price = "min_bid" if bids else "dph_base"
    return [offer for offer in offers_of(sdk, query, disk_gib, bids=bids) if (offer.get(price) or 0) > 0]


def look_at_market(wish: Wish) -> dict[str, Any]:
    """What there is for a wish now, over all models that SkyPilot knows under the name of its card."""
    from sky.adaptors import vast
    from sky.catalog import vast_catalog

    name, _, number = wish.gpu.partition(":")
    types, _ = vast_catalog.get_instance_type_for_accelerator(name, int(number), region=wish.region)
    models = {"-".join(one.split("-")[:2]): one for one in types or ()}  # of machines of any size
    bids = wish.bid_usd_per_hour is not None
    queries = [query_at(wish.settings, one, wish.region or "", wish.disk_gib, bids=bids)
               for one in models.values()]
    with silence_told():
        return _market(vast.vast(), queries, wish.disk_gib, bids=bids).model_dump(mode="json")


def _market(sdk: Any, queries: list[Query], disk_gib: int, *, bids: bool) -> Market:
    price = _price(bids=bids)

    def found(without: str) -> list[dict[str, Any]]:
        return [offer for query in queries for offer in rentable_of(
            sdk, {name: bounds for name, bounds in query.items() if name not in (price, without)},
            disk_gib, bids=bids)]

    offers = found("")
    if not offers:
        names = list(dict.fromkeys(name for query in queries for name in query if name not in _ASKED_FOR))
        return Market(num_fit=0, num_at_any_price=0,
                      excluded_by=tuple(name for name in names if found(name)))
    most = min((query[price]["lte"] for query in queries if price in query), default=None)
    fit = [offer for offer in offers if most is None or offer[price] <= most]
    return Market(num_fit=len(fit), num_at_any_price=len(offers),
                  from_usd_per_hour=Decimal(str(min(offer[price] for offer in offers))))


# Without these it is another machine, or none that can be rented.
_ASKED_FOR = ("gpu_name", "num_gpus", "rentable", "external", "min_bid", "dph_total")


def _price(*, bids: bool) -> str:
    return "min_bid" if bids else "dph_total"


def _within(region: str) -> Query:
    """The filter for a region of SkyPilot's catalog, `Spain, ES, EU`: its last word is a continent."""
    from vastai.api.query import offers_alias, offers_fields, offers_mult, parse_query
    from vastai.utils import preprocess_search_query

    text = preprocess_search_query(f"georegion=true geolocation={region[-2:]}")[-1]
    return dict(parse_query(text, {}, offers_fields, offers_alias, offers_mult))
