"""What a plan says of its model: parameters, arithmetic, memory, and what travels. Pure."""

import math
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Literal

from launcher.cost import price_for
from launcher.fit import Fit
from launcher.frozen import Frozen
from launcher.offers import Offer
from launcher.speed import packing_s, scaling_efficiency
from trainer.communication import communication_bytes
from trainer.config import Placement, TokenEncoderConfig, TrainConfig, WeightFormat
from trainer.encoder_shape import EncoderShape
from trainer.interval import chance_steps, evaluation_s
from trainer.memory import GIB, STAGES, Memory, memory_per_gpu, needed_bytes
from trainer.sizes import checkpoint_bytes, encoder_bytes, flops_per_token, trained_parameters

# Bytes of mirrors in the run's store by format, of this model, revision and layer; None: nobody has looked.
Mirrors = Mapping[WeightFormat, int] | None
WeightSource = Literal["package", "folder", "mirror", "Hub"]
# Guess: several ranges at once from object storage; hosts on Vast hang on ordinary lines, homes on slow ones.
_FETCH_BYTES_PER_S = {"vast": 80e6, "local": 25e6}
_FETCH_BYTES_PER_S_OTHERWISE = 400e6
# Guess: from a disk through host memory to the GPU, with samples hashed.
READ_BYTES_PER_S = 0.5e9
# How fast links are beside what is believed of them: slow, as believed, fast (guess).
_LINK_FACTORS = (0.5, 1.0, 2.0)


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
        num_bytes: Of the weights that the run needs, in their format.
        source: Where they come from.
        source_weights: The format in which they come.
        source_bytes: Of the files that are read at every start.
        first_fetch_bytes: Of those that the first start on this machine downloads, which keeps them; 0 for
            a rented one.
        fetch_s: Seconds until they are on a rented node, at every start and recovery.
        loading_s: Seconds in which every start reads them and packs what comes in another format (guess).
        fetch_usd: What the machines cost in that time; None when their price is not known.
        fetch_bytes_per_s: Guess behind `fetch_s`.
    """

    name: str
    weights: WeightFormat
    placement: Placement
    num_bytes: int
    source: WeightSource
    source_weights: WeightFormat
    source_bytes: int
    first_fetch_bytes: int
    fetch_s: float
    loading_s: float
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


class CommunicationPlan(Frozen):
    """What GPUs tell each other, and what that costs.

    Attributes:
        num_ranks: Over all nodes.
        gradient_bytes, weight_bytes, encoder_bytes: That each of them sends in one step.
        efficiency: Share of its speed that a GPU keeps beside the others, in (0, 1], by a model.
        efficiency_range: The same where links are half and twice as fast as believed (guess).
    """

    num_ranks: int
    gradient_bytes: int
    weight_bytes: int
    encoder_bytes: int
    efficiency: float
    efficiency_range: tuple[float, float]

    @property
    def total_bytes(self) -> int:
        """Of one step."""
        return self.gradient_bytes + self.weight_bytes + self.encoder_bytes


class Sizes(Frozen):
    """What a plan says of its model.

    Attributes:
        parameters: Trained ones, by part.
        flops: Of the whole run.
        checkpoint_bytes: Of one checkpoint, all ranks together.
        memory: None without a GPU.
        host_memory: None without a GPU.
        communication: None where one GPU trains, or none.
    """

    parameters: dict[str, int]
    flops_per_token: FlopsPerToken
    flops: float
    checkpoint_bytes: int
    encoder: EncoderPlan
    memory: MemoryPlan | None
    host_memory: HostMemoryPlan | None = None
    communication: CommunicationPlan | None = None


def plan_sizes(fitted: Fit, shape: EncoderShape, offer: Offer, tokens_per_s: float, mirrors: Mirrors,
               store: str | None = None) -> Sizes:
    """Sizes of a fitted config on an offer.

    Args:
        tokens_per_s: At which it trains there.
        store: URL of the run's store; what lies in a folder of this machine is not fetched.
    """
    config, flops = fitted.config, flops_per_token(fitted.config, shape)
    chances = chance_steps(config, config.tokens_per_step / tokens_per_s, evaluation_s(config, tokens_per_s))
    by_kind = FlopsPerToken(encoder=flops.encoder, trained=flops.trained, recomputed=flops.recomputed,
                            self_conditioning=flops.self_conditioning, total=flops.total)
    return Sizes(parameters=trained_parameters(config, shape), flops_per_token=by_kind,
                 flops=flops.total * config.steps * config.tokens_per_step,
                 checkpoint_bytes=checkpoint_bytes(config, shape, chances),
                 encoder=_encoder(config, shape, offer, mirrors or {}, (store or "").startswith("file:")),
                 memory=_memory(fitted, fitted.memory, shape, offer) if fitted.memory else None,
                 host_memory=_host_memory(fitted) if fitted.host_memory else None,
                 communication=_communication(fitted, shape, offer))


def _communication(fitted: Fit, shape: EncoderShape, offer: Offer) -> CommunicationPlan | None:
    if offer.gpu is None or fitted.world_size == 1:
        return None
    sent = communication_bytes(fitted.config, shape, fitted.world_size, fitted.ranks_per_node)
    low, mid, high = (round(scaling_efficiency(fitted.config, shape, offer.gpu, fitted.world_size,
                                               offer.num_nodes, links), 3) for links in _LINK_FACTORS)
    return CommunicationPlan(num_ranks=fitted.world_size, gradient_bytes=sent.gradients,
                             weight_bytes=sent.weights, encoder_bytes=sent.encoder, efficiency=mid,
                             efficiency_range=(low, high))


def fetch_bytes_per_s(cloud: str) -> float:
    """From object storage to one node there (guess)."""
    return _FETCH_BYTES_PER_S.get(cloud, _FETCH_BYTES_PER_S_OTHERWISE)


def _host_memory(fitted: Fit) -> HostMemoryPlan:
    parts = dict(fitted.host_memory)
    return HostMemoryPlan(parts=parts, needed_bytes=sum(parts.values()))


def _encoder(config: TrainConfig, shape: EncoderShape, offer: Offer, mirrors: Mapping[WeightFormat, int],
             has_store_here: bool) -> EncoderPlan:
    encoder, num_bytes = config.token_encoder, encoder_bytes(config, shape)
    is_folder = Path(encoder.name).is_absolute()
    source, weights, source_bytes = _source_of(encoder, 2 * shape.kept_parameters(encoder.layer),
                                               {} if is_folder and offer.is_local else mirrors)
    is_fetched = source == "Hub" or (source == "mirror" and not (offer.is_local and has_store_here))
    rate = fetch_bytes_per_s(offer.cloud)
    seconds = round(source_bytes / rate, 1) if is_fetched and not offer.is_local else 0.0
    price = offer.price_usd_per_hour
    usd = None if price is None else price_for(timedelta(seconds=seconds), price).quantize(Decimal("0.0001"))
    loading_s = source_bytes / READ_BYTES_PER_S + (
        packing_s(config, shape, offer.gpu) if weights != encoder.weights else 0.0)
    return EncoderPlan(name=encoder.name, weights=encoder.weights, num_bytes=num_bytes, source=source,
                       source_weights=weights, source_bytes=source_bytes,
                       first_fetch_bytes=source_bytes if is_fetched and offer.is_local else 0,
                       fetch_s=seconds, loading_s=round(loading_s, 1),
                       placement="gpu" if encoder.placement == "auto" else encoder.placement,
                       fetch_usd=usd, fetch_bytes_per_s=rate)


def _source_of(encoder: TokenEncoderConfig, bf16_bytes: int, mirrors: Mapping[WeightFormat, int]
               ) -> tuple[WeightSource, WeightFormat, int]:
    """Where the node will take weights from, in which format, and bytes of those files, as it chooses.

    A package or a folder that is there comes before any mirror. Of the Hub's files only those that hold the
    kept part are fetched, which is nearly all of a large model.
    """
    if "/" not in encoder.name:
        return "package", "bf16", bf16_bytes
    formats: tuple[WeightFormat, ...] = (encoder.weights, "bf16")
    for weights in formats:
        if weights in mirrors:
            return "mirror", weights, mirrors[weights]
    return "folder" if Path(encoder.name).is_absolute() else "Hub", "bf16", bf16_bytes


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
