"""`ldlm offers`: one list over clouds, as a table of 80 columns or more, or for programs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from launcher import console
from launcher.errors import NoOfferError, UsageError
from launcher.offer_list import Wanted
from launcher.offers_file import as_json, is_old
from launcher.price_sources import CLOUDS, ask_prices, saved_prices
from launcher.priced_offers import Found, PricedOffer

_MOST_SHOWN = 30  # on a screen
_COLUMNS = ("GPUs", "where", "terms", "$/h", "per GPU", "on demand", "reliable", "CUDA", "up Mbit/s",
            "$/GB up", "$/GB in", "disk $/GB", "age")
# Columns that a narrow terminal goes without, the first to go first.
_SPARE = ("$/GB in", "disk $/GB", "up Mbit/s", "$/GB up", "CUDA", "per GPU", "reliable", "on demand")
_SORT_SHOWS = {"per-gpu": "per GPU", "reliability": "reliable", "upload": "up Mbit/s"}


def run_offers(wanted: Wanted, path: str | None, *, as_data: bool) -> None:
    """Ask, or read a file, and print.

    Raises:
        UsageError: Nothing that can be asked for, or no file of offers.
        NoOfferError: There are none.
    """
    now = datetime.now(UTC)
    told = saved_prices(path, now) if path else _asked(wanted)
    offers = tuple(wanted.among(told.offers))
    nowhere = [f"{gpu}: no such offer" for gpu in wanted.without(offers)] if offers else []
    found = replace(told, offers=offers, problems=(*told.problems, *nowhere))
    if as_data:
        console.answer_json(as_json(found))
    else:
        show_offers(found, wanted.sort, now)
    if not offers:
        raise _none(told, wanted, path)


def _none(told: Found, wanted: Wanted, path: str | None) -> NoOfferError:
    """Why there is nothing to show: nobody was asked, nothing could be read, or nothing is wanted of it."""
    if path and not told.offers:
        problem = "none of its offers can be used" if told.problems else "it has no offers"
        return NoOfferError(problem, place=path, fix=f"make it anew: ldlm offers --gpu NAME --json > {path}")
    if told.down and not told.offers:
        return NoOfferError(f"no price is known: {', '.join(told.down)} could not be asked",
                            fix="do what is said of each, and repeat it")
    return NoOfferError("there is no such offer", place=path, fix=f"ask for {' or '.join(wanted.narrows)}")


def _asked(wanted: Wanted) -> Found:
    if not wanted.gpus:
        raise UsageError("names no GPU", place="--gpu", fix="add --gpu H100, say; it can be repeated")
    cloud = (wanted.infra or "").partition("/")[0]
    if cloud and cloud not in CLOUDS:
        raise UsageError(f"nobody names prices for {cloud}", place="--infra", fix=f"use {', '.join(CLOUDS)}")
    return ask_prices({one: wanted.gpus for one in CLOUDS if cloud in ("", one)})


def show_offers(found: Found, sort: str, now: datetime) -> None:
    """A table, who did not answer, what was passed over, and what it comes to."""
    shown = found.offers[:_MOST_SHOWN]
    left_out: Sequence[str] = ()
    if shown:
        left_out = _show_table([_row(one, now) for one in shown], _SORT_SHOWS.get(sort))
        console.answer()
    notes = [f"{cloud}: {why}" for cloud, why in found.down.items()]
    if notes := [*notes, *found.problems, *_old(found.offers, now), *_vain_bids(found.offers),
                 *_no_room(left_out)]:
        console.answer_notes(notes)
        console.answer()
    if more := len(found.offers) - len(shown):
        console.answer(f"{more} more: --json has all of them")
    if found.offers:
        console.answer_text(_summary(found.offers))


def _show_table(rows: Sequence[Sequence[str]], sorted_by: str | None) -> Sequence[str]:
    """Without columns that nobody has filled; that which the rows are sorted by always stays. Returns those
    that the terminal has no room for."""
    filled = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
    names = [_COLUMNS[index] for index in filled]
    spare = [names.index(name) for name in _SPARE if name in names and name != sorted_by]
    return console.answer_table(names, [[row[index] for index in filled] for row in rows],
                                right=range(3, len(names)), spare=spare)


def _row(one: PricedOffer, now: datetime) -> list[str]:
    def usd(price: Decimal | None, digits: int = 2) -> str:
        return "" if price is None else f"{price:,.{digits}f}"

    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [one.accelerators, one.infra, one.terms, usd(one.price_usd_per_hour), usd(one.usd_per_gpu_hour),
            usd(one.on_demand_usd_per_hour) if one.can_be_taken else "", number(one.reliability, ".1%"),
            number(one.cuda, ".1f"), number(one.upload_mbit_s, ",.0f"), usd(one.sent_usd_per_gb, 3),
            usd(one.received_usd_per_gb, 3), usd(one.disk_usd_per_gb_month), console.age(one.age(now))]


def _old(offers: Sequence[PricedOffer], now: datetime) -> list[str]:
    """Which prices may have changed since, by cloud: the oldest of each."""
    by_age = sorted(offers, key=lambda one: one.age(now))
    ages = {one.cloud: one.age(now) for one in by_age if is_old(one, now)}
    return [f"{cloud}: prices are up to {console.age(length)} old, and may have changed"
            for cloud, length in ages.items()]


def _no_room(left_out: Sequence[str]) -> list[str]:
    return [f"no room for {', '.join(left_out)}: --json has all, as has a wider terminal"] if left_out else []


def _vain_bids(offers: Sequence[PricedOffer]) -> list[str]:
    """That a machine which can be taken costs no less than the same one that cannot."""
    vain = [one for one in offers if one.can_be_taken and one.on_demand_usd_per_hour is not None
            and one.price_usd_per_hour >= one.on_demand_usd_per_hour]
    if not vain:
        return []
    first, more = vain[0], f", and {len(vain) - 1} more" if vain[1:] else ""
    return [f"{first.accelerators} on {first.infra} ({first.terms}) costs no less than on demand{more}"]


def _summary(offers: Sequence[PricedOffer]) -> str:
    least = min(offers, key=lambda one: one.usd_per_gpu_hour)
    number = f"{len(offers)} offer{'s' * (len(offers) > 1)}"
    disk = "; Vast's are without disk" if any(one.cloud == "vast" for one in offers) else ""
    return (f"{number}, the cheapest GPU ${least.usd_per_gpu_hour:,.2f}/h: {least.accelerators} on "
            f"{least.infra} ({least.terms}){disk}. Nothing was rented")
