"""How spot comes and goes: a few regimes, and which of them a place seems to be in.

A regime is two lists of rates an hour: of going down, by how long it has been up, and of coming back, by how
long it has been down. Which regime a place is in is never seen; what it has done says it by and by.
"""

from dataclasses import dataclass

import numpy as np

from launcher.policy import Bools, Floats, Ints

# Upper edges, in hours already seen in this state; the last is open.
AGE_EDGES_H = (1 / 6, 1 / 3, 2 / 3, 4 / 3, 8 / 3, 16 / 3, 32 / 3)
NUM_AGES = len(AGE_EDGES_H) + 1
_EDGE_ROUNDING_H = 0.01


@dataclass(frozen=True)
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


class Belief:
    """What is believed of (N, P) places: the chance of each regime, from all that was seen of the place."""

    def __init__(self, regimes: Regimes, num_windows: int, num_places: int, tick_h: float) -> None:
        self._tick_h = tick_h
        self._regimes = regimes
        stays = np.exp(-regimes.leave * tick_h)
        # (2 stays or leaves, 2 was up, A, K)
        self._chance = np.moveaxis(np.stack([stays, 1 - stays]), 1, -1)
        self._switching = regimes.switching(tick_h)
        self._is_fresh = True
        self.is_up = np.zeros((num_windows, num_places), dtype=np.intp)
        self.num_looks = np.zeros((num_windows, num_places), dtype=np.intp)  # in this state
        self.chances = np.zeros((num_windows, num_places, regimes.num))
        edges = np.searchsorted(np.array(AGE_EDGES_H) + _EDGE_ROUNDING_H, np.arange(1, 4000) * tick_h)
        self._ages = np.concatenate([[0], edges])

    @property
    def ages(self) -> Ints:
        """(N, P) bins of how long it has been as it is."""
        return np.asarray(self._ages[np.minimum(self.num_looks, len(self._ages) - 1)])

    def see(self, is_up: Bools) -> None:
        """One look more: (N, P)."""
        now = is_up.astype(np.intp)
        if self._is_fresh:
            self._is_fresh = False
            self.chances = self._regimes.share.T[now]
            leaves = np.zeros(now.shape, dtype=bool)
        else:
            leaves = now != self.is_up
            likely = self._chance[leaves.astype(np.intp), self.is_up, self.ages]
            self.chances = (self.chances * likely) @ self._switching
        self.chances = self.chances / self.chances.sum(axis=-1, keepdims=True)
        self.num_looks = np.where(leaves, 0, self.num_looks) + 1
        self.is_up = now
