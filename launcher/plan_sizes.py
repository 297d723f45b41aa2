"""What a plan says of its model: parameters, arithmetic, memory, and what travels. Pure."""

import math
from datetime import timedelta
from decimal import Decimal

from launcher.cost import price_for
from launcher.fit import Fit
from launcher.frozen import Frozen
from launcher.offers import Offer
from trainer.config import Placement, TrainConfig, WeightFormat
from trainer.encoder_shape import EncoderShape
from trainer.memory import GIB, STAGES, Memory, memory_per_gpu, needed_bytes
from trainer.sizes import checkpoint_bytes, encoder_bytes, flops_per_token, trained_parameters

# Guess: several ranges at once from object storage; hosts on Vast hang on ordinary lines.
_FETCH_BYTES_PER_S = {"vast": 80e6}
_FETCH_BYTES_PER_S_OTHERWISE = 400e6


class FlopsPerToken(Frozen):
    """As `trainer.sizes.Flops`, with their sum."""

    encoder: float
    trained: float
    self_conditioning: float
    recomputed: float
    total: float


class EncoderPlan(Frozen):
    """The frozen weights of a run.

    Attributes:
        num_bytes: Of the weights that the run needs, in their format: what the mirror in the store holds.
        fetch_s: Seconds until they are on a node, at every start and recovery; 0 on this machine, which
            keeps them.
        fetch_usd: What the machines cost in that time; None when their price is not known.
        fetch_bytes_per_s: Guess behind `fetch_s`.
    """

    name: str
    weights: WeightFormat
    placement: Placement
    num_bytes: int
    fetch_s: float
    fetch_usd: Decimal | None
    fetch_bytes_per_s: float


class MemoryPlan(Frozen):
    """Memory of the fullest GPU at its fullest moment.

    Attributes:
        gpu_gib: What one GPU has.
        moment: Of a step.
        parts: Bytes by name; they add up to `allocated_bytes`.
        allocated_bytes: By the trainer, as torch counts.
        needed_bytes: With CUDA context and what the allocator cannot use.
        encoder_gpu: Parts on the second GPU of a rank, where the encoder has one of its own.
        encoder_needed_bytes: Of that GPU; 0 without one.
        zero_stage: Of the run.
        needed_bytes_by_stage: What the same run needs under each stage of ZeRO.
    """

    gpu_gib: float
    moment: str
    parts: dict[str, int]
    allocated_bytes: int
    needed_bytes: int
    encoder_gpu: dict[str, int]
    encoder_needed_bytes: int
    zero_stage: int
    needed_bytes_by_stage: dict[int, int]


class HostMemoryPlan(Frozen):
    """Memory that one node needs beside its GPUs.

    Attributes:
        parts: Bytes by name: the encoder where it lies there, a checkpoint on its way to the store, and
            processes (guess).
    """

    parts: dict[str, int]
    needed_bytes: int

    @property
    def needed_gib(self) -> int:
        """In whole GiB, rounded up."""
        return math.ceil(self.needed_bytes / GIB)


class Sizes(Frozen):
    """What a plan says of its model.

    Attributes:
        parameters: Trained ones, by part.
        flops: Of the whole run.
        checkpoint_bytes: Of one checkpoint, all ranks together.
        memory: None without a GPU.
        host_memory: None without a GPU.
    """

    parameters: dict[str, int]
    flops_per_token: FlopsPerToken
    flops: float
    checkpoint_bytes: int
    encoder: EncoderPlan
    memory: MemoryPlan | None
    host_memory: HostMemoryPlan | None = None


def plan_sizes(fitted: Fit, shape: EncoderShape, offer: Offer) -> Sizes:
    """Sizes of a fitted config on an offer."""
    config, flops = fitted.config, flops_per_token(fitted.config, shape)
    by_kind = FlopsPerToken(encoder=flops.encoder, trained=flops.trained, recomputed=flops.recomputed,
                            self_conditioning=flops.self_conditioning, total=flops.total)
    return Sizes(parameters=trained_parameters(config, shape), flops_per_token=by_kind,
                 flops=flops.total * config.steps * config.tokens_per_step,
                 checkpoint_bytes=checkpoint_bytes(config, shape), encoder=_encoder(config, shape, offer),
                 memory=_memory(fitted, fitted.memory, shape, offer) if fitted.memory else None,
                 host_memory=_host_memory(fitted) if fitted.host_memory else None)


def _host_memory(fitted: Fit) -> HostMemoryPlan:
    parts = dict(fitted.host_memory)
    return HostMemoryPlan(parts=parts, needed_bytes=sum(parts.values()))


def _encoder(config: TrainConfig, shape: EncoderShape, offer: Offer) -> EncoderPlan:
    encoder, num_bytes = config.token_encoder, encoder_bytes(config, shape)
    rate = _FETCH_BYTES_PER_S.get(offer.cloud, _FETCH_BYTES_PER_S_OTHERWISE)
    seconds = 0.0 if offer.is_local else round(num_bytes / rate, 1)
    price = offer.price_usd_per_hour
    usd = None if price is None else price_for(timedelta(seconds=seconds), price).quantize(Decimal("0.0001"))
    return EncoderPlan(name=encoder.name, weights=encoder.weights, num_bytes=num_bytes, fetch_s=seconds,
                       placement="gpu" if encoder.placement == "auto" else encoder.placement,
                       fetch_usd=usd, fetch_bytes_per_s=rate)


def _memory(fitted: Fit, memory: Memory, shape: EncoderShape, offer: Offer) -> MemoryPlan:
    by_stage = {}
    for stage in STAGES:
        config = fitted.config.model_copy(update={"zero_stage": stage})
        found = memory_per_gpu(config, shape, fitted.world_size, fitted.ranks_per_node)
        by_stage[stage] = needed_bytes(found.parts)
    return MemoryPlan(gpu_gib=offer.gpu_memory_gib or 0.0, moment=memory.moment, parts=memory.parts,
                      allocated_bytes=memory.allocated_bytes, needed_bytes=needed_bytes(memory.parts),
                      encoder_gpu=memory.encoder_gpu, encoder_needed_bytes=needed_bytes(memory.encoder_gpu),
                      zero_stage=fitted.config.zero_stage, needed_bytes_by_stage=by_stage)
