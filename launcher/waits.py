"""How long a task waits for a machine, and what is said of one that has waited in vain. Pure.

SkyPilot's managed jobs wait for ever. `launcher/capacity_watch.py` ends those of ours that have waited long
enough, and says why in SkyPilot's own record of the job, where the launcher reads it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from launcher.registry_login import CHECK_IMAGE
from trainer.contract import MAX_WRONG_MACHINES, Outcome

# A machine that was got loads its image and is set up; then it counts as none (guess).
GETS_READY = timedelta(minutes=30)
_TRIES_OF_IMAGE = 2  # machines that cannot pull it, before it is the image's fault (guess)
_NOTE = re.compile(r"ldlm ends it \((?P<outcome>\w+)\): (?P<reason>.*)", re.DOTALL)


@dataclass(frozen=True)
class End:
    """How a run ends, and why in one line."""

    outcome: Outcome
    reason: str

    @property
    def note(self) -> str:
        """As it stands in SkyPilot's record of the job."""
        return f"ldlm ends it ({self.outcome}): {self.reason}"


@dataclass(frozen=True)
class Waiting:
    """A task that does not run.

    Attributes:
        since: When it began to look for a machine; None: it has not, SkyPilot has other jobs to start.
        wait: How long it may.
        deadline: Of its run.
        machine_since: When it got a machine, which is not ready yet.
        num_wrong: Machines of this task that have said that they are the wrong ones.
        unpulled: Its image by the machines of this wait that could not pull it, in the order of the tries.
    """

    since: datetime | None
    wait: timedelta
    deadline: datetime | None = None
    machine_since: datetime | None = None
    num_wrong: int = 0
    unpulled: tuple[str, ...] = ()


def end_of(waiting: Waiting, now: datetime) -> End | None:
    """Why a task should not wait any longer; None: it should."""
    if len(waiting.unpulled) >= _TRIES_OF_IMAGE:
        return End(Outcome.BAD_CONFIG, f"{len(waiting.unpulled)} machines could not pull the image "
                   f"{waiting.unpulled[-1]}: {CHECK_IMAGE}; then launch anew, or with another: "
                   "--set hardware.train.0.image=NAME (hardware.bench of a benchmark)")
    # A node counts them too, in the store, unless it is the store that its machine cannot reach.
    if waiting.num_wrong >= MAX_WRONG_MACHINES:
        return End(Outcome.NO_CAPACITY, f"{waiting.num_wrong} machines were wrong, by their own word")
    if waiting.machine_since and now - waiting.machine_since < GETS_READY:
        return None
    if waiting.deadline and now >= waiting.deadline:
        return End(Outcome.NO_CAPACITY,
                   f"no machine before the deadline of {waiting.deadline:%m-%d %H:%M} UTC")
    if waiting.since and now - waiting.since >= waiting.wait:
        hours = waiting.wait / timedelta(hours=1)
        return End(Outcome.NO_CAPACITY, f"no machine within {hours:g} h, as long as it may wait")
    return None


def waits_since(events: Iterable[tuple[str, datetime]]) -> datetime | None:
    """When a task began to look for the machine that it does not have.

    Args:
        events: SkyPilot's words for what became of it (`STARTING`, `RUNNING`), and when, oldest first.
    """
    since = None
    for word, at in events:
        if word == "RUNNING":
            since = None
        elif word in ("STARTING", "RECOVERING"):
            since = since or at
    return since


def end_in(details: str | None) -> End | None:
    """The end that was noted in SkyPilot's record of a job; None: nobody but its user has ended it."""
    found = _NOTE.search(details or "")
    if found is None or found["outcome"] not in list(Outcome):
        return None
    return End(Outcome(found["outcome"]), found["reason"])
