"""How long machines of a place live, and how long it takes until there is one again: beliefs. Pure."""

import math
import statistics
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from launcher.frozen import Frozen

if TYPE_CHECKING:
    from launcher.policy import Floats

# One standard deviation by which a run finds a place other than it is on average, as a logarithm: replayed
# traces of AWS before a date were covered best by it (recipes/LOG.md, calibration of forecasts).
_DRIFT = 1.0
# The same of places beside each other, of lives and of waits: between ten zones and GPUs of AWS (replayed).
_PLACES_LIVES, _PLACES_WAITS = 0.9, 0.6
_GRID_STEP, _GRID_ENDS = 0.05, 10.0  # of logarithms about the guess's, on which beliefs are worked out
Z90 = statistics.NormalDist().inv_cdf(0.9)
_LEAST_H = 1 / 3600  # that a loss takes
# Of what nothing was seen of. Each zone forecast by the others' middle: 75 % of runs inside p10 - p90 with
# about so much (1.35), 63 % with 1.0 (recipes/LOG.md).
GUESS_LOSS_SPREAD, GUESS_WAIT_SPREAD = math.hypot(_PLACES_LIVES, _DRIFT), math.hypot(_PLACES_WAITS, _DRIFT)


class Seen(Frozen):
    """What one run, or one look at a place for some days, has seen.

    Attributes:
        losses: Times that a machine was lost, or would have been.
        up_h: Hours in which there was one, those of machines that were not lost among them.
        returns: Times that there was one again.
        down_h: Hours in which there was none, those of waits among them that did not see its end.
    """

    losses: int
    up_h: float
    returns: int
    down_h: float


class Availability(Frozen):
    """Machines of a place: each lives for a random time, and the next comes after another.

    Both times are exponential within a run. Their means are not known: logarithms of them are normal.

    Attributes:
        hours_to_loss: Median of the mean life of a machine.
        loss_spread: Standard deviation of its logarithm.
        hours_to_machine: Median of the mean time without one; 0: there always is one.
        wait_spread: Of its logarithm.
    """

    hours_to_loss: float
    loss_spread: float
    hours_to_machine: float
    wait_spread: float

    @property
    def life_h(self) -> tuple[float, float, float]:
        """10th, 50th and 90th percentile of the mean life of a machine."""
        return _percentiles(self.hours_to_loss, self.loss_spread)

    @property
    def wait_h(self) -> tuple[float, float, float]:
        """The same of the mean time without one."""
        return _percentiles(self.hours_to_machine, self.wait_spread)


def _percentiles(median: float, spread: float) -> tuple[float, float, float]:
    factor = math.exp(Z90 * spread)
    return median / factor, median, median * factor


CERTAIN = Availability(hours_to_loss=1e9, loss_spread=0.0, hours_to_machine=0.0, wait_spread=0.0)


@lru_cache(maxsize=256)
def learned(guess: Availability, seen: tuple[Seen, ...]) -> Availability:
    """A guess, moved by what was seen of a place, and never wider than it was.

    Each run has a mean of its own about the place's, normal in logarithms, and sees a Poisson number of
    losses in its hours. So a short run says next to nothing, a long one counts for no more than places stay
    as they are, and only many runs replace the guess. Worked out on a grid (a Poisson-lognormal posterior).

    Args:
        guess: Its spreads are of the next run's means: how places differ, and how runs of one do.
    """
    losses = tuple((one.losses, one.up_h) for one in seen)
    returns = tuple((one.returns, one.down_h) for one in seen)
    to_loss, loss_spread = _moved(guess.hours_to_loss, guess.loss_spread, losses)
    to_machine, wait_spread = _moved(guess.hours_to_machine, guess.wait_spread, returns)
    return Availability(hours_to_loss=to_loss, loss_spread=loss_spread,
                        hours_to_machine=to_machine, wait_spread=wait_spread)


def _moved(guess_h: float, spread: float, counts: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Median and spread of the next run's mean, after runs that saw so many ends in so many hours each."""
    import numpy as np

    of_place = math.sqrt(max(0.0, spread**2 - _DRIFT**2))
    told = [(number, max(hours, number * _LEAST_H)) for number, hours in counts if hours > 0 or number]
    if not told or not guess_h or not of_place:
        return guess_h, spread
    logs, kernel = _grid()
    belief = -0.5 * (logs / of_place)**2
    for number, hours in told:
        expected = hours / guess_h * np.exp(-logs)
        likelihood = number * np.log(expected) - expected
        belief += np.log(kernel @ np.exp(likelihood - likelihood.max()))
    weights = np.exp(belief - belief.max())
    middle = float(np.average(logs, weights=weights))
    variance = float(np.average((logs - middle)**2, weights=weights))
    return guess_h * math.exp(middle), math.hypot(math.sqrt(variance), _DRIFT)


@cache
def _grid() -> "tuple[Floats, Floats]":
    """(G,) logarithms, and (G, G): how likely a run's is each of them where its place's is another."""
    import numpy as np

    logs = np.arange(-_GRID_ENDS, _GRID_ENDS + _GRID_STEP, _GRID_STEP)
    kernel = np.exp(-0.5 * ((logs[:, None] - logs[None, :]) / _DRIFT)**2)
    return logs, kernel / kernel.sum(axis=1, keepdims=True)
