"""Part of a run's cap that is kept for what its nodes cannot count. Pure.

A node counts what its machine is billed by beside its hours (`trainer/rental_terms.py`): on Vast by its
contract, on Azure and GCP by list prices (`launcher/cloud_prices.py`). Where a run has several nodes there,
what goes over the card of one is what they tell each other, too, which costs nothing within a zone.
"""

from collections.abc import Iterable
from decimal import Decimal

from launcher.offers import WITH_LIST_PRICES, Offer
from launcher.saves import SavesPlan

_MOST = Decimal("0.25")  # of what is left of the cap: a run must be able to start


def uncounted_usd(offers: Iterable[Offer], saves: SavesPlan | None, hours: Decimal,
                  left_usd: Decimal) -> Decimal:
    """Dollars of uploads that come to the bill where no node counts them.

    Args:
        offers: Everything that the run may be on.
        saves: By the prices of the first of them; None: not known, and not counted here.
        hours: Of the run, its high estimate.
        left_usd: Of the cap.
    """
    if not saves or not any(has_uncounted_network(offer) for offer in offers):
        return Decimal(0)
    usd = saves.upload_usd * hours * 3600 / Decimal(str(saves.every_s))
    return max(Decimal(0), min(usd, _MOST * left_usd)).quantize(Decimal("0.0001"))


def has_uncounted_network(offer: Offer) -> bool:
    """True where a node's counters do not tell what leaves its cloud."""
    return offer.cloud in WITH_LIST_PRICES and offer.num_nodes > 1
