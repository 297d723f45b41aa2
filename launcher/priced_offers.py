"""What can be rented where and at which price: one list over clouds, whoever has named the prices. Pure.

SkyPilot's catalogs of Azure and GCP (`launcher/list_prices.py`), Vast's live market
(`launcher/vast_prices.py`) and saved files (`launcher/offers_file.py`) all end here; `launcher/offers.py`
makes offers of a recipe of it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from launcher.frozen import Frozen
from launcher.infra import REGION, is_within
from launcher.recipe import Candidate
from launcher.rentals import HOURS_OF_MONTH

Terms = Literal["spot", "bid", "on-demand"]
LOWEST_USD_PER_HOUR = Decimal("0.01")  # of one machine; with the oldest cards 0.02 in 2026 (guess)
HIGHEST_USD_PER_HOUR = 1000  # of one machine; the dearest with eight GPUs is at 150 in 2026 (guess)
_HIGHEST_USD_PER_GB = 10  # kept for a month, or sent; a cent or two as a rule (guess)
_ON_TOP = ("disk_usd_per_gb_month", "received_usd_per_gb", "sent_usd_per_gb")  # of the machine's hours

_UsdPerHour = Annotated[Decimal, Field(ge=LOWEST_USD_PER_HOUR, le=HIGHEST_USD_PER_HOUR)]
_UsdPerGb = Annotated[Decimal, Field(ge=0, le=_HIGHEST_USD_PER_GB)]
_Text = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\p{Cc}\p{Cf}]+$")]  # for a screen
_Region = Annotated[str, Field(min_length=1, max_length=60, pattern=f"^{REGION}$")]  # as it can be typed


class PricedOffer(Frozen):
    """One machine of a market, or one kind of machine in one region of a cloud, at a price.

    Attributes:
        cloud: `vast`, `azure` or `gcp`.
        region: As SkyPilot spells it; of Vast place and country, `Texas, US`.
        gpu: SkyPilot's name.
        terms: `spot` (Azure, GCP) and `bid` (Vast) can be taken back.
        price_usd_per_hour: Of the whole machine without its disk; of a bid the lowest that wins now.
        on_demand_usd_per_hour: Of the same machine in the same region, to compare with; None: not known.
        instance_type: The cloud's own name; None on Vast.
        machine_id: Vast's; None elsewhere.
        reliability: 0 to 1, as the market rates the host.
        cuda: The newest that the host's driver takes.
        sent_usd_per_gb, received_usd_per_gb: Of network, by 10^9 bytes; None: nobody has said.
        upload_mbit_s, download_mbit_s: Of the host.
        disk_usd_per_gb_month: Of a disk beside the price.
        seen_at: UTC, when the price was true.
        source: Who has said so: `SkyPilot's catalog`, `Vast`.
    """

    cloud: Literal["vast", "azure", "gcp"]
    region: _Region
    gpu: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
    num_gpus: Annotated[int, Field(ge=1, le=64)]
    gpu_memory_gib: Annotated[float, Field(gt=0, le=1000)] | None = None
    terms: Terms
    price_usd_per_hour: _UsdPerHour
    on_demand_usd_per_hour: _UsdPerHour | None = None
    instance_type: _Text | None = None
    machine_id: int | None = None
    reliability: Annotated[float, Field(ge=0, le=1)] | None = None
    cuda: Annotated[float, Field(gt=0, le=100)] | None = None
    sent_usd_per_gb: _UsdPerGb | None = None
    received_usd_per_gb: _UsdPerGb | None = None
    upload_mbit_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    download_mbit_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    disk_usd_per_gb_month: _UsdPerGb | None = None
    seen_at: AwareDatetime
    source: _Text

    @field_validator("terms")
    @classmethod
    def _are_of_the_cloud(cls, terms: Terms, info: ValidationInfo) -> Terms:
        cloud = info.data.get("cloud")
        if cloud is not None and terms == ("spot" if cloud == "vast" else "bid"):
            raise PydanticCustomError("terms", "{cloud} has no such terms", {"cloud": cloud})
        return terms

    @property
    def infra(self) -> str:
        """In SkyPilot's language: `gcp/us-central1`."""
        return f"{self.cloud}/{self.region}"

    @property
    def accelerators(self) -> str:
        """`H100:8`."""
        return f"{self.gpu}:{self.num_gpus}"

    @property
    def can_be_taken(self) -> bool:
        """True for spot machines and bids."""
        return self.terms != "on-demand"

    @property
    def usd_per_gpu_hour(self) -> Decimal:
        """Of one of its GPUs."""
        return self.price_usd_per_hour / self.num_gpus

    @property
    def place(self) -> tuple[object, ...]:
        """What makes it another offer: two of one place are the same machine, seen twice."""
        return self.cloud, self.region, self.accelerators, self.terms, self.instance_type, self.machine_id

    @property
    def unsaid(self) -> Sequence[str]:
        """Fields of prices that a host of Vast has and that nobody has said; other clouds have lists."""
        return [name for name in _ON_TOP if getattr(self, name) is None] if self.cloud == "vast" else []

    def is_at(self, infra: str) -> bool:
        """True for `gcp`, its region, and a zone of that; in SkyPilot's language a region of Vast has a
        continent behind it, which offers do not name."""
        if self.cloud == "vast" and infra.lower().startswith(self.infra.lower()):
            return True
        return is_within(self.infra, infra) or is_within(infra, self.infra)

    def with_disk_usd_per_hour(self, disk_gib: int) -> Decimal:
        """Price of the machine with a disk, as far as the disk's price is known.

        Rounded up: a search by a price that is rounded down would not find the machine.
        """
        disk = (self.disk_usd_per_gb_month or Decimal(0)) * disk_gib / HOURS_OF_MONTH
        return self.price_usd_per_hour + disk.quantize(Decimal("0.000001"), rounding=ROUND_UP)

    def age(self, now: datetime) -> timedelta:
        """How old its price is; never negative."""
        return max(timedelta(0), now - self.seen_at)


