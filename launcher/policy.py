"""What to hold next, spot or on demand or nothing, and where, so that a run ends in time for the least money.

One object decides everywhere: on-line for one run (`decide`), and in `simulate` for thousands of windows at
once. A policy is written over arrays of windows, and a run that is on now is an array of one. Pure: what the
clock says and what was seen are arguments. Nothing is remembered between two decisions but what is in the
`Situation`, so a decision can be taken again from the record of a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.errors import NoOfferError, UsageError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]


class Action(IntEnum):
    """What is held for the next tick."""

    WAIT = 0
    SPOT = 1
    ON_DEMAND = 2


_, _SPOT, _ON_DEMAND = map(int, Action)  # once: to look one up takes as long as to add two arrays

_MOST_DIGITS = 7  # of a run length: 115 days of looks a second apart; keeps arrays within memory


@dataclass(frozen=True)
class Setting:
    """What is known before the run begins, and does not change.

    Attributes:
        work_h: Hours of undisturbed training, above 0.
        deadline_h: Hours from the start until it must have ended.
        overhead_h: Paid hours without progress after each start of a machine: set-up, restore, work lost.
        spot_usd_per_hour: All nodes together; where places differ, of the place that a run would begin in.
        on_demand_usd_per_hour: The same nodes where nobody takes them back.
        tick_h: Hours between two looks at what is available, each followed by a decision.
    """

    work_h: float
    deadline_h: float
    overhead_h: float
    spot_usd_per_hour: float
    on_demand_usd_per_hour: float
    tick_h: float = 1 / 6

    def __post_init__(self) -> None:
        """Raises: UsageError: not a finite number above 0. NoOfferError: even on demand it ends too late."""
        for name, value in vars(self).items():
            if not np.isfinite(value) or value < 0 or (value == 0 and name != "overhead_h"):
                raise UsageError(f"{name} is {value}", fix="a number above 0, in hours or dollars an hour")
        missing_h = self.work_h + self.overhead_h - self.deadline_h
        if missing_h > 1e-9:
            raise NoOfferError(
                f"{self.work_h:g} h of work and {self.overhead_h:g} h of starting do not fit into "
                f"{self.deadline_h:g} h: {missing_h:.2f} h are missing, even on demand from the first minute",
                fix=f"a deadline of {self.work_h + self.overhead_h:.2f} h or more, or less work")


@dataclass(frozen=True)
class PlaceNow:
    """One zone of spot machines, as it is at a tick.

    Attributes:
        seen: Run lengths in ticks since the first look, the newest last and holding now: `12u,3d,1u` was
            up for 12 looks, down for 3, and is up. As in the traces that `simulate` reads.
        spot_usd_per_hour: Now.
        move_usd: To bring checkpoint and encoder here from where they are; 0 where they are.
    """

    seen: str
    spot_usd_per_hour: float
    move_usd: float = 0.0

    @property
    def is_up(self) -> bool:
        """A spot machine would be given here now."""
        return self.seen.endswith("u")


@dataclass(frozen=True)
class Situation:
    """All that a decision rests on besides the setting.

    Attributes:
        elapsed_h: Since the run began.
        work_left_h: Hours of undisturbed training that are left.
        held: What is held now; spot that has just been taken back is `WAIT`.
        place: Index in `places` of the spot machine that is held, else None.
        overhead_left_h: Of the machine that is held: hours until it makes progress.
        places: At least one.
    """

    elapsed_h: float
    work_left_h: float
    held: Action
    place: int | None
    overhead_left_h: float
    places: tuple[PlaceNow, ...]


@dataclass(frozen=True)
class Decision:
    """What to hold until the next tick.

    Attributes:
        place: Index in `Situation.places` for spot, else None.
        reason: One line for the record and the screen.
    """

    action: Action
    place: int | None
    reason: str


@dataclass
class Moment:
    """A `Situation` of N windows with P places each, at the same tick.

    Attributes:
        work_left_h, overhead_left_h: (N,) hours.
        held: (N,) values of `Action`.
        place: (N,) where spot is held; anything elsewhere.
        is_up: (N, P)
        spot_usd_per_hour, move_usd: (N, P) dollars.
    """

    elapsed_h: float
    work_left_h: Floats
    held: Ints
    place: Ints
    overhead_left_h: Floats
    is_up: Bools
    spot_usd_per_hour: Floats
    move_usd: Floats

    @property
    def runs_on_demand(self) -> Bools:
        """(N,)"""
        return np.asarray(self.held == _ON_DEMAND)

    @property
    def runs_on_spot(self) -> Bools:
        """(N,)"""
        return np.asarray(self.held == _SPOT)

    def spare_h(self, setting: Setting) -> Floats:
        """(N,) hours that are left over when on demand is taken now, or kept."""
        overhead_h = np.where(self.runs_on_demand, self.overhead_left_h, setting.overhead_h)
        return np.asarray(setting.deadline_h - self.elapsed_h - self.work_left_h - overhead_h)


class Course(Protocol):
    """A policy on its way through N windows: sees every tick once, in order, and may be asked at any."""

    def see(self, is_up: Bools) -> None:
        """What is available at the next tick: (N, P)."""

    def choose(self, now: Moment) -> tuple[Ints, Ints]:
        """(N,) values of `Action` and (N,) places, after `see` of the same tick."""


class Policy(Protocol):
    """A way to decide. `begin` may be slow (tables of values); a course is fast."""

    @property
    def name(self) -> str:
        """As typed after `--policy`."""

    def begin(self, setting: Setting, num_windows: int, num_places: int) -> Course:
        """A course that has seen nothing yet."""


def decide(policy: Policy, setting: Setting, now: Situation) -> Decision:
    """One decision of a run that is on: the same computation as in `simulate`, for one window.

    Raises:
        UsageError: What was seen cannot be read.
    """
    course = policy.begin(setting, 1, len(now.places))
    for is_up in _looks(now.places):
        course.see(is_up)
    actions, places = course.choose(_moment(now))
    action = Action(int(actions[0]))
    place = int(places[0]) if action is Action.SPOT else None
    return Decision(action, place, _reason(setting, now, action, place))


def read_runs(text: str, place: str | None = None) -> Iterator[tuple[bool, int]]:
    """Run lengths such as `12u,3d` as (is available, number of ticks).

    Raises:
        UsageError: It is not such a text.
    """
    for part in text.split(","):
        length, kind = part[:-1], part[-1:]
        if (kind not in ("u", "d") or len(length) > _MOST_DIGITS
                or not (length.isascii() and length.isdigit()) or int(length) < 1):
            raise UsageError(f"{part[:20]!r} is no run length", place=place,
                             fix=f"numbers of ticks of up to {_MOST_DIGITS} digits, u for available and d for"
                                 " not: 12u,3d,40u")
        yield kind == "u", int(length)


def run_lengths(ups: Sequence[bool]) -> str:
    """`2u,1d` of two looks that found something and one that did not."""
    runs: list[tuple[bool, int]] = []
    for is_up in ups:
        length = runs.pop()[1] if runs and runs[-1][0] == is_up else 0
        runs.append((is_up, length + 1))
    return ",".join(f"{length}{'u' if is_up else 'd'}" for is_up, length in runs)


def _looks(places: tuple[PlaceNow, ...]) -> Iterator[Bools]:
    """(1, P) of every tick. A place that was added later was down before it was looked at."""
    seen = [[is_up for is_up, length in read_runs(place.seen) for _ in range(length)] for place in places]
    length = max(map(len, seen))
    yield from np.array([[False] * (length - len(ups)) + ups for ups in seen]).T[:, None, :]


def _moment(now: Situation) -> Moment:
    return Moment(
        elapsed_h=now.elapsed_h, work_left_h=np.array([now.work_left_h]), held=np.array([int(now.held)]),
        place=np.array([now.place or 0]), overhead_left_h=np.array([now.overhead_left_h]),
        is_up=np.array([[place.is_up for place in now.places]]),
        spot_usd_per_hour=np.array([[place.spot_usd_per_hour for place in now.places]]),
        move_usd=np.array([[place.move_usd for place in now.places]]))


def _reason(setting: Setting, now: Situation, action: Action, place: int | None) -> str:
    spare_h = float(_moment(now).spare_h(setting)[0])
    num_up = sum(each.is_up for each in now.places)
    seen = f"spot is up in {num_up} of {len(now.places)} places" if num_up else "spot is up nowhere"
    if action is Action.WAIT:
        return f"{seen}; {spare_h:.2f} h to spare, so waiting costs least"
    if action is Action.SPOT and place is not None:
        stays = now.held is Action.SPOT and now.place == place
        usd_per_hour = now.places[place].spot_usd_per_hour
        return f"{seen}; {'it stays on' if stays else 'it takes'} ${usd_per_hour:.2f}/h"
    return f"{seen}; {spare_h:.2f} h to spare, so on demand costs least in the end"
