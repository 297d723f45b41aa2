"""What each look at the account's list of machines at Vast teaches of our rentals, whoever looks.

A list may lack a machine that is there, and a machine may survive that it was ended: so an end is believed at
once, and taken back when the machine is seen again.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher import rental_log
from launcher.rentals import Rental
from launcher.vast_onstart import without_mark

# Vast says more than SkyPilot 0.14.1 knows; what it does not know ends its look at all clusters.
_STATUSES = {"OFFLINE": "EXITED", "FROZEN": "STOPPED", "UNKNOWN": "LOADING", "REBOOTING": "LOADING",
             "SCHEDULING": "LOADING"}
_LINGERS = timedelta(minutes=1)  # so long Vast may list what it has just ended (guess)
Instances = dict[str, dict[str, Any]]


def in_words_of_skypilot(found: Instances) -> None:
    """Give the machines of a list statuses that SkyPilot knows, and the names that it has given them."""
    for instance in found.values():
        instance["status"] = _STATUSES.get(instance["status"], instance["status"])
        instance["name"] = without_mark(instance["name"])


def learn(found: Mapping[str, Mapping[str, Any]], asked_at: datetime) -> None:
    """Remember what a list tells of our rentals.

    Args:
        found: Machines as Vast lists them, by their instance ids.
        asked_at: When the list was asked for, UTC: it may lack what was rented since.
    """
    for rental in rental_log.read().values():
        instance = found.get(rental.instance_id)
        if instance is not None:
            _learn_of(rental, instance, asked_at)
        elif rental.ended_at is None and rental.rented_at < asked_at:
            rental_log.gone(rental.instance_id, asked_at)


def _learn_of(rental: Rental, instance: Mapping[str, Any], asked_at: datetime) -> None:
    number = rental.instance_id
    if rental.ended_at is not None:
        if asked_at - rental.ended_at < _LINGERS:
            return
        rental_log.returned(number, asked_at)
    if without_mark(instance["label"]) != instance["label"] and not rental.is_wrong:
        rental_log.wrong(number)
    if instance["actual_status"] == "running" and rental.running_at is None:
        rental_log.seen_running(number, asked_at)
    price = Decimal(str(instance.get("dph_base") or 0))
    if price and price != rental.prices[-1].usd_per_hour:
        rental_log.repriced(number, asked_at, price)
