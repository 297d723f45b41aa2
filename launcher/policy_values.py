"""What each choice costs until the end: a table by time left, state of spot, and time to spare.

A dynamic programme from the deadline back. Time to spare is what would be left over if the work that is left
ran undisturbed from now on: running keeps it, waiting and starting use it up. All that is uncertain is one
Markov chain of regime, up or down, and since when (`Regimes.chain`). What is believed of the regime is not
part of the state: choices are weighed by it when they are made (QMDP: Littman, Cassandra and Kaelbling,
Learning policies for partially observable environments, 1995). That loses nothing by not asking: what is
available is seen whatever is held.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from launcher.policy import Setting
from launcher.regimes import NUM_AGES, Regimes

Table = NDArray[np.float32]
WAIT, GO_ON_DEMAND, START_ON_DEMAND, GO_SPOT, START_SPOT = range(5)
_NEVER = np.float32(1e6)  # dollars of what would miss the deadline, or is not to be had
_TICK_H = 1 / 6  # of the table (guess): availability was recorded about so often
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Grid:
    """How fine a table is.

    Attributes:
        least_ticks, most_ticks: From the start to the deadline.
        most_steps: Of time to spare; the first is none.
        steps_per_tick: At most.
    """

    least_ticks: int
    most_ticks: int
    most_steps: int
    steps_per_tick: int


FINE = Grid(100, 400, 650, 5)  # to decide by: up to two seconds of work
ROUGH = Grid(60, 100, 150, 3)  # to forecast by what decides: a tenth of that


@dataclass(frozen=True)
class Values:
    """Expected dollars until the end, by choice.

    Attributes:
        tick_h: Hours of a tick of the table.
        step_h: Hours to spare from one column to the next; the first has none.
        usd: (ticks left, choice, state of the chain, steps to spare)
    """

    tick_h: float
    step_h: float
    usd: Table


@lru_cache(maxsize=8)
def values(setting: Setting, regimes: Regimes, grid: Grid = FINE) -> Values:
    """The table of a setting: worked out once.

    Args:
        setting: Its tick divides the table's.
    """
    coarse_h = max(min(_TICK_H, setting.deadline_h / grid.least_ticks), setting.deadline_h / grid.most_ticks)
    tick_h = setting.tick_h * max(1, round(coarse_h / setting.tick_h))
    slack_h = setting.deadline_h - setting.work_h
    per_tick = max(1, min(grid.steps_per_tick, int(grid.most_steps * tick_h / max(slack_h, tick_h))))
    steps = int(slack_h / tick_h * per_tick + _ROUNDING) + 2
    length = math.ceil(setting.deadline_h / tick_h) + 2
    solver = _Solver(setting, regimes, tick_h, per_tick, steps)
    return Values(tick_h, tick_h / per_tick, np.stack(list(solver.solve(length))))


class _Solver:
    """Values of holding nothing, on demand or spot, of each number of ticks left; the newest last."""

    def __init__(self, setting: Setting, regimes: Regimes, tick_h: float, per_tick: int, steps: int) -> None:
        self.setting, self.tick_h, self.per_tick = setting, tick_h, per_tick
        self.chain = regimes.chain(tick_h).astype(np.float32)
        states = np.arange(len(self.chain))
        self.is_up = ((states // NUM_AGES) % 2 == 1)[:, None]
        self.spare_h = (np.arange(steps) * (tick_h / per_tick)).astype(np.float32)
        nothing_left = np.where(self.spare_h >= 0, np.float32(0), _NEVER)
        end = np.broadcast_to(nothing_left, (len(states), steps))
        self.free, self.on_demand, self.spot = [end], [end], [end]

    def solve(self, length: int) -> Iterator[Table]:
        """(choice, state, step) of 0, 1, … ticks left."""
        yield np.zeros((5, *self.free[0].shape), dtype=np.float32)
        for left in range(1, length):
            usd = self._choices(left)
            free = np.minimum(np.minimum(usd[WAIT], usd[START_ON_DEMAND]), usd[START_SPOT])
            self.free.append(free)
            self.on_demand.append(np.minimum(free, usd[GO_ON_DEMAND]))
            self.spot.append(np.minimum(free, usd[GO_SPOT]))
            yield usd

    def _choices(self, left: int) -> Table:
        spot, on_demand = self.setting.spot_usd_per_hour, self.setting.on_demand_usd_per_hour
        usd = np.stack([
            self._later(self.chain @ self.free[left - 1], self.tick_h),
            self._go(left, on_demand, self.on_demand),
            self._start(left, on_demand, self.on_demand, is_spot=False),
            self._go(left, spot, self.spot),
            self._start(left, spot, self.spot, is_spot=True)])
        usd[GO_SPOT:] = np.where(self.is_up, usd[GO_SPOT:], _NEVER)
        is_done = self._work_h(left) <= _ROUNDING
        return np.asarray(np.where(is_done, np.float32(0), np.minimum(usd, _NEVER)))

    def _work_h(self, left: int) -> Table:
        """(steps,) hours of work that are left with so many ticks left."""
        return np.asarray(np.maximum(np.float32(left * self.tick_h) - self.spare_h, np.float32(0)))

    def _go(self, left: int, usd_per_hour: float, held: list[Table]) -> Table:
        """Keep what runs for a tick."""
        work_h = self._work_h(left)
        ends = work_h <= self.tick_h
        paid = np.float32(usd_per_hour) * np.minimum(work_h, np.float32(self.tick_h))
        return np.asarray(paid + np.where(ends, np.float32(0), self.chain @ held[left - 1]))

    def _start(self, left: int, usd_per_hour: float, held: list[Table], *, is_spot: bool) -> Table:
        """Start a machine and keep it through its overhead, unless it is taken back before."""
        overhead_h = self.setting.overhead_h
        num_ticks = max(1, math.ceil(overhead_h / self.tick_h - _ROUNDING))
        then = left - num_ticks
        if then < 0:
            return np.full_like(self.free[0], _NEVER)
        rest_h = overhead_h - (num_ticks - 1) * self.tick_h
        work_h = self._work_h(then + 1)
        ends = work_h <= self.tick_h - rest_h
        paid = np.float32(usd_per_hour) * np.minimum(np.float32(self.tick_h), np.float32(rest_h) + work_h)
        going = self._later(self.chain @ held[then], rest_h)
        usd = paid + np.where(ends, np.float32(0), going)
        for later in range(then + 1, left):
            still = np.where(self.is_up, usd, self.free[later]) if is_spot else usd
            usd = np.float32(usd_per_hour * self.tick_h) + self._later(self.chain @ still, self.tick_h)
        return np.asarray(usd)

    def _later(self, usd: Table, hours: float) -> Table:
        """(state, step) of values when so many hours to spare have been used up, between steps linearly."""
        whole, part = divmod(hours / self.tick_h * self.per_tick + _ROUNDING, 1)
        first, part = int(whole), 0.0 if part < 2 * _ROUNDING else part
        out = np.full_like(usd, _NEVER)
        if part == 0:
            out[:, first:] = usd[:, :usd.shape[1] - first]
        else:
            high, low = usd[:, 1:usd.shape[1] - first], usd[:, :usd.shape[1] - first - 1]
            out[:, first + 1:] = (1 - part) * high + part * low
        return out
