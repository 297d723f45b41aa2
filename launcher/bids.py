"""What to bid at Vast: enough over the lowest bid that wins that losing the machine seldom costs more. Pure.

Nobody publishes a trace of bids at Vast, so how often a bid is outbid is a model here, and every screen says
so. Machines are lost to two kinds of others: to those who rent on demand, who outrank every bid, and to those
who bid more, the less often the more is bid. With `m` the margin of a bid over the lowest that wins now (0.1
is 10 %), a machine is lost so many times in an hour:

    losses(m) = 1 / 20 + 1 / 2 * exp(-m / 0.10)

All three numbers are guesses: 20 h to whoever comes on demand, two hours at the lowest bid, and a scale with
which a margin of 17 % gives the 7 h that plans count where the market is not known (`launcher/saves.py`). A
loss costs half an hour of the machine. So an hour that moves training forward costs `bid / (1 - losses / 2)`,
and the bid with the least of that is advised.
"""

import math
from collections.abc import Iterator
from decimal import ROUND_UP, Decimal

from launcher.frozen import Frozen

_HOURS_TO_DEMAND, _HOURS_AT_LOWEST, _SCALE = 20.0, 2.0, 0.10
# Up to twenty minutes of set-up and a quarter of an hour of work, half of what recipes promise (guess).
_LOST_HOURS = 0.5
_HOURS_TO_FAULT = 500.0  # of a machine that nobody can take (guess), as in `launcher/saves.py`
_SMALL_GAP = Decimal("0.05")  # nobody should live with losses, and a model of them, for less (guess)
_STEP, _MOST_STEPS = Decimal("0.01"), 100  # of the margins that are tried
_TICK = Decimal("0.001")  # dollars an hour
_SELF = Decimal("1.01")  # of our own bid: what wins may be no more than our own, or a step above it (guess)
_WORTH_RAISING = Decimal("1.02")  # less than this is not worth a word to Vast (guess)


class BidAdvice(Frozen):
    """What to bid where the lowest bid that wins is known.

    Attributes:
        bid_usd_per_hour: None: rent on demand.
        hours_to_loss: Until such a machine is lost, by the model.
        usd_per_useful_hour: What an hour that moves training forward then costs.
        reason: One line for a screen.
    """

    bid_usd_per_hour: Decimal | None
    hours_to_loss: float
    usd_per_useful_hour: Decimal
    reason: str


def losses_per_hour(bid: Decimal, min_bid: Decimal) -> float:
    """How often a machine is lost in an hour, by the model.

    Args:
        bid: Dollars an hour, not below `min_bid`.
        min_bid: The lowest that wins now, above 0.
    """
    margin = float(bid / min_bid) - 1
    return 1 / _HOURS_TO_DEMAND + math.exp(-margin / _SCALE) / _HOURS_AT_LOWEST


def advise(min_bid: Decimal, on_demand: Decimal | None, most: Decimal) -> BidAdvice | None:
    """The bid with the cheapest useful hour, or to rent on demand where that costs hardly more.

    Args:
        min_bid: The lowest bid that wins a machine now, dollars an hour, above 0.
        on_demand: Of a machine like it; None: not known, or not to be had.
        most: That an hour may cost.

    Returns:
        None where even the lowest bid is above `most`.
    """
    found = [(_useful(bid, losses_per_hour(bid, min_bid)), bid) for bid in _bids(min_bid, on_demand, most)]
    fixed = None if on_demand is None or on_demand > most else _useful(on_demand, 1 / _HOURS_TO_FAULT)
    useful, bid = min(found, default=(None, None))
    if fixed is not None and (useful is None or fixed <= useful * (1 + _SMALL_GAP)):
        return BidAdvice(bid_usd_per_hour=None, hours_to_loss=_HOURS_TO_FAULT, usd_per_useful_hour=fixed,
                         reason=f"on demand: ~${fixed:.2f} a useful hour, " + (
                             f"and by a model ~${useful:.2f} with the best bid, ${bid:.3f}, and its losses"
                             if useful else "and no bid wins below that"))
    if useful is None or bid is None:
        return None
    hours, over = 1 / losses_per_hour(bid, min_bid), bid / min_bid - 1
    beside = "" if fixed is None else f", on demand ~${fixed:.2f}"
    return BidAdvice(
        bid_usd_per_hour=bid, hours_to_loss=round(hours, 2), usd_per_useful_hour=useful,
        reason=f"${bid:.3f}/h, {over:.0%} over the ${min_bid:.3f} that wins now: by a model outbid every "
               f"~{hours:.1f} h, which makes a useful hour ~${useful:.2f}{beside}")


def raised(bid: Decimal, min_bid: Decimal, most: Decimal) -> Decimal | None:
    """What to raise a live bid to; None: it stays.

    A lowest bid that is no more than a step above our own may be our own: to raise for it would have us
    outbid ourselves. One above the most that may be bid is let go.

    Args:
        bid: That holds the machine now, dollars an hour.
        min_bid: The lowest that wins it now.
        most: That may be bid.
    """
    if min_bid <= 0 or bid <= min_bid <= bid * _SELF:
        return None
    advice = advise(min_bid, None, most)
    wanted = advice.bid_usd_per_hour if advice else None
    return wanted if wanted is not None and wanted >= bid * _WORTH_RAISING else None


def _bids(min_bid: Decimal, on_demand: Decimal | None, most: Decimal) -> Iterator[Decimal]:
    """From the lowest on, up to what may be paid and to what nobody needs to bid for."""
    for step in range(_MOST_STEPS + 1):
        bid = (min_bid * (1 + step * _STEP)).quantize(_TICK, rounding=ROUND_UP)
        if bid > most or (on_demand is not None and bid >= on_demand):
            return
        yield bid


def _useful(usd_per_hour: Decimal, losses: float) -> Decimal:
    """Dollars of an hour that moves training forward: the others are set-ups, and work done twice."""
    return (usd_per_hour / Decimal(1 - losses * _LOST_HOURS)).quantize(Decimal("0.000001"))
