"""Machines that were rented for a run, with the terms of their contracts: what a provider bills by. Pure.

The nodes of a run tell when it worked. When a machine was taken, what its disk and its traffic cost, and when
it was given back, only the side that rents it knows: `launcher/sky_plugin.py` remembers it, the launcher
copies it into the run's folder.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from launcher.cost import price_for
from launcher.frozen import Frozen
from trainer.rental_terms import Moment, UsdPerGb, UsdPerHour

RENTALS = "/plugins/api/ldlm/rentals"  # where SkyPilot's server tells of those of a run
RENTED_AT = "vast"  # the one cloud whose rentals are noted down
_GB = 10**9
_MOST_GB = 10**6  # of a disk: far more than any has (guess)
_SETTLES = timedelta(days=1)  # until then it shows whether what has ended lives on all the same (guess)
HOURS_OF_MONTH = 30 * 24  # as $/GB/month is turned into $/h (guess: Vast does not say)


class Price(Frozen):
    """What an hour of a machine's GPUs costs from a moment on."""

    at: Moment
    usd_per_hour: UsdPerHour


class Terms(Frozen):
    """What else a machine costs. Network by 10^9 bytes, both ways."""

    disk_gb: Annotated[int, Field(ge=0, le=_MOST_GB)]
    disk_usd_per_gb_month: UsdPerGb = Decimal(0)
    received_usd_per_gb: UsdPerGb = Decimal(0)
    sent_usd_per_gb: UsdPerGb = Decimal(0)


class Rental(Frozen):
    """One machine that was rented.

    Attributes:
        run_id: None: for no run that has a record.
        instance_id: The provider's, of the contract.
        machine_id: Of the hardware, which is offered again under other ids.
        rented_at: UTC, when it was asked for. Its disk is billed from here.
        running_at: When it was first seen running; None: not yet, or it never was.
        ended_at: When it was given back, or found to be gone; None: it is still rented.
        given_back_at: When it was last asked to end, which it may survive; None: never.
        returned_at: When it was seen after it had ended; None: never.
        is_wrong: Its node says that it is not the machine that the run pays for.
        prices: Of its GPUs while they run, oldest first.
        unpulled: The image that it could not pull, whose fault that was.
        told_at: When it was rented by what was written onto it, see `trainer/rental_terms.py`.
        given_up: Why it was given back before it had ever run; None: it was not.
        left_by_choice: The course of its run has left it for another place: nothing was wrong with it.
        most_bid_usd_per_hour: Up to which its bid follows the market; None: it stays, or there is none.
    """

    run_id: str | None = None
    instance_id: str
    machine_id: int
    rented_at: Moment
    running_at: Moment | None = None
    ended_at: Moment | None = None
    given_back_at: Moment | None = None
    returned_at: Moment | None = None
    is_wrong: bool = False
    prices: Annotated[tuple[Price, ...], Field(min_length=1)]
    terms: Terms
    unpulled: str | None = None
    told_at: Moment | None = None
    given_up: str | None = None
    left_by_choice: bool = False
    most_bid_usd_per_hour: UsdPerHour | None = None

    def gpu_usd(self, since: datetime, until: datetime) -> Decimal:
        """Dollars that its GPUs cost between two moments at which it was running, unrounded; zero where the
        second comes first."""
        until = max(since, until)
        prices = sorted(self.prices, key=lambda price: price.at)  # whoever noted them had clocks of their own
        starts = [since, *(min(max(price.at, since), until) for price in prices[1:]), until]
        spans = zip(prices, starts, starts[1:], strict=False)
        return sum((price_for(end - start, price.usd_per_hour) for price, start, end in spans), Decimal(0))

    def alone_gpu_usd(self, now: datetime) -> Decimal:
        """Dollars of its GPUs since it was first seen running, until it ended or `now`."""
        return self.gpu_usd(self.running_at, self.ended_at or now) if self.running_at else Decimal(0)

    def disk_usd(self, now: datetime) -> Decimal:
        """Dollars of its disk until it was given back, or `now`: it is billed while it stands still, too."""
        held_s = Decimal(max(0.0, ((self.ended_at or now) - self.rented_at).total_seconds()))
        return self.terms.disk_gb * self.terms.disk_usd_per_gb_month * held_s / (HOURS_OF_MONTH * 3600)

    def network_usd(self, received_bytes: int, sent_bytes: int) -> Decimal:
        """Dollars of what went over its network."""
        terms = self.terms
        return (received_bytes * terms.received_usd_per_gb + sent_bytes * terms.sent_usd_per_gb) / _GB

    @property
    def lives_on(self) -> bool:
        """True if it is billed although it was given back, or taken for gone."""
        return self.returned_at is not None and self.ended_at is None

    def is_settled(self, now: datetime) -> bool:
        """True once it has ended so long ago that nothing more is learnt of it."""
        return self.ended_at is not None and now - self.ended_at > _SETTLES

    def held(self, moment: datetime) -> bool:
        """True if it was rented at a moment."""
        return self.rented_at <= moment and (self.ended_at is None or moment < self.ended_at)


class Rentals(Frozen):
    """`rentals.json` of a run.

    Attributes:
        num_torn: Lines of the server's log that cannot be read: of whatever run, something is not known.
    """

    rentals: tuple[Rental, ...]
    num_torn: int = 0

    @classmethod
    def of(cls, found: Iterable[Rental], num_torn: int = 0) -> "Rentals":
        """In the order in which they were rented."""
        return cls(rentals=tuple(sorted(found, key=lambda rental: rental.rented_at)), num_torn=num_torn)


def merged(known: Iterable[Rental], told: Rentals, since: datetime) -> Rentals:
    """What is known of a run's machines after somebody has told of some.

    Args:
        known: As it stands in the run's folder; another server may have told of them.
        told: As the server that is asked now remembers them.
        since: When the run was created: an earlier one of the same name had machines of its own.
    """
    newest = {rental.instance_id: rental for rental in (*known, *told.rentals) if rental.rented_at >= since}
    return Rentals.of(newest.values(), told.num_torn)
