"""What a run with a deadline takes along, so that its supervisor can decide between spot and on demand.

It travels in the task (`LDLM_COURSE`), for the laptop may be off when it is asked. Pure;
`launcher/course_plan.py` makes it of a plan, `launcher/next_move.py` decides by it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher.frozen import Frozen
from trainer.contract import Env

# Strategies for a task that asks for another machine: ours of `launcher/sky_strategy.py`, and SkyPilot's
# own. FAILOVER would start a task again on the same machine, which may be the wrong one.
ON_COURSE, ELSEWHERE = "LDLM", "EAGER_NEXT_REGION"


class Place(Frozen):
    """Somewhere that a run may go on.

    Attributes:
        spot: Its machine can be taken back.
        resource: Which of the task's candidates it is, from 0: one of Vast is rented either way.
        move_usd: To bring checkpoint and encoder there.
        envs: What the nodes there are told of their machine.
        wishes: What Vast is asked for there, a bid among it or none; None on other clouds.
    """

    infra: str
    spot: bool
    resource: int
    usd_per_hour: Decimal
    move_usd: Decimal
    envs: dict[str, str]
    wishes: dict[str, Any] | None = None


class Course(Frozen):
    """Of one start of a run, the first or a later one.

    Attributes:
        begins_at, ends_at: UTC: when it was planned, and its deadline.
        work_h: Undisturbed training from then on, by the plan.
        overhead_h: From a machine that is lost to new progress, by the plan: a start, and `lost_h`.
        lost_h: Of it, the most work that a loss costs, so that a deadline holds whenever it comes.
        tick_s: Between two decisions.
        from_step, to_step: What `work_h` is of.
        policy: By which is decided, a name of `launcher/policy_ours.py` or `policies_known.py`.
        places: In the order of the recipe: spot and on demand, one of each at least.
    """

    begins_at: datetime
    ends_at: datetime
    work_h: float
    overhead_h: float
    lost_h: float = 0.0
    tick_s: float
    from_step: int
    to_step: int
    policy: str
    places: tuple[Place, ...]

    @classmethod
    def of_task(cls, envs: Mapping[str, str]) -> "Course | None":
        """From the variables of a task; None where it has none. Raises ValueError."""
        text = envs.get(Env.COURSE)
        return cls.model_validate_json(text) if text else None

    @property
    def hours(self) -> float:
        """From its begin to the deadline."""
        return (self.ends_at - self.begins_at) / timedelta(hours=1)

    @property
    def spot(self) -> list[int]:
        """Which places are spot."""
        return [index for index, place in enumerate(self.places) if place.spot]

    @property
    def on_demand(self) -> list[int]:
        """Which places are on demand, the cheapest first."""
        found = [index for index, place in enumerate(self.places) if not place.spot]
        return sorted(found, key=lambda index: self.places[index].usd_per_hour)

    @property
    def start_h(self) -> float:
        """From a machine that is asked for to new progress, by the plan."""
        return self.overhead_h - self.lost_h

    @property
    def on_demand_at(self) -> datetime:
        """When on demand has to be taken at the latest, if nothing is done until then."""
        kept_h = kept_back_h(self.hours, self.work_h, self.start_h, self.lost_h)
        return self.ends_at - timedelta(hours=self.work_h + self.overhead_h + kept_h)


def overhead_of(hours: float, work_h: float, start_h: float, lost_h: float) -> tuple[float, float]:
    """Hours of a start and of the most work that a loss costs, as far as a deadline leaves room for them."""
    spare_h = max(0.0, hours - work_h)
    start_h = min(start_h, spare_h)
    return start_h, min(lost_h, work_h, spare_h - start_h)


def kept_back_h(hours: float, work_h: float, start_h: float, lost_h: float) -> float:
    """Of the hours until a deadline, those at its end on which no decision counts.

    One start, for the next may take twice as long as the longest that was seen (as in the lab); of what is
    to spare at most half (guess).
    """
    return min(start_h, max(0.0, hours - work_h - start_h - lost_h) / 2)
