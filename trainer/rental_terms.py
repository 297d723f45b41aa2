"""What a rented machine is billed by, beside the hours of its GPUs. No torch.

Who rents a machine for a run writes this onto it (`launcher/sky_plugin.py`), for a node cannot ask: the cap
of a run is about all that is billed, and no key of the account lies there.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.contract import Env

TERMS = ".ldlm_rental.json"  # in the home folder of a machine of Vast
_GB = 10**9


class PriceFrom(BaseModel):
    """What an hour of a machine costs from a moment on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime
    usd_per_hour: Decimal


class RentalTerms(BaseModel):
    """Of one machine, and what those before it have cost.

    Attributes:
        rented_at: UTC. Its disk is billed from here.
        gpu_usd_per_hour: Of its GPUs while they run, as it was rented; None: as the task says.
        received_usd_per_gb, sent_usd_per_gb: By 10^9 bytes.
        earlier: The machines that the run had before: when each was rented, and the dollars of its disk, and
            of its GPUs while it ran. For those on which no attempt began, nothing else tells.
        older_usd: Of those before these, all together.
        credit_usd: What its account had prepaid when it was rented; None: not known.
        others_usd_per_hour: At which other machines of the account used that up then.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    rented_at: datetime
    gpu_usd_per_hour: Decimal | None = None
    disk_usd_per_hour: Decimal = Decimal(0)
    received_usd_per_gb: Decimal = Decimal(0)
    sent_usd_per_gb: Decimal = Decimal(0)
    earlier: tuple[tuple[datetime, Decimal], ...] = ()
    older_usd: Decimal = Decimal(0)
    credit_usd: Decimal | None = None
    others_usd_per_hour: Decimal = Decimal(0)

    def disk_usd(self, until: datetime) -> Decimal:
        """Dollars of its disk since it was rented, unrounded."""
        hours = Decimal(max(0.0, (until - self.rented_at) / timedelta(hours=1)))
        return self.disk_usd_per_hour * hours

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
        held_h = Decimal(max(0.0, (now - self.rented_at) / timedelta(hours=1)))
        return float((self.credit_usd - network_usd - rate * held_h) / rate) * 3600

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
