"""Policies replayed over recorded availability, beside what a clairvoyant would have paid. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from launcher.clairvoyant import clairvoyant_usd
from launcher.policy import Action, Course, Floats, Ints, Moment, Policy, Setting
from launcher.price_history import Period
from launcher.traces import Windows, num_ticks, one_place

CLAIRVOYANT = "clairvoyant"
_DONE_H = 1e-9
_WAIT, _SPOT, _ON_DEMAND = map(int, Action)  # once: to look one up takes as long as to add two arrays


@dataclass(frozen=True)
class Saves:
    """How often a run saves: a machine that is lost takes with it what came after the newest save.

    Attributes:
        every_h: Hours of work from one save to the next, above 0.
        stall_h: In which training stands still for one, at least 0.
    """

    every_h: float
    stall_h: float

    def stretched(self, setting: Setting) -> Setting:
        """With the time that saves take in the work."""
        return replace(setting, work_h=setting.work_h * (1 + self.stall_h / self.every_h))

    def told(self, setting: Setting) -> Setting:
        """What a policy is told: a loss may cost a whole interval besides, so that the deadline is safe."""
        lost_h = self.every_h + self.stall_h
        return replace(self.stretched(setting), overhead_h=setting.overhead_h + lost_h)


@dataclass(frozen=True)
class Outcome:
    """What a policy paid and reached in N windows.

    Attributes:
        usd: (N,) until the work was done, or the deadline.
        ended_h: (N,) hours from the start; NaN where the deadline was missed.
        num_starts: (N,) machines started.
        actions: (T, N) values of `Action` as held over each tick; `WAIT` once the work is done.
        places: (T, N) where spot was held.
    """

    usd: Floats
    ended_h: Floats
    num_starts: Ints
    actions: Ints
    places: Ints

    @classmethod
    def of_clairvoyant(cls, usd: Floats) -> "Outcome":
        """What is known of it: dollars, and that it is in time."""
        none = np.zeros((0, usd.size), dtype=np.intp)
        return cls(usd, np.zeros_like(usd), np.zeros(usd.size, dtype=np.intp), none, none)


@dataclass(frozen=True)
class Score:
    """A policy over many windows.

    Attributes:
        ratio_to_clairvoyant: Mean over windows of dollars by the clairvoyant's dollars.
        missed: Windows in which the work was not done at the deadline.
        checkpoint_minutes: Of work between two saves; None: nothing that was done is ever lost.
        periods: When a history of prices has those of the setting; empty without one.
    """

    policy: str
    setting: Setting
    num_windows: int
    mean_usd: float
    p95_usd: float
    ratio_to_clairvoyant: float
    missed: int
    checkpoint_minutes: float | None = None
    periods: tuple[Period, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As `ldlm simulate --json` prints it."""
        setting = self.setting
        return {"policy": self.policy,
                "setting": {"work_h": setting.work_h, "deadline_h": setting.deadline_h,
                            "overhead_h": setting.overhead_h, "spot_usd": setting.spot_usd_per_hour,
                            "on_demand_usd": setting.on_demand_usd_per_hour},
                "num_windows": self.num_windows, "mean_usd": self.mean_usd, "p95_usd": self.p95_usd,
                "ratio_to_clairvoyant": self.ratio_to_clairvoyant, "missed": self.missed,
                "checkpoint_minutes": self.checkpoint_minutes,
                "price_periods": [{"first": first.isoformat(), "until": until and until.isoformat()}
                                  for first, until in self.periods]}


