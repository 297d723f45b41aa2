"""Who waits for a machine of Vast hears that it will not come, whichever process has found that out.

SkyPilot waits in `run_instances` until its list has the machine ready, without end and by that list alone.
While it does, each look that finds the machine given up, given back or gone ends the wait with an error, and
SkyPilot rents elsewhere. Other looks go on: what they are for has nothing to do with that machine.
"""

from collections.abc import Callable, Collection
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from launcher import rental_log
from launcher.vast_start import lost

_awaited: ContextVar[list[str] | None] = ContextVar("_awaited", default=None)  # ids, of this thread


def wait_through(run_instances: Callable[..., Any]) -> Callable[..., Any]:
    """SkyPilot's `run_instances` of Vast, which hears.

    Args:
        run_instances: `sky.provision.vast.run_instances`.
    """
    def run_and_hear(*words: Any, **named: Any) -> Any:
        before = _awaited.set([])
        try:
            return run_instances(*words, **named)
        finally:
            _awaited.reset(before)

    return run_and_hear


def awaits(instance_id: str) -> None:
    """This thread waits for a machine that it has rented, if it is in `run_instances`."""
    awaited = _awaited.get()
    if awaited is not None:
        awaited.append(instance_id)


def hear(listed: Collection[str], asked_at: datetime) -> None:
    """End the wait of this thread if it is in vain.

    Args:
        listed: Ids of the machines in Vast's list.
        asked_at: When it was asked for, UTC.

    Raises:
        RuntimeError: It is, and why.
    """
    awaited = _awaited.get()
    if not awaited:
        return
    rentals = rental_log.read()
    for rental in (rentals[number] for number in awaited if number in rentals):
        if why := lost(rental, asked_at, is_listed=rental.instance_id in listed):
            raise RuntimeError(f"machine {rental.machine_id} of Vast {why}")
