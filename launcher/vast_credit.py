"""Vast's prepaid credit, asked where the account's key is, when a machine is rented: no node has that key.

At zero Vast stops all machines of the account, and deletes them later. So a machine is told what there is to
live on (`trainer/rental_terms.py`), and none is rented that would not live for an hour.
"""

from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from trainer.contract import CREDIT_USED_UP
from trainer.run_folder import AttemptEnd

BILLING = "https://cloud.vast.ai/billing"
LEAST_H = Decimal(1)  # that the credit must last for a machine to be worth its set-up (guess)


class Credit(NamedTuple):
    """What an account has prepaid, and how fast its machines use it up."""

    usd: Decimal
    others_usd_per_hour: Decimal

    def hours(self, usd_per_hour: Decimal) -> Decimal:
        """How long one more machine would live."""
        rate = self.others_usd_per_hour + usd_per_hour
        return self.usd / rate if rate > 0 else Decimal("Infinity")


def credit_at_vast(sdk: Any) -> Credit | None:
    """Ask for it; None where Vast does not say, which is no reason not to rent."""
    import requests

    try:
        usd = Decimal(str(sdk.show_user()["credit"]))
        prices = [Decimal(str(row.get("dph_total" if row.get("actual_status") == "running"
                                      else "storage_total_cost") or 0)) for row in sdk.show_instances()]
    except (requests.RequestException, LookupError, TypeError, ValueError, AttributeError, InvalidOperation):
        return None
    found = Credit(usd, sum(prices, Decimal(0)))
    return found if found.usd.is_finite() and found.others_usd_per_hour.is_finite() else None


def lacked_credit(end: AttemptEnd) -> bool:
    """True if an attempt ended since its account had prepaid nothing more: no cap of the run's."""
    return CREDIT_USED_UP in end.reason


def credit_words() -> str:
    """Why a machine was stopped that was paid for no longer, and what to do."""
    return f"Vast's prepaid credit was used up, not the run's cap: add credit at {BILLING}"


def check_lasts(credit: Credit | None, usd_per_hour: Decimal) -> None:
    """Refuse to rent what would be stopped before it has done anything.

    Args:
        usd_per_hour: Of the machine.

    Raises:
        RuntimeError: The credit does not last for an hour of it.
    """
    if credit and (hours := credit.hours(usd_per_hour)) < LEAST_H:
        raise RuntimeError(f"Vast's credit of ${credit.usd:.2f} lasts for {max(hours, Decimal(0)) * 60:.0f} "
                           f"minutes of a machine at ${usd_per_hour:.2f} an hour beside those that run: add "
                           f"credit at {BILLING}")
