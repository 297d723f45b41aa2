"""Which offers somebody wants to see, and in which order. Pure."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from launcher.errors import UsageError
from launcher.gpu_kinds import GPU_KINDS, known_name, nearest_name
from launcher.priced_offers import HIGHEST_USD_PER_HOUR, PricedOffer

# By what an offer is sorted; equal ones by price. Where a word is not said of an offer, it comes last.
_Key = Callable[[PricedOffer], object]
_SORTED: dict[str, _Key] = {
    "price": lambda one: one.price_usd_per_hour,
    "per-gpu": lambda one: one.usd_per_gpu_hour,
    "reliability": lambda one: -(one.reliability or 0),
    "upload": lambda one: -(one.upload_mbit_s or 0),
    "region": lambda one: one.infra,
    "age": lambda one: -one.seen_at.timestamp()}
SORTS = tuple(_SORTED)


@dataclass(frozen=True)
class Wanted:
    """What was asked for.

    Attributes:
        gpus: `H100` for any number of it in a machine, `H100:8`; none: all.
        infra: `gcp`, `gcp/us-central1`; None: all clouds.
        region: Text within a region's name, whatever its capitals.
        spot: True: what can be taken back; False: on demand; None: both.
        most_usd_per_hour: Of one machine.
        sort: Of `SORTS`.
    """

    gpus: tuple[str, ...] = ()
    infra: str | None = None
    region: str | None = None
    spot: bool | None = None
    most_usd_per_hour: Decimal | None = None
    sort: str = "price"

    def among(self, offers: Iterable[PricedOffer]) -> Sequence[PricedOffer]:
        """Those that are wanted, in order."""
        found = [one for one in offers if self._wants(one)]
        return sorted(found, key=lambda one: (_SORTED[self.sort](one), one.price_usd_per_hour, one.infra,
                                              one.machine_id or 0))

    @property
    def narrows(self) -> Sequence[str]:
        """What would have to be typed otherwise for more offers."""
        asked = ((self.gpus, "another --gpu"), (self.infra, "another --infra"),
                 (self.region, "another --region"), (self.spot is True, "--on-demand"),
                 (self.spot is False, "--spot"), (self.most_usd_per_hour, "a higher --max-usd-per-hour"))
        return [words for is_typed, words in asked if is_typed]

    def without(self, offers: Iterable[PricedOffer]) -> Sequence[str]:
        """Of the GPUs those that no offer has."""
        found = {name for one in offers for name in (one.gpu, one.accelerators)}
        return [gpu for gpu in self.gpus if gpu not in found]

    def _wants(self, one: PricedOffer) -> bool:
        return ((not self.gpus or one.gpu in self.gpus or one.accelerators in self.gpus)
                and (self.infra is None or one.is_at(self.infra))
                and (self.region or "").lower() in one.region.lower()
                and self.spot in (None, one.can_be_taken)
                and (self.most_usd_per_hour is None or one.price_usd_per_hour <= self.most_usd_per_hour))


def read_gpu(text: str, *, from_file: bool = False) -> str:
    """`H100` or `H100:8`, spelled as SkyPilot does; from a file any name. Raises UsageError."""
    name, colon, number = text.partition(":")
    spelled = known_name(name)
    if spelled not in GPU_KINDS and not from_file:
        near = nearest_name(name)
        meant = f"did you mean {near}? Else " if near else ""
        raise UsageError(f"{name!r} is no GPU that ldlm knows", place="--gpu",
                         fix=f"{meant}use one of {', '.join(GPU_KINDS)}")
    if colon and not (re.fullmatch(r"[0-9]{1,3}", number) and int(number) > 0):
        raise UsageError(f"{number[:20]!r} is no number of GPUs", place="--gpu",
                         fix=f"write {spelled}:8, or {spelled}")
    return f"{spelled}:{int(number)}" if colon else spelled


def read_most(text: str) -> Decimal:
    """Dollars an hour. Raises UsageError."""
    try:
        if 0 < (usd := Decimal(text)) <= HIGHEST_USD_PER_HOUR:
            return usd
    except InvalidOperation:
        pass
    raise UsageError(f"{text!r} is no number of dollars an hour", place="--max-usd-per-hour",
                     fix=f"write a number above 0 and up to {HIGHEST_USD_PER_HOUR}, such as 2.50")


def read_sort(text: str) -> str:
    """A word of `SORTS`. Raises UsageError."""
    if text in SORTS:
        return text
    raise UsageError(f"offers are not sorted by {text!r}", place="--sort",
                     fix=f"use one of {', '.join(SORTS)}")
