"""How often machines of a place are lost, and how long it takes until there is one again: beliefs. Pure."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from launcher.frozen import Frozen
from launcher.offers import Offer
from launcher.saves import hours_to_loss

# One standard deviation by which a place departs from what was seen there, as a logarithm: replayed traces of
# AWS before a date were covered best by it before that date (recipes/LOG.md, calibration of forecasts).
_DRIFT = 1.0
_GUESS_SPREAD = 1.0  # of what nothing was seen of; between ten zones and GPUs of AWS it was 0.6 and 0.9
_GUESS_WEIGHT = 1.0  # so many runs must have seen something else until the guess counts as little (guess)
# Hours without a machine after a loss. Vast has many hosts (guess). Others: AWS, 2022 and 2023, 0.3 to 4 h,
# 1.3 h in the middle; waits of half an hour to one are told of GCP.
_SPOT_HOURS_TO_MACHINE = {"vast": 0.2, "azure": 1.0, "gcp": 1.0}
_ON_DEMAND_HOURS_TO_MACHINE = 0.05  # of clouds (guess)


class Seen(NamedTuple):
    """What one run, or one look at a place for some days, has seen.

    Attributes:
        losses: Times that a machine was lost, or would have been.
        up_h: Hours in which there was one.
        returns: Times that there was one again.
        down_h: Hours in which there was none.
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


CERTAIN = Availability(hours_to_loss=1e9, loss_spread=0.0, hours_to_machine=0.0, wait_spread=0.0)


def guessed(offer: Offer) -> Availability:
    """What is believed of an offer before any run of ours was there."""
    if offer.spot:
        waits_h = _SPOT_HOURS_TO_MACHINE[offer.cloud]
    else:
        waits_h = 0.0 if offer.is_local else _ON_DEMAND_HOURS_TO_MACHINE
    return Availability(hours_to_loss=hours_to_loss(offer), loss_spread=_GUESS_SPREAD,
                        hours_to_machine=waits_h, wait_spread=_GUESS_SPREAD)


def learned(guess: Availability | None, seen: Sequence[Seen]) -> Availability:
    """A guess, moved by what was seen; as wide as that differed from look to look, and as places change.

    Args:
        guess: None: only what was seen counts.
        seen: At least one.
    """
    losses = [math.log((one.up_h + 1) / (one.losses + 0.5)) for one in seen]
    returns = [math.log((one.down_h + 1) / (one.returns + 0.5)) for one in seen]
    to_loss, loss_spread = _moved(guess.hours_to_loss if guess else None, losses)
    to_machine, wait_spread = _moved(guess.hours_to_machine if guess else None, returns)
    return Availability(hours_to_loss=to_loss, loss_spread=loss_spread,
                        hours_to_machine=to_machine, wait_spread=wait_spread)


def _moved(guess_h: float | None, logs: Sequence[float]) -> tuple[float, float]:
    """Median and spread: the guess counts as one look, and as wide as guesses are."""
    weight = _GUESS_WEIGHT if guess_h else 0.0
    middle = (weight * math.log(guess_h or 1.0) + sum(logs)) / (weight + len(logs))
    squares = weight * _GUESS_SPREAD**2 + sum((one - middle)**2 for one in logs)
    return math.exp(middle), math.hypot(math.sqrt(squares / (weight + len(logs))), _DRIFT)
