"""Machines that are rented and that no live run owns: what they cost a day, and giving them back.

SkyPilot gives a machine back when a job ends. Where it could not (its server died, an answer was lost) the
machine is billed until somebody looks. Only machines that ldlm has rented, or that bear the name of one of
its tasks, are ever touched.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from launcher.errors import EngineError
from launcher.frozen import Frozen
from launcher.rentals import Rental

MACHINES = "/plugins/api/ldlm/machines"  # where SkyPilot's server tells of them
# As SkyPilot names the machines of a task: its name, the job's number, a hash of the user.
_OUR_LABEL = re.compile(r"^(train|bench|prepare)-\d+-[0-9a-z]+(-[0-9a-z]+)?-(head|worker)$")


class RentedMachine(Frozen):
    """One machine that the account has now.

    Attributes:
        rental: What SkyPilot's server remembers of it; None: it has been rented by others, or forgotten.
        usd_per_hour: In the state in which it is; a stopped one costs its disk.
    """

    instance_id: str
    label: str | None
    status: str
    since: datetime
    usd_per_hour: Decimal
    rental: Rental | None

    @property
    def is_ours(self) -> bool:
        """True if ldlm has rented it."""
        return self.rental is not None or bool(_OUR_LABEL.match(self.label or ""))

    @property
    def usd_per_day(self) -> Decimal:
        """What it costs if nobody looks."""
        return self.usd_per_hour * 24


class Machines(Frozen):
    """What the plugin in SkyPilot's server answers."""

    machines: tuple[RentedMachine, ...]


class Renter(Protocol):
    """Of `SkyEngine`: what sweeping needs."""

    def machines(self) -> Machines:
        """Every machine that the account has."""

    def give_back(self, instance_id: str) -> None:
        """End one of them."""


def orphans(machines: Sequence[RentedMachine], is_alive: Callable[[str], bool]) -> list[RentedMachine]:
    """Machines of ours that no live run owns, the dearest first.

    Args:
        is_alive: Whether the run of an id is under way. A live run owns the machine that was rented for it
            last, and no other: it has only one at a time.
    """
    ours = [machine for machine in machines if machine.is_ours]
    last: dict[str, RentedMachine] = {}
    for machine in sorted(ours, key=_rented_at):
        if machine.rental and machine.rental.run_id:
            last[machine.rental.run_id] = machine
    owned = {machine.instance_id for run_id, machine in last.items() if is_alive(run_id)}
    return sorted((machine for machine in ours if machine.instance_id not in owned),
                  key=lambda machine: -machine.usd_per_hour)


def give_back(renter: Renter, machines: Sequence[RentedMachine]) -> list[str]:
    """End machines. Returns what went wrong, one line each: one that fails does not keep the others."""
    problems = []
    for machine in machines:
        try:
            renter.give_back(machine.instance_id)
        except EngineError as error:
            problems.append(f"{machine.instance_id}: {error.problem}")
    return problems


def machines_json(machines: Sequence[RentedMachine]) -> list[dict[str, Any]]:
    """Stable form of `sweep --json`."""
    return [{"instance_id": machine.instance_id, "label": machine.label, "status": machine.status,
             "run_id": machine.rental.run_id if machine.rental else None,
             "since": machine.since.isoformat(), "usd_per_day": f"{machine.usd_per_day:.4f}"}
            for machine in machines]


def _rented_at(machine: RentedMachine) -> datetime:
    return machine.rental.rented_at if machine.rental else machine.since
