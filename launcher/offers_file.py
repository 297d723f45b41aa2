"""Offers as a file: what `ldlm offers --json` prints, and `--offers FILE` reads again. Pure.

A plan made from a file is the same whenever and wherever it is made. What is wrong with the whole file is
refused, what is wrong with one offer is passed over and named.
"""

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher.errors import NoOfferError, UsageError
from launcher.priced_offers import Found, PricedOffer, printable, read_offer

VERSION = 1
_KEYS = ("version", "currency", "offers", "problems", "down")
_ANEW = "make it anew: ldlm offers --gpu NAME --json > {}"
# From when on a price is called old, and when nothing is rented by it any more (guesses): a bid on Vast lasts
# minutes to hours, SkyPilot fetches lists every 7 hours, and GCP changes spot prices once a month.
_OLD = {"vast": timedelta(hours=1)}
_OLD_LIST = timedelta(days=1)
_TOO_OLD = {"vast": timedelta(days=1)}
_TOO_OLD_LIST = timedelta(days=7)
_CLOCKS_DIFFER = timedelta(minutes=5)


def as_json(found: Found) -> dict[str, Any]:
    """What the file says."""
    return {"version": VERSION, "currency": "USD", "problems": list(found.problems),
            "down": dict(found.down), "offers": [one.model_dump(mode="json") for one in found.offers]}


def read_offers(text: str, shown: str, now: datetime) -> Found:
    """The offers of a file; a problem for each that is passed over.

    Args:
        shown: The file's name.

    Raises:
        UsageError: It is no such file: torn, of another version, in another currency.
    """
    document = _document(text, shown)
    read = [(f"{shown}: offers[{index}]", read_offer(row, f"{shown}: offers[{index}]"))
            for index, row in enumerate(document["offers"])]
    problems = [f"{one}; passed over" for _, one in read if isinstance(one, str)]
    offers: list[PricedOffer] = []
    for where, one in read:
        if isinstance(one, PricedOffer):
            if one.seen_at > now + _CLOCKS_DIFFER:
                problems.append(f"{where} is seen at {one.seen_at:%Y-%m-%d %H:%M} UTC, which is to come: is "
                                "this machine's clock right? Passed over")
            else:
                offers.append(one)
    down = document.get("down")
    told = down.items() if isinstance(down, dict) else ()
    return Found(*_without_doubles(offers, shown, problems),
                 {printable(name): printable(str(why)) for name, why in told})


def _document(text: str, shown: str) -> dict[str, Any]:
    try:
        document = json.loads(text, parse_float=Decimal, parse_constant=Decimal)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"is no whole JSON: {error}", place=shown, fix=_ANEW.format(shown)) from error
    if not isinstance(document, dict) or not isinstance(document.get("offers"), list):
        raise UsageError("is no list of offers as ldlm writes them", place=shown, fix=_ANEW.format(shown))
    if (version := document.get("version")) != VERSION:
        raise UsageError(f"version is {version!r}, and this ldlm reads {VERSION}", place=shown,
                         fix=_ANEW.format(shown))
    if (currency := document.get("currency")) != "USD":
        raise UsageError(f"currency is {currency!r}, and ldlm counts in USD", place=shown,
                         fix='turn its prices into dollars, and write "currency": "USD"')
    if unknown := sorted(set(document) - set(_KEYS)):
        raise UsageError(f"{printable(unknown[0])} is no field that ldlm knows", place=shown,
                         fix=f"take it out; the fields are {', '.join(_KEYS)}")
    return document


def _without_doubles(offers: Iterable[PricedOffer], shown: str, problems: list[str]
                     ) -> tuple[tuple[PricedOffer, ...], tuple[str, ...]]:
    """Of two that are the same the newer; of two as new the dearer, so that no plan is too cheap."""
    kept: dict[tuple[object, ...], PricedOffer] = {}
    for one in offers:
        other = kept.get(one.place)
        if other is not None:
            problems.append(f"{shown}: {one.accelerators} on {one.infra} ({one.terms}) stands there twice: "
                            "the newer counts, of equally new ones the dearer")
        if other is None or (one.seen_at, one.price_usd_per_hour) > (other.seen_at, other.price_usd_per_hour):
            kept[one.place] = one
    return tuple(kept.values()), tuple(problems)


def is_old(offer: PricedOffer, now: datetime) -> bool:
    """True where a price may have changed since."""
    return offer.age(now) > _OLD.get(offer.cloud, _OLD_LIST)


def too_old(offers: Iterable[PricedOffer], shown: str, now: datetime) -> NoOfferError | None:
    """Why nothing is rented by the prices of a file; None where they are new enough.

    Args:
        offers: Those that the plan is made of.
    """
    for one in offers:
        if one.age(now) > (most := _TOO_OLD.get(one.cloud, _TOO_OLD_LIST)):
            return NoOfferError(f"its price of {one.accelerators} on {one.infra} is of "
                                f"{one.seen_at:%Y-%m-%d %H:%M} UTC, and nothing is rented by prices older "
                                f"than {most / timedelta(days=1):g} d", place=shown,
                                fix=f"{_ANEW.format(shown)}; or leave --offers out")
    return None
