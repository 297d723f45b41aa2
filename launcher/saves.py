"""How a run would save on an offer: size, time, interval, the most work that is lost, dollars. Pure."""

import math
from decimal import Decimal

from launcher.errors import NoOfferError
from launcher.frozen import Frozen
from launcher.lives import believed
from launcher.offers import Offer
from launcher.recipe import Recipe
from launcher.store_prices import request_usd_per_gb, sent_usd_per_gb, store_price
from launcher.vast_search import UP_MBIT_S
from trainer.config import TrainConfig
from trainer.interval import (
    History,
    Rates,
    Save,
    evaluation_s,
    interval_of,
    longest_gap_s,
    losses_per_hour,
    minutes,
)

# What compression leaves of a checkpoint: 8.02 of 11 bytes a parameter (measured, recipes/LOG.md).
_STORED = 0.75
_STALL_S = 0.2  # measured with smoke, 0.12: training stands still for one checkpoint
_SNAPSHOT_BYTES_PER_S = 5e9  # guess: copied from GPU to host memory, by each rank its share
# To the store (guess): a disk here, an ordinary line at home, networks of clouds and of clusters.
_DISK_BYTES_PER_S, _HOME_BYTES_PER_S = 200e6, 5e6
_UPLOAD_BYTES_PER_S = {"azure": 250e6, "gcp": 250e6, "slurm": 125e6, "k8s": 125e6}
# Of what may be lost, for a save: the rest is the interval. More would make saves, which cost money, more
# frequent; less would leave few hosts (guess).
_OF_PROMISE = 1 / 3
_MOST_UP_MBIT_S = 1000  # that is asked of a host on Vast: few have more (guess)


class SavesPlan(Frozen):
    """How a run would save. All but the size is a guess until its first save is measured.

    Attributes:
        num_bytes: Of one checkpoint in the store.
        upload_bytes_per_s: On Vast, what is asked of the host.
        save_s: From the beginning of a save until it is durable.
        stall_s: In which training stands still.
        gap_s: From one step after which a save by time may begin to the next, at most.
        every_s: From one to the next, at most.
        every_steps: After so many steps there is one besides; None: there is none.
        lost_s: The most work that a lost machine costs.
        reason: Of the interval.
        upload_usd: Of one.
        hours_to_loss: Until such a machine is lost.
        num_kept: Checkpoints that lie in the store at the end.
        kept_usd_per_month: For those, at list prices; None: the store's are not known.
    """

    num_bytes: int
    upload_bytes_per_s: float
    save_s: float
    stall_s: float
    gap_s: float
    every_s: float
    every_steps: int | None
    lost_s: float
    reason: str
    upload_usd: Decimal
    hours_to_loss: float
    num_kept: int
    kept_usd_per_month: Decimal | None

    @property
    def upload_mbit_s(self) -> int:
        """The same rate as hosts on Vast tell it."""
        return round(self.upload_bytes_per_s * 8 / 1e6)


def plan_saves(train: TrainConfig, tokens_per_s: float, checkpoint_bytes: int, world_size: int, offer: Offer,
               store: str | None) -> SavesPlan:
    """How a run saves on an offer.

    Args:
        train: Of the run.
        tokens_per_s: At which it trains there.
        checkpoint_bytes: Before compression, of all ranks.
        store: URL of the run's store.
    """
    config, num_bytes = train.checkpoint, int(_STORED * checkpoint_bytes)
    gap_s = longest_gap_s(train, train.tokens_per_step / tokens_per_s, evaluation_s(train, tokens_per_s))
    rate = _upload_bytes_per_s(offer, store, num_bytes, _for_a_save_s(config.most_lost_s, gap_s))
    save = Save(num_bytes, num_bytes / rate, _STALL_S + checkpoint_bytes / world_size / _SNAPSHOT_BYTES_PER_S)
    rates = rates_of(offer, store)
    found = interval_of(config, save, gap_s, rates, losses_per_hour(rates, History(0, 0.0)))
    num_stay = train.steps // config.every_steps if config.every_steps else 0
    num_kept = num_stay + (not config.stays(train.steps))  # see `trainer.retention.tidy_finished`
    price = store_price(store) if store else None
    return SavesPlan(num_bytes=num_bytes, num_kept=num_kept,
                     kept_usd_per_month=price.kept_usd_per_month(num_kept * num_bytes) if price else None,
                     upload_bytes_per_s=rate, save_s=save.seconds, stall_s=save.stall_s,
                     gap_s=gap_s, every_s=found.seconds, every_steps=config.every_steps, lost_s=found.lost_s,
                     reason=found.reason, hours_to_loss=rates.hours_to_loss,
                     upload_usd=Decimal(num_bytes) / 10**9 * Decimal(str(rates.upload_usd_per_gb)))


def rates_of(offer: Offer, store: str | None) -> Rates:
    """What time and bytes cost on an offer, as its nodes are told."""
    listed = offer.listed.sent_usd_per_gb if offer.listed else None
    sent = sent_usd_per_gb(offer.infra, store) if listed is None else listed
    gigabyte = sent + request_usd_per_gb(store)
    return Rates(float(offer.price_usd_per_hour or 0), float(gigabyte), believed(offer).hours_to_loss)


def check_promise(recipe: Recipe, offer: Offer, saves: SavesPlan) -> None:
    """Refuse an offer on which more could be lost than the recipe promises.

    Raises:
        NoOfferError: With the smallest promise that can be kept there.
    """
    most_s = recipe.train.checkpoint.most_lost_s
    if saves.lost_s <= most_s + 1:
        return
    attainable = math.ceil(saves.lost_s / 60)
    size, rate = saves.num_bytes / 1e9, saves.upload_bytes_per_s / 1e6
    raise NoOfferError(
        f"on {offer.label} a lost machine can cost {minutes(saves.lost_s)} of work, and the recipe promises "
        f"{minutes(most_s)}: a checkpoint of {size:.1f} GB takes {minutes(saves.save_s)} at {rate:.0f} MB/s, "
        f"and the next may begin up to {minutes(saves.gap_s)} later",
        place=recipe.place("train", "checkpoint", "max_lost_minutes"),
        changes={"train.checkpoint.max_lost_minutes": attainable})


def _for_a_save_s(most_lost_s: float, gap_s: float) -> float:
    """How long a save may take where two of them and a gap keep the promise; 0: none is quick enough."""
    return max(0.0, min(_OF_PROMISE * most_lost_s, (most_lost_s - gap_s) / 2))


def _upload_bytes_per_s(offer: Offer, store: str | None, num_bytes: int, save_s: float) -> float:
    if offer.cloud == "vast":
        needed = math.ceil(num_bytes * 8 / 1e6 / save_s) if save_s else _MOST_UP_MBIT_S
        return min(max(UP_MBIT_S, needed), _MOST_UP_MBIT_S) * 1e6 / 8
    if offer.is_local:
        return _DISK_BYTES_PER_S if not store or store.startswith("file:") else _HOME_BYTES_PER_S
    return _UPLOAD_BYTES_PER_S[offer.cloud]
