"""What a run costs beside the hours of its machines: disk, network both ways, store, controller. Pure.

By the market's word where an offer has one, else by list prices (`launcher/store_prices.py`) and guesses.
"""

from decimal import Decimal

from launcher import cloud_prices
from launcher.frozen import Frozen
from launcher.offers import WITH_LIST_PRICES, Offer
from launcher.plan_sizes import Sizes
from launcher.rentals import HOURS_OF_MONTH
from launcher.saves import SavesPlan
from launcher.starts import StartPlan
from launcher.store_prices import received_usd_per_gb

_VAST_DISK_USD_PER_MONTH = Decimal("0.10")  # a GB, the default of its hosts
_ENVIRONMENT_BYTES = 5e9  # that every start on a rented machine fetches from package indices (guess)
_GB = 10**9


class RunningCosts(Frozen):
    """Dollars of a run beside its machines, all nodes together.

    Attributes:
        held_usd_per_hour: Of disks and addresses, as long as machines are held.
        run_usd_per_hour: Of what lies in the store, from the beginning to the end.
        first_start_usd, next_start_usd: Of what a start fetches: environment, encoder and checkpoint.
        save_usd: Of one upload.
        controller_usd_per_hour: From the beginning to the end, waiting included; None: nobody asks for it.
    """

    held_usd_per_hour: Decimal
    run_usd_per_hour: Decimal
    first_start_usd: Decimal
    next_start_usd: Decimal
    save_usd: Decimal
    controller_usd_per_hour: Decimal | None


def running_costs(offer: Offer, store: str | None, sizes: Sizes | None, saves: SavesPlan | None,
                  start: StartPlan, controller_usd_per_hour: Decimal | None) -> RunningCosts:
    """What a run costs on an offer beside its price.

    Args:
        store: URL of the run's store.
        sizes, saves: None when the token encoder's size is not known, which then counts nothing.
    """
    first = 0 if offer.is_local else int(_ENVIRONMENT_BYTES) * offer.num_nodes
    from_hub_usd = Decimal(first) / _GB * fetched_usd_per_gb(offer, None)
    encoder = sizes.encoder if sizes else None
    if encoder and start.fetch_s:
        address = store if encoder.source == "mirror" else None
        gigabytes = Decimal(encoder.source_bytes * offer.num_nodes) / _GB
        from_hub_usd += gigabytes * fetched_usd_per_gb(offer, address)
    checkpoint_bytes = saves.num_bytes if saves else 0
    checkpoint_usd = Decimal(checkpoint_bytes) / _GB * fetched_usd_per_gb(offer, store)
    kept = (saves.kept_usd_per_month if saves else None) or Decimal(0)
    return RunningCosts(
        held_usd_per_hour=disk_usd_per_hour(offer) + address_usd_per_hour(offer),
        run_usd_per_hour=kept / HOURS_OF_MONTH,
        first_start_usd=from_hub_usd, next_start_usd=from_hub_usd + checkpoint_usd,
        save_usd=saves.upload_usd if saves else Decimal(0),
        controller_usd_per_hour=controller_usd_per_hour)


def disk_usd_per_hour(offer: Offer) -> Decimal:
    """Dollars an hour of the disks of an offer that its price does not hold."""
    if offer.cloud in WITH_LIST_PRICES:
        return cloud_prices.disk_usd_per_hour(offer)
    if offer.cloud != "vast" or not offer.spot:
        return Decimal(0)  # on demand at Vast the price is one with the disk
    said = offer.listed.disk_usd_per_gb_month if offer.listed else None
    month = _VAST_DISK_USD_PER_MONTH if said is None else said
    return month * offer.disk_gib * offer.num_nodes / HOURS_OF_MONTH


def address_usd_per_hour(offer: Offer) -> Decimal:
    """Dollars an hour of the public addresses of an offer that its price does not hold."""
    return cloud_prices.address_usd_per_hour(offer) if offer.cloud in WITH_LIST_PRICES else Decimal(0)


def fetched_usd_per_gb(offer: Offer, address: str | None) -> Decimal:
    """Dollars of a GB that machines of an offer fetch from a store; None: from the internet, for nothing."""
    said = offer.listed.received_usd_per_gb if offer.listed else None
    return received_usd_per_gb(offer.infra, address, said)
