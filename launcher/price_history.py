"""List prices as they were, by machine type and region, and which windows are replayed at which of them."""

import csv
import gzip
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from launcher.errors import UsageError
from launcher.policy import Setting
from launcher.priced_offers import HIGHEST_USD_PER_HOUR
from launcher.traces import Trace

LOWEST_USD_PER_HOUR = 0.001  # of a machine with a GPU (guess); keeps what is divided by dollars finite
_COLUMNS = ("date", "machine_type", "region", "on_demand_usd_per_hour", "spot_usd_per_hour")


@dataclass(frozen=True)
class Price:
    """What held from a day on, until the next price.

    Attributes:
        day: First day.
    """

    day: date
    on_demand_usd_per_hour: float
    spot_usd_per_hour: float


class Period(NamedTuple):
    """Days on which a price held.

    Attributes:
        until: First day of the price that followed; None: the history knows of none.
    """

    first: date
    until: date | None

    @property
    def words(self) -> str:
        """`2025-01-01 to 2025-04-30`, the last day included, or `2025-05-01 on`."""
        return f"{self.first} to {self.until - timedelta(days=1)}" if self.until else f"{self.first} on"


class Part(NamedTuple):
    """What is replayed at one price.

    Attributes:
        groups: Windows, each with its places that are open at once.
        periods: When the history has that price, oldest first; empty without a history.
    """

    setting: Setting
    groups: list[Sequence[Trace]]
    periods: list[Period]


def priced(setting: Setting, groups: Sequence[Sequence[Trace]], path: Path | None, machine_type: str | None,
           region: str | None) -> Iterator[Part]:
    """Settings and the windows that are replayed in each: one without a history, else one per price.

    No public data has both availability and prices of one place, so the windows are laid over the history in
    the order of the file: each price gets so many as it held days.

    Args:
        groups: Windows, each with its places that are open at once; none is split.

    Raises:
        UsageError: The history cannot be read, has no such type and region, or is not there to choose from.
    """
    if path is None:
        if machine_type is not None or region is not None:
            raise UsageError("a machine type and a region choose from a history of prices, and none is given",
                             place="--machine-type, --region", fix="--prices FILE, or leave them out")
        yield Part(setting, list(groups), [])
        return
    prices = read_prices(path, machine_type, region)
    ends = [price.day for price in prices[1:]] + [prices[-1].day + timedelta(days=30)]
    span = ends[-1] - prices[0].day
    bounds = [0, *(round(len(groups) * (end - prices[0].day) / span) for end in ends)]
    parts: dict[Setting, Part] = {}  # a price may come back
    for price, until, (begin, end) in zip(prices, [*ends[:-1], None], pairwise(bounds), strict=True):
        if end > begin:
            then = replace(setting, spot_usd_per_hour=price.spot_usd_per_hour,
                           on_demand_usd_per_hour=price.on_demand_usd_per_hour)
            part = parts.setdefault(then, Part(then, [], []))
            part.groups.extend(groups[begin:end])
            part.periods.append(Period(price.day, until))
    yield from parts.values()


def read_prices(path: Path, machine_type: str | None, region: str | None) -> list[Price]:
    """The prices of a machine type in a region, oldest first, without those that repeat the one before.

    A month that is missing changes nothing: the price before it holds.

    Raises:
        UsageError: Names the line that cannot be, or what there is to choose from.
    """
    found: dict[date, Price] = {}
    names: set[tuple[str, str]] = set()
    for number, row in _rows(path):
        name = (row["machine_type"], row["region"])
        if all(name):
            names.add(name)
        if name == (machine_type, region):
            price = _price(row, f"{path}, line {number}")
            if found.setdefault(price.day, price) != price:
                raise UsageError(f"a second price of {price.day}, unlike the first",
                                 place=f"{path}, line {number}", fix="leave one of them out")
    if not found:
        raise _not_found(path, machine_type, region, names)
    days = sorted(found)
    prices = [found[days[0]]]
    for day in days[1:]:
        if replace(found[day], day=prices[-1].day) != prices[-1]:
            prices.append(found[day])
    return prices


def _not_found(path: Path, machine_type: str | None, region: str | None,
               names: Collection[tuple[str, str]]) -> UsageError:
    if not names:
        return UsageError("no price in it", place=str(path), fix=f"lines with {', '.join(_COLUMNS)}")
    some = ", ".join(f"--machine-type {kind} --region {where}" for kind, where in sorted(names)[:3])
    problem = (f"no price of {machine_type} in {region}" if machine_type and region
               else "the machine type or the region is not said")
    return UsageError(problem, place=str(path), fix=f"for example {some}")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of the file, gzipped or not, with their numbers."""
    try:
        raw = path.read_bytes()
        # Spreadsheets put a mark of their own before the first name.
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
        reader = csv.DictReader(text.splitlines())
        if set(_COLUMNS) - set(reader.fieldnames or ()):
            raise UsageError("no history of prices", place=str(path), fix=f"columns {', '.join(_COLUMNS)}")
        for row in reader:
            yield reader.line_num, row
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot be read: {error}", place=str(path), fix="copy it again") from error


def _price(row: dict[str, str], place: str) -> Price:
    try:
        day = date.fromisoformat(row["date"])
        on_demand, spot = float(row["on_demand_usd_per_hour"]), float(row["spot_usd_per_hour"])
    except (TypeError, ValueError) as error:
        raise UsageError(f"no price: {error}", place=place,
                         fix="a day and two numbers, or leave the line out") from error
    if not 1970 <= day.year < 2200:
        raise UsageError(f"a price of {day}", place=place, fix="correct its day, or leave the line out")
    if (currency := row.get("currency") or "USD") != "USD":
        raise UsageError(f"currency is {currency!r}, and ldlm counts in USD", place=place,
                         fix="turn its prices into dollars")
    if not all(LOWEST_USD_PER_HOUR <= usd <= HIGHEST_USD_PER_HOUR for usd in (on_demand, spot)):
        raise UsageError(f"prices of ${on_demand:g} and ${spot:g} an hour", place=place,
                         fix=f"dollars from {LOWEST_USD_PER_HOUR} to {HIGHEST_USD_PER_HOUR:,}, or leave the "
                             "line out: the price before it holds")
    return Price(day, on_demand, spot)