class _Runs:
    """N runs on their way through their windows."""

    def __init__(self, setting: Setting, num_windows: int, save_every_h: float) -> None:
        self.setting, self.save_every_h = setting, save_every_h
        self.unsaved_h = np.zeros(num_windows)
        self.work_left_h = np.full(num_windows, float(setting.work_h))
        self.overhead_left_h = np.zeros(num_windows)
        self.held = np.full(num_windows, _WAIT)
        self.place = np.zeros(num_windows, dtype=np.intp)
        self.usd = np.zeros(num_windows)
        self.ended_h = np.full(num_windows, np.nan)
        self.num_starts = np.zeros(num_windows, dtype=np.intp)
        self.rows = np.arange(num_windows)

    def moment(self, windows: Windows, tick: int) -> Moment:
        """What can be known at a tick; spot that is gone is held no more."""
        is_up = windows.is_up[tick]
        is_lost = (self.held == _SPOT) & ~is_up[self.rows, self.place]
        self.held = np.where(is_lost, _WAIT, self.held)
        if self.save_every_h:
            self.work_left_h = self.work_left_h + np.where(is_lost, self.unsaved_h, 0.0)
        spot = windows.spot_usd_per_hour[tick]
        return Moment(tick * windows.tick_s / 3600, self.work_left_h, self.held, self.place,
                      self.overhead_left_h, is_up, spot, np.zeros_like(spot))

    def advance(self, windows: Windows, tick: int, step_h: float, actions: Ints, places: Ints) -> Ints:
        """Hold what was chosen for a tick, or until the work is done. Returns what was held."""
        actions = np.where(self.work_left_h > _DONE_H, actions, _WAIT)
        is_spot = actions == _SPOT
        starts = (actions != self.held) | (is_spot & (places != self.place))
        starts &= actions != _WAIT
        overhead_h = np.where(starts, self.setting.overhead_h, self.overhead_left_h)
        used_h = np.where(actions == _WAIT, 0.0, np.minimum(step_h, overhead_h + self.work_left_h))
        paid_h = np.minimum(used_h, overhead_h)
        per_hour = np.where(is_spot, windows.spot_usd_per_hour[tick][self.rows, places],
                            windows.on_demand_usd_per_hour[tick])
        self.usd += used_h * per_hour
        self.num_starts += starts
        self.overhead_left_h = overhead_h - paid_h
        self.work_left_h = self.work_left_h - (used_h - paid_h)
        if self.save_every_h:  # a machine that is left saves first
            before_h = np.where((actions == self.held) & ~starts, self.unsaved_h, 0.0)
            self.unsaved_h = np.mod(before_h + used_h - paid_h, self.save_every_h)
        ends = (actions != _WAIT) & (self.work_left_h <= _DONE_H)
        self.ended_h[ends] = tick * windows.tick_s / 3600 + used_h[ends]
        self.held, self.place = actions, np.where(is_spot, places, self.place)
        return actions


def replay(policy: Policy, setting: Setting, windows: Windows, saves: Saves | None = None) -> Outcome:
    """Let a policy decide at every tick of every window, knowing only what was before.

    Args:
        setting: Its tick is the windows' own.
        saves: None: nothing that was done is lost with a machine.
    """
    course = policy.begin(saves.told(setting) if saves else setting, windows.num_windows, windows.num_places)
    runs = _Runs(saves.stretched(setting) if saves else setting, windows.num_windows,
                 saves.every_h + saves.stall_h if saves else 0.0)
    length = num_ticks(setting, windows.tick_s)
    actions = np.zeros((length, windows.num_windows), dtype=np.intp)
    places = np.zeros_like(actions)
    for tick in range(length):
        choice, where = _choice(course, runs, windows, tick)
        step_h = min(windows.tick_s / 3600, setting.deadline_h - tick * windows.tick_s / 3600)
        actions[tick] = runs.advance(windows, tick, step_h, choice, where)
        places[tick] = where
    return Outcome(runs.usd, runs.ended_h, runs.num_starts, actions, places)


def _choice(course: Course, runs: _Runs, windows: Windows, tick: int) -> tuple[Ints, Ints]:
    """(N,) actions and places. Spot that is down is not given: who asks for it waits."""
    now = runs.moment(windows, tick)
    course.see(now.is_up)
    actions, places = course.choose(now)
    is_given = now.is_up[runs.rows, places]
    return np.where((actions == _SPOT) & ~is_given, _WAIT, actions), places


def score_all(policies: Sequence[Policy], setting: Setting, windows: Iterable[Windows], *,
              adds_one_place: bool = False, saves: Sequence[Saves] = ()) -> list[Score]:
    """Every policy on the same windows, and the clairvoyant last, who never saves.

    Args:
        windows: Of any ticks and numbers of places; a score is over all of them together.
        saves: Intervals to score each policy with; none: nothing that was done is lost.
        adds_one_place: Score each policy once more, kept to one place, against the same clairvoyant.
    """
    tables = [(each, replace(setting, tick_h=each.tick_s / 3600)) for each in windows]
    least = [clairvoyant_usd(ticking, each) for each, ticking in tables]
    repeated = [np.repeat(usd, each.num_places) for usd, (each, _) in zip(least, tables, strict=True)]
    scores = []
    for policy in policies:
        for each_saves in saves or (None,):
            outcomes = [replay(policy, ticking, each, each_saves) for each, ticking in tables]
            scores.append(_score(policy.name, setting, outcomes, least, each_saves))
            if adds_one_place:
                alone = [replay(policy, ticking, one_place(each), each_saves) for each, ticking in tables]
                scores.append(_score(f"{policy.name}, one place", setting, alone, repeated, each_saves))
    known = [Outcome.of_clairvoyant(usd) for usd in least]
    return [*scores, _score(CLAIRVOYANT, setting, known, least)]


def _score(name: str, setting: Setting, outcomes: Sequence[Outcome], least: Sequence[Floats],
           saves: Saves | None = None) -> Score:
    usd = np.concatenate([outcome.usd for outcome in outcomes])
    missed = sum(int(np.isnan(outcome.ended_h).sum()) for outcome in outcomes)
    ratios = usd / np.concatenate(least)
    return Score(name, setting, usd.size, float(usd.mean()), float(np.percentile(usd, 95)),
                 float(ratios.mean()), missed, round(saves.every_h * 60, 6) if saves else None)
