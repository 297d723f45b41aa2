"""Machines that are rented and that no live run owns: what they cost a day, and giving them back.

SkyPilot gives a machine back when a job ends. Where it could not (its server died, an answer was lost) the
machine is billed until somebody looks. Only machines that ldlm has rented, or that bear the name of one of
its tasks, are ever touched.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol

from launcher.engine import OVER, EnginePhase
from launcher.errors import EngineError
from launcher.frozen import Frozen
from launcher.rentals import Rental

# Where SkyPilot's server tells of them.
MACHINES = "/plugins/api/ldlm/machines"
CLUSTERS = "/plugins/api/ldlm/clusters"
PREPARE = "prepare"  # the job of a task that belongs to no run
# As SkyPilot names the machines of a task: its name, the job's number, a hash of the user.
_OUR_LABEL = re.compile(r"^(train|bench|prepare)-\d+-[0-9a-z]+(-[0-9a-z]+)?-(head|worker)$")


class RentedMachine(Frozen):
    """One machine that the account has now, or a cluster of them; or a volume at Vast, which is never ours.

    Attributes:
        instance_id: The provider's; of a cluster its name in SkyPilot.
        run_id: For which it was rented; None: for none, or nobody knows.
        usd_per_hour: In the state in which it is: at Vast a stopped one costs its disk. Of a cluster by
            SkyPilot's catalog, as if it ran. None: not known.
        rental: What SkyPilot's server remembers of one at Vast; None: it has been rented by others, or
            forgotten.
        is_left: Of one at Vast: its run has given it back, or has rented another since.
        job: Number of the managed job that a cluster was made for.
    """

    instance_id: str
    label: str | None
    cloud: str = "vast"
    kind: Literal["instance", "cluster", "volume"] = "instance"
    run_id: str | None = None
    status: str
    since: datetime
    usd_per_hour: Decimal | None
    rental: Rental | None = None
    is_left: bool = False
    job: int | None = None

    @property
    def is_ours(self) -> bool:
        """True if ldlm has rented it."""
        return self.kind != "volume" and (self.is_remembered or bool(_OUR_LABEL.match(self.label or "")))

    @property
    def is_remembered(self) -> bool:
        """True if this server made it. What only has a name of ours may be another server's, in use."""
        return self.kind == "cluster" or self.rental is not None

    @property
    def usd_per_day(self) -> Decimal:
        """What it costs if nobody looks, as far as that is known."""
        return (self.usd_per_hour or Decimal(0)) * 24


class Machines(Frozen):
    """What the plugin in SkyPilot's server answers.

    Attributes:
        not_seen_end: Vast was not asked, for the server has no key of it; so many machines it has rented
            there and has not seen end. None: it was asked.
    """

    machines: tuple[RentedMachine, ...]
    not_seen_end: int | None = None


class Renter(Protocol):
    """Of `SkyEngine`: what giving back needs."""

    def give_back(self, instance_id: str) -> None:
        """End a machine at Vast."""

    def take_down(self, cluster: str) -> None:
        """End a cluster with all that belongs to it."""


def orphans(machines: Sequence[RentedMachine], phase_of: Callable[[str], EnginePhase],
            live_jobs: Mapping[int, str]) -> list[RentedMachine]:
    """Machines of ours that no live run owns, the dearest first.

    Args:
        phase_of: Of the run of an id. One that is not over owns the machine at Vast that it has not left,
            and no other: it has only one at a time.
        live_jobs: Names of managed jobs by their numbers. A live one owns the clusters that bear its number.
    """
    ours = [machine for machine in machines if machine.is_ours]
    owned = {machine.instance_id for machine in ours if machine.kind == "instance" and machine.run_id
             and not machine.is_left and phase_of(machine.run_id) not in OVER}
    owned |= {machine.instance_id for machine in ours
              if machine.job is not None and live_jobs.get(machine.job) == (machine.run_id or PREPARE)}
    return sorted((machine for machine in ours if machine.instance_id not in owned),
                  key=lambda machine: -machine.usd_per_day)


def is_left(rental: Rental, rentals: Iterable[Rental]) -> bool:
    """True if the run of a rental has given it back, or has rented another since.

    Args:
        rentals: All that are remembered.
    """
    return rental.given_back_at is not None or any(
        other.run_id == rental.run_id and other.rented_at > rental.rented_at for other in rentals)


def give_back(renter: Renter, machines: Sequence[RentedMachine]) -> list[str]:
    """End machines. Returns what went wrong, one line each: one that fails does not keep the others."""
    problems = []
    for machine in machines:
        try:
            if machine.kind == "cluster":
                renter.take_down(machine.instance_id)
            else:
                renter.give_back(machine.instance_id)
        except EngineError as error:
            problems.append(f"{machine.instance_id}: {error.problem}")
    return problems


def machines_json(machines: Sequence[RentedMachine]) -> list[dict[str, Any]]:
    """Stable form of `sweep --json`."""
    return [{"instance_id": machine.instance_id, "label": machine.label, "status": machine.status,
             "run_id": machine.run_id, "cloud": machine.cloud, "kind": machine.kind,
             "is_remembered": machine.is_remembered,
             "since": machine.since.isoformat(),
             "usd_per_day": None if machine.usd_per_hour is None else f"{machine.usd_per_day:.4f}"}
            for machine in machines]
