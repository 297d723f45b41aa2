"""Policies that others have: what ours is compared with. None of them remembers what it has seen."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from launcher.policy import Action, Bools, Course, Ints, Moment, Setting

_ROUNDING_H = 1e-9
_WAIT, _SPOT, _ON_DEMAND = map(int, Action)  # once: to look one up takes as long as to add two arrays


def must_pay(now: Moment, setting: Setting, actions: Ints, places: Ints) -> Bools:
    """(N,) whether a choice could miss the deadline, should spot be gone from the next tick on.

    After it, on demand must still end in time. A machine that is on demand already needs no new start.
    """
    goes_on = (actions == now.held) & ((actions == _ON_DEMAND) | (places == now.place))
    overhead_h = np.where(goes_on, now.overhead_left_h, setting.overhead_h)
    progress_h = np.where(actions == _WAIT, 0.0, np.maximum(setting.tick_h - overhead_h, 0.0))
    left_h = np.maximum(now.work_left_h - progress_h, 0.0)
    needed_h = np.where(left_h > 0, left_h + setting.overhead_h, 0.0)
    ends_late = needed_h > setting.deadline_h - now.elapsed_h - setting.tick_h + _ROUNDING_H
    return np.asarray(ends_late & (actions != _ON_DEMAND))


def cheapest_up(now: Moment, setting: Setting) -> Ints:
    """(N,) place where spot is up and ends cheapest, if it stays up: a start and a move are counted."""
    is_here = now.runs_on_spot[:, None] & (np.arange(now.is_up.shape[1]) == now.place[:, None])
    starting_usd = np.where(is_here, 0.0, now.move_usd + setting.overhead_h * now.spot_usd_per_hour)
    usd = starting_usd + now.spot_usd_per_hour * now.work_left_h[:, None]
    return np.asarray(np.argmin(np.where(now.is_up, usd, np.inf), axis=1))


def _on_demand(now: Moment, setting: Setting) -> Ints:
    return np.full(now.held.shape, _ON_DEMAND)


def _spot_or_wait(now: Moment, setting: Setting) -> Ints:
    return np.where(now.is_up.any(axis=1), _SPOT, _WAIT)


def _greedy(now: Moment, setting: Setting) -> Ints:
    """Once on demand it stays there: it was taken because no time was left to try anything else."""
    return np.where(now.runs_on_demand, _ON_DEMAND, _spot_or_wait(now, setting))


def _uniform_progress(now: Moment, setting: Setting) -> Ints:
    """Wu et al., Can't Be Late, NSDI 2024, section 4: keep up with a straight line to the deadline.

    Spot is taken when it is up and kept until it is lost; on demand is taken when progress is behind the
    line, and left once it is ahead of where the line will be in two restarts.
    """
    done_h = setting.work_h - now.work_left_h
    pace = setting.work_h / setting.deadline_h
    is_behind = done_h < now.elapsed_h * pace
    is_ahead = done_h >= (now.elapsed_h + 2 * setting.overhead_h) * pace
    pays = np.where(now.runs_on_demand, ~is_ahead, is_behind & ~now.is_up.any(axis=1))
    return np.where(pays, _ON_DEMAND, _spot_or_wait(now, setting))


@dataclass(frozen=True)
class Known:
    """A policy without memory.

    Attributes:
        wish: What it would hold if there were no deadline.
        is_safe: On demand is taken where the wish could miss the deadline.
    """

    name: str
    wish: Callable[[Moment, Setting], Ints]
    is_safe: bool = True

    def begin(self, setting: Setting, num_windows: int, num_places: int) -> Course:
        """At once."""
        return _KnownCourse(self, setting)


@dataclass(frozen=True)
class _KnownCourse:
    policy: Known
    setting: Setting

    def see(self, is_up: Bools) -> None:
        """Nothing is remembered."""

    def choose(self, now: Moment) -> tuple[Ints, Ints]:
        """Spot is taken where it ends cheapest."""
        actions, places = self.policy.wish(now, self.setting), cheapest_up(now, self.setting)
        if self.policy.is_safe:
            unsafe = must_pay(now, self.setting, actions, places)
            actions = np.where(unsafe, _ON_DEMAND, actions)
        return actions, places


ON_DEMAND = Known("on-demand", _on_demand)
SPOT_ONLY = Known("spot-only", _spot_or_wait, is_safe=False)
GREEDY = Known("greedy", _greedy)
UNIFORM_PROGRESS = Known("uniform-progress", _uniform_progress)
KNOWN = (ON_DEMAND, SPOT_ONLY, GREEDY, UNIFORM_PROGRESS)
