"""All arithmetic on money and hours. Pure.

Estimates are ranges: low, mid and high stand for the 10th, 50th and 90th percentile of belief.
"""

from collections.abc import Iterable
from datetime import timedelta
from decimal import Decimal
from typing import Self

from launcher.frozen import Frozen


class Range(Frozen):
    """An estimate: 10th, 50th and 90th percentile."""

    low: Decimal
    mid: Decimal
    high: Decimal

    @classmethod
    def around(cls, mid: float, low_factor: float, high_factor: float) -> Self:
        """A range from factors on its middle, to six decimals."""
        low, middle, high = (Decimal(f"{mid * factor:.6f}") for factor in (low_factor, 1.0, high_factor))
        return cls(low=low, mid=middle, high=high)

    def __add__(self, other: "Range") -> "Range":
        """Sum of estimates that err together: each end is the sum of that end, so it is rather too wide."""
        return Range(low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high)


def total(ranges: Iterable[Range]) -> Range:
    """Sum of estimates; zero for none."""
    return sum(ranges, start=Range(low=Decimal(0), mid=Decimal(0), high=Decimal(0)))


def price_for(duration: timedelta, price_usd_per_hour: Decimal) -> Decimal:
    """US dollars that a machine costs in `duration`, unrounded."""
    return price_usd_per_hour * Decimal(duration.total_seconds()) / 3600


def usd_range(hours: Range, price_usd_per_hour: Decimal) -> Range:
    """US dollars of an estimated number of hours, to the hundredth of a cent."""
    low, mid, high = (price_for(timedelta(hours=float(value)), price_usd_per_hour).quantize(Decimal("0.0001"))
                      for value in (hours.low, hours.mid, hours.high))
    return Range(low=low, mid=mid, high=high)


def hours_range(num_tokens: float, tokens_per_s: float, low_factor: float, high_factor: float) -> Range:
    """Hours for so many tokens at a speed, with factors on the hours for the ends."""
    return Range.around(num_tokens / tokens_per_s / 3600, low_factor, high_factor)
