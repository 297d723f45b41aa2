"""How spot comes and goes: a few regimes, and which of them a place seems to be in.

A regime is two lists of rates an hour: of going down, by how long it has been up, and of coming back, by how
long it has been down. Which regime a place is in is never seen; what it has done says it by and by.
"""

import math
from dataclasses import dataclass

import numpy as np

from launcher.policy import Bools, Floats

# Upper edges, in hours already seen in this state; the last is open.
AGE_EDGES_H = (1 / 6, 1 / 3, 2 / 3, 4 / 3, 8 / 3, 16 / 3, 32 / 3)
NUM_AGES = len(AGE_EDGES_H) + 1
_EDGE_ROUNDING_H = 0.01


@dataclass(frozen=True, eq=False)
class Regimes:
    """K regimes.

    Attributes:
        leave: (K, 2, NUM_AGES) rates an hour: [:, 0] of coming back when down, [:, 1] of going down when up.
        share: (K, 2) chance of regime and of being down, up at the first look.
        switch: (K, K) rates an hour from one regime to another; the diagonal is 0.
    """

    leave: Floats
    share: Floats
    switch: Floats

    @property
    def num(self) -> int:
        """K."""
        return int(self.leave.shape[0])

    def switching(self, hours: float) -> Floats:
        """(K, K) chances of being in another regime after some hours, for hours far below 1 / rate."""
        moved = self.switch * hours
        return np.asarray(moved + np.diag(1 - moved.sum(axis=1)))

    def chain(self, hours: float) -> Floats:
        """(K * 2 * NUM_AGES, same) chances from one tick to the next, of regime, up or down, age.

        Args:
            hours: Of a tick.
        """
        stays = np.exp(-self.leave * hours)  # (K, 2, A)
        widths_h = np.diff([0.0, *AGE_EDGES_H])
        older = np.append(np.minimum(hours / widths_h, 1.0), 0.0)  # the chance to be a bin older after a tick
        step = np.zeros((self.num, 2, NUM_AGES, 2, NUM_AGES))
        for age in range(NUM_AGES):
            for is_up in (0, 1):
                step[:, is_up, age, is_up, age] += stays[:, is_up, age] * (1 - older[age])
                step[:, is_up, age, is_up, min(age + 1, NUM_AGES - 1)] += stays[:, is_up, age] * older[age]
                step[:, is_up, age, 1 - is_up, 0] += 1 - stays[:, is_up, age]
        size = self.num * 2 * NUM_AGES
        switching = self.switching(hours)
        return np.asarray(np.einsum("kuavb,kl->kualvb", step, switching).reshape(size, size))

    def hours_up(self, horizon_h: float, tick_h: float) -> Floats:
        """(K * 2 * NUM_AGES,) hours until a place of a state goes down, at most the horizon; 0 when down."""
        chain = self.chain(tick_h)
        is_up = (np.arange(len(chain)) // NUM_AGES) % 2 == 1
        hours = np.zeros(len(chain))
        for _ in range(round(horizon_h / tick_h)):
            hours = np.where(is_up, tick_h + chain @ np.where(is_up, hours, 0.0), 0.0)
        return hours


class Belief:
    """What is believed of (N, P) places, from all that was seen of each.

    Regimes come first in all arrays: sums over the few of them are then of long rows (a replay takes 0.8 of
    the time, measured).

    Attributes:
        chances: (K, N, P) of each regime.
        states: (K, N, P) state of the chain, should the place be in each regime.
    """

    def __init__(self, regimes: Regimes, num_windows: int, num_places: int, tick_h: float) -> None:
        self._regimes = regimes
        stays = np.exp(-regimes.leave * tick_h)
        # (K, 2 stays or leaves * 2 was down or up * A how long)
        self._chance = np.stack([stays, 1 - stays], axis=1).reshape(regimes.num, -1)
        self._switching = regimes.switching(tick_h).T.copy()
        self._is_fresh = True
        self._is_up = np.zeros((num_windows, num_places), dtype=np.intp)
        self._num_looks = np.zeros((num_windows, num_places), dtype=np.intp)  # in this state
        self._regime_states = (np.arange(regimes.num) * (2 * NUM_AGES))[:, None, None]
        self.chances = np.zeros((regimes.num, num_windows, num_places))
        self.states = np.zeros((regimes.num, num_windows, num_places), dtype=np.intp)
        num_looks = np.arange(math.ceil(AGE_EDGES_H[-1] / tick_h) + 2)
        self._age_of = np.searchsorted(np.array(AGE_EDGES_H) + _EDGE_ROUNDING_H, num_looks * tick_h)
        self._state = np.zeros((num_windows, num_places), dtype=np.intp)  # of the first regime

    def see(self, is_up: Bools) -> None:
        """One look more: (N, P)."""
        now = is_up.astype(np.intp)
        if self._is_fresh:
            self._is_fresh = False
            self.chances = self._regimes.share[:, now]
            self._num_looks = np.ones_like(now)
        else:
            leaves = now != self._is_up
            likely = self._chance.take(self._state + leaves * (2 * NUM_AGES), axis=1)
            moved = self._switching @ (self.chances * likely).reshape(self._regimes.num, -1)
            self.chances = moved.reshape(likely.shape)
            self._num_looks = np.where(leaves, 1, self._num_looks + 1)
        self.chances = self.chances / self.chances.sum(axis=0)
        self._is_up = now
        self._state = now * NUM_AGES + self._age_of.take(self._num_looks, mode="clip")
        self.states = self._state + self._regime_states


# Made by `python -m tests.fit_regimes` from 1,650 windows of AWS spot availability (V100 and K80, 2022 and
# 2023; shared/data, MIT), zones and dates not told apart. From left to right: longer as it is.
FITTED = Regimes(
    leave=np.array([
        [[1.23, 0.79, 0.78, 0.74, 0.52, 0.27, 0.13, 0.22],  # changing often: comes back
         [1.29, 1.12, 0.89, 0.86, 0.44, 0.28, 0.34, 0.25]],  # and goes
        [[2.09, 1.25, 0.87, 0.45, 0.34, 0.24, 0.23, 0.10],  # scarce: up for minutes
         [3.52, 3.21, 1.75, 1.92, 0.03, 5.12, 0.01, 0.00]],
        [[3.35, 2.25, 1.53, 1.32, 0.08, 0.28, 0.27, 5.24],  # plenty: down for minutes
         [1.15, 0.97, 0.55, 0.33, 0.27, 0.18, 0.14, 0.09]]]),
    share=np.array([[0.208, 0.139], [0.151, 0.018], [0.040, 0.444]]),
    switch=np.array([[0.000, 0.000, 0.008], [0.007, 0.000, 0.006], [0.003, 0.002, 0.000]]))
