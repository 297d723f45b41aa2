"""A run that is under way, its course and what is seen now -> the next decision, as it is recorded. Pure.

The policy that decides is the object that `ldlm simulate` scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Self

from pydantic import AliasChoices, AwareDatetime, Field, FiniteFloat, model_validator

from launcher.course import Course, kept_back_h
from launcher.course_cap import on_demand_usd, within_cap
from launcher.errors import LdlmError
from launcher.frozen import Frozen
from launcher.policy import (
    Action,
    Decision,
    PlaceNow,
    Policy,
    Setting,
    Situation,
    decide,
    read_runs,
    run_lengths,
)

_LEAST_STEPS = 10  # before a run's own pace is believed (guess)
_LEAST_H = 1e-6  # of work: none at all is no setting


class Progress(Frozen):
    """What the record of a run says of its training.

    Attributes:
        step: The newest that is durable, or that the machine which is held has done.
        steps: Over all attempts, in `seconds` of training, evaluating and saving.
        start_s: What the machine that is held took to its first new step; None: it has made none yet.
        left_usd: What the cap leaves for training, by the dearest reading; None: it is not known.
    """

    step: int
    steps: int = 0
    seconds: float = 0.0
    start_s: float | None = None
    left_usd: float | None = None


class Seen(Frozen):
    """What is seen at a moment.

    Attributes:
        at: UTC.
        place: Which place of the course the machine is at; None: there is none.
        held_since: When that machine was asked for.
        looks: For spot places by their number: whether a machine would be given. Others are as they were.
    """

    at: AwareDatetime
    place: int | None = None
    held_since: AwareDatetime | None = None
    looks: dict[int, bool] = {}


class Move(Frozen):
    """One decision, with all that it rests on: taken again from this, it is the same.

    Attributes:
        seen: What it follows.
        tick: Which look this is, counted from the begin of the course.
        longest_start_h: That was measured, from asking for a machine to its first new step; None: none yet.
        setting, situation: As `launcher/policy.py` has them.
        left_usd: What the cap left for training then; None: not known.
        action: `wait`, `spot`, `on_demand`.
        place: Which place of the course; None: none.
        again_at: When to ask again, unless something happens before.
    """

    seen: Seen
    tick: int
    # Older records have it as `overhead_h`.
    longest_start_h: float | None = Field(validation_alias=AliasChoices("longest_start_h", "overhead_h"))
    policy: str
    setting: dict[str, float]
    situation: dict[str, Any]
    left_usd: FiniteFloat | None = None
    action: str
    place: int | None
    reason: str
    again_at: AwareDatetime

    @model_validator(mode="after")
    def _can_be(self) -> Self:
        """Refuse what no decision rests on. Raises ValueError."""
        try:
            looks = [list(read_runs(place.seen)) for place in _read(self.situation).places]
            is_whole = bool(looks) and math.isfinite(self.on_demand_usd) and self.on_demand_at >= self.seen.at
        except (LdlmError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"setting or situation cannot be read: {error}") from error
        if not is_whole:
            raise ValueError("setting or situation cannot be")
        return self

    def replayed(self, policy: Policy) -> Decision:
        """What is decided by a policy from what was recorded."""
        return _decided(policy, Setting(**self.setting), _read(self.situation), self.left_usd)

    @property
    def leaves(self) -> bool:
        """True if the machine that is held has to be left, for another or for none."""
        return self.seen.place is not None and self.place != self.seen.place

    @property
    def on_demand_at(self) -> datetime:
        """When on demand has to be taken at the latest, if the run makes no step until then."""
        said, now = Setting(**self.setting), _read(self.situation)
        spare_h = said.deadline_h - now.elapsed_h - now.work_left_h - said.overhead_h
        return self.seen.at + timedelta(hours=max(0.0, spare_h))

    @property
    def on_demand_usd(self) -> float:
        """What it costs to the end of training, from this decision on."""
        return on_demand_usd(Setting(**self.setting), _read(self.situation))


def next_move(policy: Policy, course: Course, seen: Seen, progress: Progress, before: Move | None) -> Move:
    """Decide what to hold from now on.

    Args:
        before: The newest decision of this course.

    Raises:
        UsageError: Prices or hours of the course are none.
    """
    measured_h = _measured(seen, progress, before)
    start_h = course.start_h if measured_h is None else measured_h
    each_h = _step_h(course, progress)
    setting = _setting(course, each_h, start_h)
    tick = max(0, math.floor((seen.at - course.begins_at).total_seconds() / course.tick_s))
    left_h = max(0, course.to_step - progress.step) * each_h
    situation = _situation(course, setting, start_h, seen, left_h, progress.start_s is not None,
                           _seen(course, seen, before, tick))
    found = _decided(policy, setting, situation, progress.left_usd)
    return Move(
        seen=seen, tick=tick, longest_start_h=measured_h, policy=policy.name, setting=asdict(setting),
        situation=_written(situation), left_usd=progress.left_usd, action=found.action.name.lower(),
        place=_place(course, found), reason=found.reason,
        again_at=course.begins_at + timedelta(seconds=(tick + 1) * course.tick_s))


def _decided(policy: Policy, setting: Setting, situation: Situation, left_usd: float | None) -> Decision:
    return within_cap(decide(policy, setting, situation), setting, situation, left_usd)


def _measured(seen: Seen, progress: Progress, before: Move | None) -> float | None:
    """The plan's guess counts until a start was seen; then the longest does, for a deadline forgives none."""
    known = before.longest_start_h if before else None
    if progress.start_s is None or seen.place is None:
        return known
    return max(progress.start_s / 3600, known or 0.0)


