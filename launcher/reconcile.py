"""Our ledger beside another's own record of what was charged, machine by machine. Pure.

Read in Vast's documentation of `GET /api/v0/charges/` (2026-11): one row a contract, `source` is
`instance-ID`, `amount` in dollars, `items` of the kinds gpu, disk, bwd and bwu. Read in programs that use it:
amounts have three decimals, and what a machine has cost shows up some time after it was billed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from launcher.frozen import Frozen
from launcher.rentals import Rental

CHARGES = "/plugins/api/ldlm/charges"  # where SkyPilot's server tells of Vast's
COSTS = "/plugins/api/ldlm/costs"  # and of its own cost report
_CENT = Decimal("0.01")


def charges_path(rentals: Sequence[Rental]) -> str:
    """What to ask SkyPilot's server about machines at Vast; one or more."""
    since = min(rental.rented_at for rental in rentals)
    return f"{CHARGES}?instance_ids={','.join(one.instance_id for one in rentals)}&since={_stamp(since)}"


def costs_path(run_id: str, since: datetime) -> str:
    """What to ask it about the clusters that a run has had on other clouds since a moment."""
    return f"{COSTS}?run_id={run_id}&since={_stamp(since)}"


def _stamp(moment: datetime) -> str:
    return f"{moment.timestamp():.0f}"


class Charge(Frozen):
    """What a provider's record says of one machine.

    Attributes:
        usd_by_kind: Its parts, as the provider calls them.
    """

    instance_id: str
    usd: Decimal
    usd_by_kind: dict[str, Decimal]


class Charges(Frozen):
    """What the plugin in SkyPilot's server answers: one for each machine that the record has."""

    charges: tuple[Charge, ...]


@dataclass(frozen=True)
class Compared:
    """One machine. `theirs_usd` is None while the provider's record does not have it."""

    instance_id: str
    ours_usd: Decimal
    theirs_usd: Decimal | None

    @property
    def difference_usd(self) -> Decimal:
        """Ours less theirs; with nothing of theirs, all of ours."""
        return self.ours_usd - (self.theirs_usd or Decimal(0))


@dataclass(frozen=True)
class Reconciliation:
    """Every machine of a run, in the order in which they were rented."""

    machines: Sequence[Compared]

    @property
    def ours_usd(self) -> Decimal:
        """All of our ledger."""
        return sum((found.ours_usd for found in self.machines), Decimal(0))

    @property
    def theirs_usd(self) -> Decimal:
        """All of their record."""
        return sum((found.theirs_usd or Decimal(0) for found in self.machines), Decimal(0))

    @property
    def missing(self) -> list[str]:
        """Machines that their record does not have: what is not there proves nothing."""
        return [found.instance_id for found in self.machines if found.theirs_usd is None]

    @property
    def is_equal(self) -> bool:
        """True if nothing is missing, and each machine and their sum differ by less than a cent."""
        differences = [found.difference_usd for found in self.machines]
        differences.append(self.ours_usd - self.theirs_usd)
        return not self.missing and all(abs(usd) < _CENT for usd in differences)

    def to_json(self) -> dict[str, Any]:
        """Stable form: dollars as text."""
        return {"ours_usd": f"{self.ours_usd:.6f}", "theirs_usd": f"{self.theirs_usd:.6f}",
                "is_equal": self.is_equal, "missing": self.missing,
                "machines": [{"instance_id": found.instance_id, "ours_usd": f"{found.ours_usd:.6f}",
                              "theirs_usd": None if found.theirs_usd is None else f"{found.theirs_usd:.6f}"}
                             for found in self.machines]}


def reconcile(ours: Mapping[str, Decimal], theirs: Sequence[Charge]) -> Reconciliation:
    """Put both sides beside each other.

    Args:
        ours: Dollars by the provider's id of each machine, see `launcher/rental_cost.py`.
        theirs: What the provider has charged; machines that are not ours are passed over.
    """
    charged = {charge.instance_id: charge.usd for charge in theirs}
    return Reconciliation([Compared(name, usd, charged.get(name)) for name, usd in ours.items()])
