"""Which machines of Vast a task may be given: filters of its search, and what a rental has to tell. Pure.

They travel in the task, under a key that only `launcher/sky_plugin.py` knows: a server without the plugin
hands the key to Vast's SDK, which refuses it, so that nothing is rented without these filters.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher.bids import advise
from launcher.offers import Offer
from launcher.rentals import Price, Rental, Terms
from trainer.cuda import cuda_of, cuda_of_torch

KEY = "ldlm"  # in `config.vast.create_instance_kwargs` of a task
# RTX 50 needs CUDA >= 12.8; the trainer needs Python >= 3.11, which Ubuntu 24.04 brings.
IMAGE = "vastai/base-image:cuda-12.8.1-cudnn-devel-ubuntu24.04-py312"
OLDEST_COMPUTE_CAP = 750  # Turing: what the locked torch is built for
_RELIABILITY = 0.95  # as Vast advises for serious work
_DOWN_MBIT_S, UP_MBIT_S = 200, 100  # at least: packages and weights come, checkpoints go (guess)
_OF_MEMORY = 0.97  # of a card, that its driver has to name: as trainer/machine.py checks
# A machine that was left sooner was wrong and could not say so, did not start or was taken at once. The
# image, SkyPilot's runtime and torch take up to twenty minutes to arrive before the node can see what it has
# been given (guess).
_LEFT_SOON = timedelta(minutes=30)
_LEAVE_OUT_FOR = timedelta(days=1)

Filters = Mapping[str, Mapping[str, Any]]


def settings_of(offer: Offer, run_id: str | None, host_memory_gib: int | None,
                upload_mbit_s: int | None = None) -> dict[str, Any]:
    """What a task tells the plugin.

    Args:
        run_id: Which machines it has had is remembered under this name; None: they are not.
        host_memory_gib: That the plan counts on; None: any.
        upload_mbit_s: By which it keeps what it promises; None: what is asked of every host.
    """
    filters: dict[str, dict[str, Any]] = {
        "reliability": {"gte": _RELIABILITY},
        "cuda_max_good": {"gte": _cuda_needed(offer)},
        "compute_cap": {"gte": OLDEST_COMPUTE_CAP},
        "inet_down": {"gte": _DOWN_MBIT_S},
        "inet_up": {"gte": upload_mbit_s or UP_MBIT_S},
    }
    if offer.gpu_memory_gib:
        filters["gpu_ram"] = {"gte": int(offer.gpu_memory_gib * 1024 * _OF_MEMORY)}  # MiB
    if host_memory_gib:
        filters["cpu_ram"] = {"gte": host_memory_gib * 1024}  # MiB
    found: dict[str, Any] = {"filters": filters}
    if run_id:
        found["run_id"] = run_id
    if offer.most_usd_per_hour is not None:
        found["usd_per_hour"] = float(offer.most_usd_per_hour)
    if offer.bid_from_usd_per_hour is not None:
        found["bid_from"] = float(offer.bid_from_usd_per_hour)
    if "/" in offer.infra:
        found["in_region"] = True
    return found


def _cuda_needed(offer: Offer) -> float:
    """Of a host's driver, as Vast numbers it: a container whose CUDA is newer does not start there."""
    major, minor = max(cuda_of(offer.image or IMAGE) or (0, 0), cuda_of_torch(offer.torch_index))
    return float(f"{major}.{minor}")


def query_of(settings: Mapping[str, Any], instance_type: str, disk_gib: int, *, bids: bool,
             without: Iterable[int]) -> dict[str, dict[str, Any]]:
    """The body of the search that finds machines for a task.

    Args:
        settings: See `settings_of`.
        instance_type: SkyPilot's: `2x-H100_SXM-32-65536` is number, model, cores, memory in MiB.
        bids: Interruptible: its lowest bid counts, not its price.
        without: Machine ids.
    """
    number, model = instance_type.split("-")[:2]
    query: dict[str, dict[str, Any]] = {
        "verified": {"eq": True}, "external": {"eq": False}, "rentable": {"eq": True},
        "num_gpus": {"eq": int(number.removesuffix("x"))}, "gpu_name": {"eq": model.replace("_", " ")},
        "disk_space": {"gte": disk_gib}}
    query |= {name: dict(bounds) for name, bounds in settings["filters"].items()}
    if "usd_per_hour" in settings:
        query["min_bid" if bids else "dph_total"] = {"lte": settings["usd_per_hour"]}
    if left_out := sorted(set(without)):
        query["machine_id"] = {"notin": left_out}
    return query


def bid_for(offer: Mapping[str, Any], settings: Mapping[str, Any], bid: float | None) -> float | None:
    """What is bid for an offer as Vast's search gives it; None: it is rented on demand.

    Args:
        settings: See `settings_of`: whether a bid follows the market, from where on, and up to where.
        bid: The task's.
    """
    if bid is None or "bid_from" not in settings:
        return bid
    advice = advise(Decimal(str(offer["min_bid"])), None, Decimal(str(settings["usd_per_hour"])))
    wanted = advice.bid_usd_per_hour if advice else None
    return bid if wanted is None else max(float(wanted), settings["bid_from"])


def rental_of(offer: Mapping[str, Any], instance_id: str, settings: Mapping[str, Any],
              bid_usd_per_hour: float | None, disk_gib: int, now: datetime) -> Rental:
    """A rental by the terms of its offer, as Vast's search gives them.

    Args:
        settings: Of its task.
        bid_usd_per_hour: None: its own price is paid.
        disk_gib: That was asked for; Vast counts in these.
    """
    price = offer["dph_base"] if bid_usd_per_hour is None else bid_usd_per_hour
    return Rental(
        run_id=settings.get("run_id"), instance_id=instance_id, machine_id=offer["machine_id"],
        most_bid_usd_per_hour=Decimal(str(settings["usd_per_hour"])) if "bid_from" in settings else None,
        rented_at=now,
        prices=(Price(at=now, usd_per_hour=Decimal(str(price))),),
        terms=Terms(disk_gb=disk_gib, disk_usd_per_gb_month=Decimal(str(offer["storage_cost"])),
                    received_usd_per_gb=Decimal(str(offer["inet_down_cost"])),
                    sent_usd_per_gb=Decimal(str(offer["inet_up_cost"]))))


def not_again(rentals: Iterable[Rental], run_id: str | None, now: datetime) -> set[int]:
    """Machines that a run is not given again: ever, those that its nodes have found wrong; for a day, those
    that it has left soon after it got them, unless its course has wanted it."""
    return {rental.machine_id for rental in rentals if run_id and rental.run_id == run_id
            and (rental.is_wrong or _was_left_soon(rental, now))}


def _was_left_soon(rental: Rental, now: datetime) -> bool:
    is_soon = not rental.left_by_choice and (rental.ended_at or now) - rental.rented_at < _LEFT_SOON
    return is_soon and now - rental.rented_at < _LEAVE_OUT_FOR
