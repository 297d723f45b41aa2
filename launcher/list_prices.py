"""What Azure and GCP list, by SkyPilot's own catalogs on this machine; SkyPilot itself is not imported.

Of Vast there is a catalog, too: its spot prices are 0.00 on every row, and it is fetched only once. It is not
read here.
"""

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path

from launcher.priced_offers import HIGHEST_USD_PER_HOUR, Found, PricedOffer, Terms, read_offer
from launcher.regions import catalog_path

SOURCE = "SkyPilot's catalog"
_NEEDED = ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region")
_PRICES: Mapping[Terms, str] = {"spot": "SpotPrice", "on-demand": "Price"}
_MOST_LINES = 3  # named of those that are passed over
# GCP lists GPUs and the machines around them apart. Which machine SkyPilot 0.14.1 puts around a card (its
# gcp_catalog.py), by cards; `{}` is their number.
_HOSTS = {"A100": "a2-highgpu-{}g", "A100-80GB": "a2-ultragpu-{}g", "H100": "a3-highgpu-{}g",
          "H100-MEGA": "a3-megagpu-{}g", "H200": "a3-ultragpu-{}g", "B200": "a4-highgpu-{}g"}
_HOSTS_BY_NUMBER = {
    "A100": {16: "a2-megagpu-16g"},
    "L4": {1: "g2-standard-4", 2: "g2-standard-24", 4: "g2-standard-48", 8: "g2-standard-96"},
    "RTXPRO6000": {1: "g4-standard-48", 2: "g4-standard-96", 4: "g4-standard-192", 8: "g4-standard-384"}}
_OLD_CARDS = ("T4", "V100", "P100", "P4", "K80")  # on an N1 machine of any size
_CPUS = {"T4": {1: 4, 2: 8, 4: 48}, "K80": {1: 4, 2: 8, 4: 16, 8: 32}}
_CPUS_OF_OTHERS = {1: 8, 2: 16, 4: 32, 8: 64}
_GIB_PER_CPU = 4

Row = Mapping[str, str]
Place = tuple[str, str]  # region, zone


class _BadPriceError(ValueError):
    """A price that nobody can mean."""


def list_prices(cloud: str, gpus: Collection[str]) -> Found:
    """Every region's prices of some cards, on spot and on demand.

    Args:
        cloud: `azure` or `gcp`.
        gpus: `H100` for any number of it in a machine, `H100:8`.
    """
    path = catalog_path(cloud)
    if path is None:
        first = next(iter(gpus), "H100").partition(":")[0]
        return Found(down={cloud: "SkyPilot's catalog is not here; fetch it: "
                                  f".venv/bin/sky gpus list {first} --infra {cloud} --all-regions"})
    try:
        rows = _read(path)
    except (OSError, ValueError, csv.Error) as error:
        return Found(down={cloud: f"{path} is no catalog of SkyPilot's ({error}); delete it, and SkyPilot "
                                  "fetches it again"})
    seen_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return _Catalog(cloud, rows, seen_at).found(gpus)


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        if lacks := [name for name in _NEEDED if name not in (table.fieldnames or ())]:
            raise ValueError(f"it has no column {lacks[0]}")
        return [{name: text or "" for name, text in row.items() if isinstance(name, str)}
                | {"line": str(table.line_num)} for row in table]


