"""Raises bids that hold machines of ours at Vast where the market moves up to them, within what may be bid.

Whoever looks at the account's list of machines in SkyPilot's server does this: SkyPilot itself every quarter
of a minute, our watch every five. Who reads the run's record learns of the new price as of every other one
(`launcher/rental_log.py`), and the machine's node asks for it by its own key (`launcher/vast_onstart.py`). A
bid is never lowered, and one that has lost its machine is not raised: SkyPilot then ends the rental, and
rents anew at a bid of that moment. An answer that got lost may have raised it: the bid that was asked for
counts until a list tells the machine's own price (`launcher/vast_looks.py`). That a list tells of our
machines the lowest bid that wins, as offers do, is a guess.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher import rental_log
from launcher.bids import raised
from launcher.rentals import Rental
from launcher.vast_rent import is_refusal

# Where what wins follows from our own bid, however far, we should outbid ourselves at each look (guess).
_PAUSE = timedelta(minutes=30)
_log = logging.getLogger("sky.ldlm")  # into the server's own


def raise_bids(sdk: Any, found: Mapping[str, Mapping[str, Any]], now: datetime) -> None:
    """Raise what should be, of machines that run.

    Args:
        sdk: Vast's, 1.9.1.
        found: Machines as Vast lists them, by their instance ids.
    """
    import requests

    for rental in rental_log.read().values():
        bid = _wanted(rental, found.get(rental.instance_id), now)
        if bid is None:
            continue
        try:
            sdk.change_bid(id=int(rental.instance_id), price=float(bid))
        except requests.RequestException as error:  # whose words may bear the account's key
            _log.warning(f"no word of Vast that it has raised the bid of {rental.instance_id}: "
                         f"{type(error).__name__}")
            if is_refusal(error):
                continue
        rental_log.repriced(rental.instance_id, now, bid)


def _wanted(rental: Rental, row: Mapping[str, Any] | None, now: datetime) -> Decimal | None:
    """What to raise its bid to; None: it stays."""
    most = rental.most_bid_usd_per_hour
    if most is None or rental.ended_at is not None or now - rental.prices[-1].at < _PAUSE:
        return None
    if row is None or row.get("actual_status") != "running" or not row.get("is_bid"):
        return None
    min_bid = Decimal(str(row.get("min_bid") or 0))
    return raised(rental.prices[-1].usd_per_hour, min_bid, most) if min_bid.is_finite() else None
