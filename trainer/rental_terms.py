"""What a rented machine is billed by, beside the hours of its GPUs. No torch.

Who rents a machine at Vast for a run writes this onto it (`launcher/sky_plugin.py`), for a node cannot ask:
the cap of a run is about all that is billed, and no key of the account lies there. On Azure and GCP, where
machines have list prices and no contract, the task tells these (`Env.LIST_PRICES`).
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from trainer.contract import Env

TERMS = ".ldlm_rental.json"  # in the home folder of a machine of Vast
_GB = 10**9
MOST_USD = 100_000  # that an hour or a GB may cost: far more than any does (guess)
UsdPerHour = Annotated[Decimal, Field(ge=0, le=MOST_USD)]
UsdPerGb = UsdPerHour
Usd = Annotated[Decimal, Field(ge=0, le=10**9)]  # more than any run costs (guess)
# As clocks tell that are wrong, too; far beyond, calendars end in the midst of a sum.
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC),
                                        le=datetime(2200, 1, 1, tzinfo=UTC))]
NumBytes = Annotated[int, Field(ge=0, le=2**64)]  # as a machine's counters count


class PriceFrom(BaseModel):
    """What an hour of a machine costs from a moment on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Moment
    usd_per_hour: UsdPerHour


class ListPrices(BaseModel):
    """Of a machine that is billed by a list, beside its hours; all nodes together.

    Attributes:
        address_usd_per_hour: Of its public address.
        sent_usd_per_gb: By 10^9 bytes. What comes in costs nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    disk_usd_per_hour: UsdPerHour
    address_usd_per_hour: UsdPerHour
    sent_usd_per_gb: UsdPerGb

    def since(self, rented_at: datetime) -> "RentalTerms":
        """The terms of a machine that is billed by it since a moment."""
        return RentalTerms(rented_at=rented_at, by_list=True, **self.model_dump())


class RentalTerms(BaseModel):
    """Of one machine, and what those before it have cost.

    Attributes:
        rented_at: UTC. Its disk is billed from here.
        gpu_usd_per_hour: Of its GPUs while they run, as it was rented; None: as the task says.
        address_usd_per_hour: Of its public address, for as long as its disk is billed.
        received_usd_per_gb, sent_usd_per_gb: By 10^9 bytes.
        earlier: The machines that the run had before: when each was rented, and the dollars of its disk, and
            of its GPUs while it ran. For those on which no attempt began, nothing else tells.
        older_usd: Of those before these, all together.
        credit_usd: What its account had prepaid when it was rented; None: not known.
        others_usd_per_hour: At which other machines of the account used that up then.
        by_list: It has no contract: these are list prices since it was booted, and nothing of other machines.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    rented_at: Moment
    gpu_usd_per_hour: UsdPerHour | None = None
    disk_usd_per_hour: UsdPerHour = Decimal(0)
    address_usd_per_hour: UsdPerHour = Decimal(0)
    received_usd_per_gb: UsdPerGb = Decimal(0)
    sent_usd_per_gb: UsdPerGb = Decimal(0)
    earlier: tuple[tuple[Moment, Usd], ...] = ()
    older_usd: Usd = Decimal(0)
    credit_usd: Decimal | None = None
    others_usd_per_hour: Usd = Decimal(0)
    by_list: bool = False

    @property
    def held_usd_per_hour(self) -> Decimal:
        """Dollars an hour of all that is billed by the hour beside its GPUs."""
        return self.disk_usd_per_hour + self.address_usd_per_hour

    def disk_usd(self, until: datetime) -> Decimal:
        """Dollars of its disk since it was rented, unrounded."""
        return self.disk_usd_per_hour * self._held_h(until)

    def address_usd(self, until: datetime) -> Decimal:
        """Dollars of its public address since it was rented, unrounded."""
        return self.address_usd_per_hour * self._held_h(until)

    def held_usd(self, until: datetime) -> Decimal:
        """Dollars of both."""
        return self.held_usd_per_hour * self._held_h(until)

    def network_usd(self, received_bytes: int, sent_bytes: int) -> Decimal:
        """Dollars of what went over its network, unrounded."""
        return (received_bytes * self.received_usd_per_gb + sent_bytes * self.sent_usd_per_gb) / _GB

    def credit_left_s(self, usd_per_hour: Decimal, network_usd: Decimal, now: datetime) -> float | None:
        """Seconds until the account's credit is used up, if nobody adds to it; None where that is not known.

        Args:
            usd_per_hour: Of this machine's GPUs, which are counted from when it was rented.
            network_usd: Of its network until now.
            now: UTC.
        """
        rate = usd_per_hour + self.disk_usd_per_hour + self.others_usd_per_hour
        if self.credit_usd is None or not rate > 0:
            return None
        return float((self.credit_usd - network_usd - rate * self._held_h(now)) / rate) * 3600

    def _held_h(self, until: datetime) -> Decimal:
        return Decimal(max(0.0, (until - self.rented_at) / timedelta(hours=1)))

    def since(self, moment: datetime) -> "RentalTerms":
        """The same without machines that were rented before: a run of the same name may have had them."""
        earlier = tuple(one for one in self.earlier if one[0] >= moment)
        older_usd = self.older_usd if earlier == self.earlier else Decimal(0)
        return self.model_copy(update={"earlier": earlier, "older_usd": older_usd})


def own_upload_price(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """What the task's envs should say of uploads from this machine; nothing where its terms are not known.

    Args:
        environ: Of this process.
        home: See `terms_here`.
    """
    if (terms := terms_here(home)) is None:
        return {}
    return {Env.UPLOAD_PRICE: str(terms.sent_usd_per_gb + Decimal(environ.get(Env.REQUESTS_PRICE) or 0))}


def terms_here(home: Path) -> RentalTerms | None:
    """Of this machine; None where nobody has written them, or they cannot be read."""
    try:
        return RentalTerms.model_validate_json((home / TERMS).read_bytes())
    except (OSError, ValidationError):
        return None