@dataclass
class _Catalog:
    """The rows of one cloud."""

    cloud: str
    rows: Sequence[Row]
    seen_at: datetime
    bad: list[str] = field(default_factory=list)  # what was wrong with rows, and where

    def found(self, gpus: Collection[str]) -> Found:
        offers = _cheapest(offer for row in self.rows if _is_wanted(row, gpus) for offer in self._offers(row))
        shown = "; ".join(self.bad[:_MOST_LINES])
        more = f"; and {len(self.bad) - _MOST_LINES} more" if len(self.bad) > _MOST_LINES else ""
        problems = (f"{self.cloud}: passed over in SkyPilot's catalog: {shown}{more}; a newer one: delete "
                    f"{catalog_path(self.cloud)}",) if self.bad else ()
        return Found(offers, problems)

    def _offers(self, row: Row) -> Iterator[PricedOffer]:
        """A row's offers; of prices that it lacks none."""
        prices: dict[Terms, Decimal] = {}
        for terms, column in _PRICES.items():
            try:
                if (price := self._price(row, column)) is not None:
                    prices[terms] = price
            except ValueError as error:  # of what it costs, or how large it is
                self.bad.append(f"line {row['line']}: {error}")
        for terms, price in prices.items():
            read = read_offer({
                "cloud": self.cloud, "region": row["Region"], "gpu": row["AcceleratorName"],
                "num_gpus": int(float(row["AcceleratorCount"])), "terms": terms, "price_usd_per_hour": price,
                "on_demand_usd_per_hour": prices.get("on-demand"), "seen_at": self.seen_at, "source": SOURCE,
                "instance_type": row["InstanceType"] or self._host(row)}, f"line {row['line']}")
            if isinstance(read, PricedOffer):
                yield read
            else:
                self.bad.append(read)

    def _price(self, row: Row, column: str) -> Decimal | None:
        """Of a row with what its machine costs beside it; None where one of them has none."""
        own = _usd(row, column)
        if self.cloud != "gcp" or row["InstanceType"]:
            return own or None
        around = self._machines.get((self._host(row), *_place(row)))
        beside = None if around is None else _usd(around, column)
        return own + beside if own and beside is not None else None

    @cached_property
    def _machines(self) -> Mapping[tuple[str, str, str], Row]:
        """Rows by type, region and zone."""
        return {(row["InstanceType"], *_place(row)): row for row in self.rows if row["InstanceType"]}

    @cached_property
    def _n1_rows(self) -> Sequence[Row]:
        return [row for row in self.rows if row["InstanceType"].startswith("n1-")]

    def _host(self, row: Row) -> str:
        """The machine around GCP's cards; empty where there is none for so many."""
        name, number = row["AcceleratorName"], int(float(row["AcceleratorCount"]))
        if name in _OLD_CARDS:
            return self._n1(_CPUS.get(name, _CPUS_OF_OTHERS).get(number))
        return _HOSTS_BY_NUMBER.get(name, {}).get(number) or _HOSTS.get(name, "").format(number)

    def _n1(self, cpus: int | None) -> str:
        """The cheapest that has as many CPUs, and the memory that goes with them; empty: there is none."""
        fits = [] if cpus is None else [
            (_usd(row, "Price") or Decimal(0), row["InstanceType"]) for row in self._n1_rows
            if float(row["vCPUs"]) >= cpus and float(row["MemoryGiB"]) >= cpus * _GIB_PER_CPU]
        return min(fits, default=(Decimal(0), ""))[1]


def _cheapest(offers: Iterable[PricedOffer]) -> tuple[PricedOffer, ...]:
    """One a region: SkyPilot takes any of its zones that is within the price."""
    found: dict[tuple[object, ...], PricedOffer] = {}
    for offer in offers:
        other = found.setdefault(offer.place, offer)
        if offer.price_usd_per_hour < other.price_usd_per_hour:
            found[offer.place] = offer
    return tuple(found.values())


def _is_wanted(row: Row, gpus: Collection[str]) -> bool:
    name, number = row["AcceleratorName"], row["AcceleratorCount"]
    is_whole = re.fullmatch(r"[1-9]\d*(\.0*)?", number) is not None
    return is_whole and (name in gpus or f"{name}:{int(float(number))}" in gpus)


def _place(row: Row) -> Place:
    return row["Region"], row.get("AvailabilityZone", "")


def _usd(row: Row, column: str) -> Decimal | None:
    """None where a row says nothing. Raises _BadPriceError."""
    text = row[column].strip()
    if not text or text.lower() == "nan":  # a hole, as pandas writes it
        return None
    try:
        usd = Decimal(text)
    except InvalidOperation:
        raise _BadPriceError(f"{column} is {text!r}, no number of dollars") from None
    if not usd.is_finite() or not 0 <= usd <= HIGHEST_USD_PER_HOUR:
        raise _BadPriceError(f"{column} is {text}, which nobody can mean")
    return usd
