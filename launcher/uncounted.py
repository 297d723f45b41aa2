"""Part of a run's cap that is kept for what its nodes cannot count. Pure.

On Vast a node is told what its machine is billed by (`trainer/rental_terms.py`). On Azure and GCP the price
of an hour is that of the machine alone: nobody tells a node what its disk and its network cost.
"""

from collections.abc import Iterable
from decimal import Decimal

from launcher.offers import WITH_LIST_PRICES, Offer
from launcher.running_costs import disk_usd_per_hour
from launcher.saves import SavesPlan

_MOST = Decimal("0.25")  # of what is left of the cap: a run must be able to start


def uncounted_usd(offers: Iterable[Offer], saves: SavesPlan | None, hours: Decimal,
                  left_usd: Decimal) -> Decimal:
    """Dollars of disk and uploads that come to the bill on clouds where no node counts them.

    Args:
        offers: Everything that the run may be on.
        saves: By the prices of the first of them; None: not known, and not counted here.
        hours: Of the run, its high estimate.
        left_usd: Of the cap.
    """
    on = [offer for offer in offers if offer.cloud in WITH_LIST_PRICES]
    if not on:
        return Decimal(0)
    usd = max(disk_usd_per_hour(offer) for offer in on) * hours
    if saves:
        usd += saves.upload_usd * hours * 3600 / Decimal(str(saves.every_s))
    return max(Decimal(0), min(usd, _MOST * left_usd)).quantize(Decimal("0.0001"))
