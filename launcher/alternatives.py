"""Changes of a recipe that may make a run fit or cost less, and which of them is cheapest. Pure."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal

from launcher.advice import Changes, smaller_micro_batches, typed
from launcher.gpu_kinds import ADVISED, GPU_KINDS
from launcher.offers import Offer
from trainer.config import TrainConfig

_PLACEMENT, _WEIGHTS = "train.token_encoder.placement", "train.token_encoder.weights"
_COUNTS = (1, 2, 4, 8)  # GPUs of one node that clouds rent out
# A guess is off by a factor of two, so what is this near to the cheapest is as good (guess).
_AS_GOOD = Decimal("1.1")


@dataclass(frozen=True)
class Cost:
    """What a run would cost.

    Attributes:
        comparable_usd: Of its training; at a usual price (guess) where its own is not known or nothing.
        usd: Of all of it; None when a price is not known.
        hours: Of all of it.
    """

    comparable_usd: Decimal
    usd: Decimal | None
    hours: Decimal

    @property
    def words(self) -> str:
        """Dollars, or hours where those say nothing: `~$189.20`, `~85 h`."""
        return f"~${self.usd:,.2f}" if self.usd else f"~{self.hours:,.1f} h"

    def is_below(self, other: "Cost", share: Decimal) -> bool:
        """True if it is less than so much of another."""
        return self.comparable_usd < other.comparable_usd * share


@dataclass(frozen=True)
class Choice:
    """Changes that lead to a plan, and what it would cost."""

    changes: Changes
    cost: Cost

    @property
    def is_other_hardware(self) -> bool:
        """True if it takes other GPUs, or another number of them."""
        return any(key.endswith(".gpu") for key in self.changes)

    @property
    def words(self) -> str:
        """`--set train.micro_batch_size=4: ~$189.20`."""
        return f"{typed(self.changes)}: {self.cost.words}"


CostOf = Callable[[Changes], Cost | None]


def cheapest(changes: Iterable[Changes], cost_of: CostOf) -> Choice | None:
    """Of those that lead to a plan the cheapest; of some that are as good, the first. None: none does."""
    found = [Choice(one, cost) for one in changes if (cost := cost_of(one)) is not None]
    least = min((choice.cost.comparable_usd for choice in found), default=Decimal(0))
    return next((choice for choice in found if choice.cost.comparable_usd <= least * _AS_GOOD), None)


def lighter_changes(config: TrainConfig) -> Iterator[Changes]:
    """Single changes on the same GPUs, those first that give up least."""
    if config.zero_stage == 1:
        yield {"train.zero_stage": 2}
    if (config.token_encoder.micro_batch_size or 0) > config.micro_batch_size:
        yield {"train.token_encoder.micro_batch_size": config.micro_batch_size}
    yield from ({"train.micro_batch_size": size} for size in smaller_micro_batches(config))
    if not config.activation_checkpointing:
        yield {"train.activation_checkpointing": True}
    asked = config.token_encoder.placement
    for placement in ("auto", "gpu", "sharded", "host"):
        # auto is the first of the others that fits.
        if asked not in ("auto", placement):
            yield {_PLACEMENT: placement}
    yield from ({_WEIGHTS: weights} for weights in _fewer_bits(config))


def lighter_together(config: TrainConfig) -> Iterator[Changes]:
    """Several of the lighter changes at once, for what none of them makes fit alone."""
    is_bound = config.token_encoder.placement not in ("auto", "next_gpu")
    placements: list[Changes] = [{}, {_PLACEMENT: "auto"}] if is_bound else [{}]
    weights: list[Changes] = [{}, *({_WEIGHTS: name} for name in _fewer_bits(config))]
    stages: list[Changes] = [{}, {"train.zero_stage": 2}] if config.zero_stage == 1 else [{}]
    kept: list[Changes] = [{}, {"train.activation_checkpointing": True}]
    sizes: list[Changes] = [{}, *({"train.micro_batch_size": size} for size in smaller_micro_batches(config))]
    if config.activation_checkpointing:
        kept = kept[:1]
    for several in itertools.product(weights, placements, stages, kept, sizes):
        yield {key: value for changes in several for key, value in changes.items()}


def _fewer_bits(config: TrainConfig) -> tuple[str, ...]:
    if config.token_encoder.products != "bf16":
        return ()  # products want these weights
    return {"bf16": ("fp8", "nf4"), "fp8": ("nf4",), "nf4": ()}[config.token_encoder.weights]


def hardware_changes(offer: Offer, index: int) -> Iterator[Changes]:
    """More GPUs of the same kind, then others as large or larger, as many or more; and a bid for them.

    Args:
        index: Of the offer's candidate in `hardware.train`.
    """
    if offer.gpu is None:
        return
    key, kinds = f"hardware.train.{index}", [offer.gpu]
    if offer.gpu in GPU_KINDS and offer.gpu_memory_gib is not None:
        kinds += [name for name in ADVISED
                  if name != offer.gpu and GPU_KINDS[name].memory_gib >= offer.gpu_memory_gib]
    for name in kinds:
        for number in _COUNTS:
            if number < offer.num_gpus or (name, number) == (offer.gpu, offer.num_gpus):
                continue
            bid = _bid(offer, name, number)
            bids = {f"{key}.{one}": bid for one in _bid_keys(offer)} if bid else {}
            yield {f"{key}.gpu": f"{name}:{number}", **bids}


def _bid_keys(offer: Offer) -> tuple[str, ...]:
    """What a candidate names of its bid: of one that follows the market its limit, and where it begins."""
    if offer.bid_from_usd_per_hour is None:
        return ("bid_usd_per_hour",)
    return ("most_bid_usd_per_hour", *(("bid_usd_per_hour",) if offer.bid_from_usd_per_hour else ()))


def _bid(offer: Offer, name: str, number: int) -> Decimal | None:
    """What to bid for other GPUs (guess), at most; None where nothing is bid, or the bid as it is will do."""
    bid = offer.most_usd_per_hour
    if offer.bid_usd_per_hour is None or bid is None or offer.gpu is None:
        return None
    usual, usual_now = usual_usd_per_hour(name, number), usual_usd_per_hour(offer.gpu, offer.num_gpus)
    if usual and usual_now:
        # Whoever bids less than is usual gets other GPUs for less, too; whoever bids more need not.
        enough = min(bid * usual / usual_now, usual)
    else:
        enough = usual or bid * number / offer.num_gpus
    rounded = enough.quantize(Decimal("0.01"), rounding=ROUND_UP)
    # Of the same kind a high bid may be meant; of another it was for other GPUs.
    stays = rounded <= bid if name == offer.gpu else rounded == bid
    return None if stays else rounded


def usual_usd_per_hour(name: str, number: int) -> Decimal | None:
    """About what so many GPUs of a kind cost when they may be taken back (guess); None: no idea."""
    return Decimal(str(ADVISED[name])) * number if name in ADVISED else None
