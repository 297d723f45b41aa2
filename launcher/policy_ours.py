"""Our policy: believe in regimes by what was seen, and take the choice that is expected to cost least."""

import math
from dataclasses import dataclass

import numpy as np

from launcher.policies_known import KNOWN, must_pay
from launcher.policy import Action, Bools, Course, Floats, Ints, Moment, Policy, Setting
from launcher.policy_values import (
    FINE,
    GO_ON_DEMAND,
    GO_SPOT,
    ROUGH,
    START_ON_DEMAND,
    START_SPOT,
    WAIT,
    Grid,
    values,
)
from launcher.regimes import FITTED, Belief, Regimes

_ALIKE = 1e-4  # choices whose dollars differ by less are alike: spot goes before staying, waiting, paying
_NEVER = 1e9
_WAIT, _SPOT, _ON_DEMAND = map(int, Action)  # once: to look one up takes as long as to add two arrays
_HORIZON_H = 8.0  # how far ahead a place's staying up is told apart from another's (guess)


@dataclass(frozen=True)
class Ours:
    """Least expected dollars under a belief in regimes.

    Several places are taken together: spot is up where any is up, which is what waiting and paying are
    weighed against; and of those that are up, the one is taken that should stay up longest for its price.
    """

    regimes: Regimes = FITTED
    grid: Grid = FINE
    name: str = "ours"

    def begin(self, setting: Setting, num_windows: int, num_places: int) -> Course:
        """Up to two seconds for a setting that is new, nothing for one that was asked for before."""
        return _OurCourse(self, setting, num_windows, num_places)


class _OurCourse:
    def __init__(self, policy: Ours, setting: Setting, num_windows: int, num_places: int) -> None:
        regimes = policy.regimes
        self._setting, self._table = setting, values(setting, regimes, policy.grid)
        self._any = Belief(regimes, num_windows, 1, setting.tick_h)
        self._each = Belief(regimes, num_windows, num_places, setting.tick_h) if num_places > 1 else None
        self._staying_h = regimes.hours_up(_HORIZON_H, 1 / 6)

    def see(self, is_up: Bools) -> None:
        """Each place, and whether there is any."""
        self._any.see(np.asarray(is_up.any(axis=1, keepdims=True)))
        if self._each:
            self._each.see(is_up)

    def choose(self, now: Moment) -> tuple[Ints, Ints]:
        """What is expected to cost least, and never what could miss the deadline."""
        places = self._best_places(now)
        spare_h = self._setting.deadline_h - now.elapsed_h - now.work_left_h
        going_h = spare_h - now.overhead_left_h
        pays, stays = now.runs_on_demand, now.runs_on_spot & (places == now.place)
        wait, on_demand, spot = self._usd(
            now, np.stack([np.full(pays.shape, WAIT), np.where(pays, GO_ON_DEMAND, START_ON_DEMAND),
                           np.where(stays, GO_SPOT, START_SPOT)]),
            np.stack([spare_h, np.where(pays, going_h, spare_h), np.where(stays, going_h, spare_h)]))
        spot = np.where(now.is_up.any(axis=1), spot, _NEVER)
        alike = (1 + _ALIKE) * np.minimum(np.minimum(wait, on_demand), spot)
        actions = np.where(wait <= alike, _WAIT, _ON_DEMAND)
        actions = np.where(pays & (on_demand <= alike), _ON_DEMAND, actions)
        actions = np.where(spot <= alike, _SPOT, actions)
        unsafe = must_pay(now, self._setting, actions, places)
        return np.where(unsafe, _ON_DEMAND, actions), places

    def _best_places(self, now: Moment) -> Ints:
        """(N,) place that is up and costs least: price, start, move, and the losses that are to be feared."""
        if self._each is None:
            return np.zeros(now.held.shape, dtype=np.intp)
        is_here = now.runs_on_spot[:, None] & (np.arange(now.is_up.shape[1]) == now.place[:, None])
        start_h = np.where(is_here, now.overhead_left_h[:, None], self._setting.overhead_h)
        stays_h = (self._each.chances * self._staying_h[self._each.states]).sum(axis=0)
        lost_h = self._setting.overhead_h * (_HORIZON_H - stays_h) / _HORIZON_H
        hours = now.work_left_h[:, None] + start_h + lost_h
        usd = hours * now.spot_usd_per_hour + np.where(is_here, 0.0, now.move_usd)
        return np.asarray(np.argmin(np.where(now.is_up, usd, np.inf), axis=1))

    def _usd(self, now: Moment, choices: Ints, spare_h: Floats) -> Floats:
        """(3, N) expected dollars of choices, weighed by what is believed; between steps linearly.

        A part of a tick that is left besides changes all choices alike, so it is left out.
        """
        left = (self._setting.deadline_h - now.elapsed_h) / self._table.tick_h
        usd = self._table.usd[math.ceil(left - 1e-6)]
        num_states, num_steps = usd.shape[1:]
        step = np.clip(spare_h * (1 / self._table.step_h) + 1e-6, 0, num_steps - 1.001)
        low = step.astype(np.intp)
        index = (choices * (num_states * num_steps) + low)[:, None] + self._any.states[..., 0] * num_steps
        flat, chances = usd.ravel(), self._any.chances[..., 0]
        below, above = ((chances * flat.take(each)).sum(axis=1) for each in (index, index + 1))
        return np.where(spare_h < -1e-9, _NEVER, below + (step - low) * (above - below))


OURS = Ours()
FORECAST_OURS = Ours(grid=ROUGH)  # within 2 % of the mean cost by ours (measured), a tenth of the time
POLICIES: tuple[Policy, ...] = (*KNOWN, OURS)