def _setting(course: Course, each_h: float, start_h: float) -> Setting:
    """Of what is known now, the deadline with what is kept back before it. A run that turns out to be too
    slow for it gets a later one, of which the same is left as of its own: it is hurried."""
    work_h = max(_LEAST_H, (course.to_step - course.from_step) * each_h)
    overhead_h = start_h + course.lost_h
    spot = min(course.places[index].usd_per_hour for index in course.spot)
    return Setting(work_h=work_h, overhead_h=overhead_h,
                   deadline_h=max(_own_h(course, work_h, start_h), work_h + overhead_h),
                   spot_usd_per_hour=float(spot), tick_h=course.tick_s / 3600,
                   on_demand_usd_per_hour=float(course.places[course.on_demand[0]].usd_per_hour))


def _own_h(course: Course, work_h: float, start_h: float) -> float:
    """Until the deadline that is decided by."""
    return course.hours - kept_back_h(course.hours, work_h, start_h, course.lost_h)


def _situation(course: Course, setting: Setting, start_h: float, seen: Seen, left_h: float,
               is_working: bool, seen_by_place: Sequence[str]) -> Situation:
    held, is_spot = seen.place, seen.place is not None and course.places[seen.place].spot
    action = Action.WAIT if held is None else Action.SPOT if is_spot else Action.ON_DEMAND
    since = seen.held_since or seen.at
    starting_h = max(0.0, start_h - (seen.at - since) / timedelta(hours=1))
    return Situation(
        elapsed_h=max(0.0, (seen.at - course.begins_at) / timedelta(hours=1)
                      + setting.deadline_h - _own_h(course, setting.work_h, start_h)),
        work_left_h=left_h, held=action,
        place=course.spot.index(held) if is_spot and held is not None else None,
        overhead_left_h=0.0 if held is None or is_working else starting_h,
        places=tuple(PlaceNow(text, float(course.places[index].usd_per_hour),
                              0.0 if index == held else float(course.places[index].move_usd))
                     for index, text in zip(course.spot, seen_by_place, strict=True)))


def _step_h(course: Course, progress: Progress) -> float:
    """Hours of a step: by the run's own pace once that is known, else by the plan's."""
    if progress.steps >= _LEAST_STEPS and progress.seconds > 0:
        return progress.seconds / progress.steps / 3600
    return course.work_h / max(1, course.to_step - course.from_step)


def _seen(course: Course, seen: Seen, before: Move | None, tick: int) -> list[str]:
    """Run lengths of each spot place, with what is seen now. Ticks that nobody looked at are as the one
    before; of two looks in one tick the later counts."""
    old = [one["seen"] for one in before.situation["places"]] if before else [""] * len(course.spot)
    skipped = tick - before.tick if before else 1
    return [_with_look(text, seen.looks.get(index, seen.place == index or None), skipped)
            for index, text in zip(course.spot, old, strict=True)]


def _with_look(text: str, is_up: bool | None, skipped: int) -> str:
    ups = [one for one, length in read_runs(text) for _ in range(length)] if text else []
    last = ups[-1] if ups else False
    ups += [last] * max(0, skipped)
    ups[-1] = last if is_up is None else is_up
    return run_lengths(ups)


def _place(course: Course, found: Decision) -> int | None:
    if found.action is Action.WAIT:
        return None
    return course.on_demand[0] if found.place is None else course.spot[found.place]


def _written(situation: Situation) -> dict[str, Any]:
    return asdict(situation) | {"held": situation.held.name.lower()}


def _read(written: Mapping[str, Any]) -> Situation:
    return Situation(**{**written, "held": Action[written["held"].upper()],
                        "places": tuple(PlaceNow(**one) for one in written["places"])})