def read_offer(row: object, where: str) -> PricedOffer | str:
    """An offer as somebody has written it down; of one that is none, what is wrong with it.

    Args:
        row: By field; dollars as decimal text.
        where: Names it, `offers[3]`.
    """
    if not isinstance(row, dict):
        return f"{where}: it is no offer, which has its fields in braces"
    try:
        return PricedOffer.model_validate(row)
    except ValidationError as error:
        return f"{where}: {printable(_wrong(error.errors(include_url=False)[0]))}"


def printable(text: str) -> str:
    """A stranger's text for a screen: what would move its cursor or colour it is a question mark."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _wrong(detail: ErrorDetails) -> str:
    """What is wrong with a field, and how it has to be."""
    name = ".".join(map(str, detail["loc"])) or "it"
    if detail["type"] == "extra_forbidden":
        return f"{name} is no field that ldlm knows"
    if detail["type"] in ("missing", "string_too_short"):
        return f"it has no {name}"
    if detail["type"] in ("decimal_type", "decimal_parsing"):
        return f"{name} is {detail['input']!r:.40}, which is no number"
    if detail["type"] == "string_pattern_mismatch":
        return f"{name} is {detail['input']!r:.40}, which can be none"
    return f"{name} is {detail['input']!s:.40}, and {re.sub('^(Input|String)', 'it', detail['msg'])}"


@dataclass(frozen=True)
class Found:
    """What somebody who names prices has said.

    Attributes:
        offers: In no order.
        problems: What was passed over: a sentence each.
        down: By cloud, why there is nothing of it, and what to do.
    """

    offers: tuple[PricedOffer, ...] = ()
    problems: tuple[str, ...] = ()
    down: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Found") -> "Found":
        """Both."""
        return Found(self.offers + other.offers, self.problems + other.problems, {**self.down, **other.down})


def with_dearest(priced: Sequence[PricedOffer]) -> Sequence[PricedOffer]:
    """The same where a host of Vast that names no price of its disk or network has the dearest of the others:
    to say nothing must not make it the cheapest. Where nobody has said anything, nothing is known."""
    dearest = {name: max(said) for name in _ON_TOP if (said := [
        price for one in priced if one.cloud == "vast" and (price := getattr(one, name)) is not None])}
    return [one.model_copy(update={name: dearest[name] for name in one.unsaid if name in dearest})
            if one.unsaid else one for one in priced]


def priced_for(candidate: Candidate, priced: Iterable[PricedOffer]) -> Sequence[PricedOffer]:
    """What a candidate of a recipe may be: of its card, terms and place, within its price, cheapest first.

    The candidate's price is of all its nodes, and a limit; so is its bid. On Vast a price on demand is one
    with the disk, as its search there has it.
    """
    limit = candidate.price_usd_per_hour or candidate.most_bid_usd_per_hour or candidate.bid_usd_per_hour
    return [one for one in _of_its_kind(candidate, priced)
            if limit is None or _price(candidate, one) * candidate.num_nodes <= limit]


def least_usd_per_hour(candidate: Candidate, priced: Iterable[PricedOffer]) -> Decimal | None:
    """What the cheapest of its card, terms and place costs, all nodes together, within its price or not; of
    a bid the lowest that wins. None: nothing is listed."""
    found = _of_its_kind(candidate, priced)
    return _price(candidate, found[0]) * candidate.num_nodes if found else None


def _of_its_kind(candidate: Candidate, priced: Iterable[PricedOffer]) -> Sequence[PricedOffer]:
    """Of its card, terms and place at any price, cheapest first."""
    wants_spot = candidate.spot or candidate.takes_bids
    found = [one for one in priced if one.accelerators == candidate.gpu and one.can_be_taken == wants_spot
             and one.is_at(candidate.infra)]
    return sorted(found, key=lambda one: (_price(candidate, one), one.region, one.machine_id or 0))


def _price(candidate: Candidate, one: PricedOffer) -> Decimal:
    """Of one node."""
    return one.price_usd_per_hour if one.can_be_taken else one.with_disk_usd_per_hour(candidate.disk_gib)
