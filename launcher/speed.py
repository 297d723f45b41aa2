"""How fast a config trains on some hardware: by an earlier run, by a benchmark, else by a model. Pure."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from launcher.advice import changed_config
from launcher.benchmarks import Benchmarked, nearest
from launcher.gpu_kinds import GPU_KINDS, GpuKind, gpu_kind
from launcher.offers import Offer
from trainer.communication import communication_bytes, gathered_bytes
from trainer.config import TrainConfig, encoder_micro_batch, grad_accum_steps
from trainer.encoder_shape import EncoderShape, Family
from trainer.sizes import block_bytes, flops_per_token, num_trained

# Measured with the smoke recipe on two shared x86 cores, 2026-11-23; for any other CPU it is a guess.
CPU_GFLOPS_PER_CORE = 28.0
# Shares of the peak that large matrices reach, and seconds of Python and kernel launches however small the
# model, chosen so that every figure of one H100 of 2026-11-23 and 24 in recipes/LOG.md is met within 1.8.
_ENCODER_UTILISATION: Mapping[Family, float] = {
    "gpt2": 0.4, "bert": 0.4, "roberta": 0.4, "distilbert": 0.4, "qwen3_5": 0.4, "qwen3_5_moe": 0.25}
_BLOCK_S: Mapping[Family, float] = {
    "gpt2": 0.001, "bert": 0.001, "roberta": 0.001, "distilbert": 0.001, "qwen3_5": 0.0035,
    "qwen3_5_moe": 0.0045}
_FP8_GAIN = 1.5  # of products in fp8 over those in bf16, with what surrounds them (guess)
_PACKED_BLOCK_S = 0.0025  # more, where a block has to be brought or decoded
_TRAINED_UTILISATION = 0.18
_MICRO_BATCH_S = 0.02
_STEP_S = 0.09
# The rest are guesses. float32 is slow enough to be busy all the time.
_FP32_UTILISATION = 0.6
_STEP_BYTES = 50  # of memory traffic a trained parameter: AdamW, clipping, average
_STEP_MEMORY_SHARE = 0.25
# Weights a second, measured on one H100, 2026-11-24; on other cards as their memory is fast (guess).
_DECODED_PER_S = {"fp8": 115e9, "nf4": 137e9}
# The way there: on two CPU cores, measured 2026-11-24; a GPU is a tenth as fast as at decoding (guess).
_ENCODED_PER_S = {"fp8": 17.5e6, "nf4": 26e6}
_ENCODING_SHARE = 0.1
_HOST_TO_GPU_BYTES_PER_S = 20e9  # page-locked memory over PCIe 4
_NETWORK_BYTES_PER_S = 12.5e9  # between nodes, each way: 100 Gbit/s
# Where a speed comes from: earlier runs of the store on this hardware, a committed benchmark of this GPU, one
# or the other on other hardware by the ratio of what the model gives both, or the model by FLOPs alone.
SpeedOrigin = Literal["runs", "bench", "scaled", "model"]
# On hours; guesses, the narrower the more of it was measured.
GUESS_FACTORS = (0.5, 2.0)
_FACTORS: Mapping[SpeedOrigin, tuple[float, float]] = {
    "runs": (0.9, 1.2), "bench": (0.9, 1.3), "scaled": (0.65, 1.6), "model": GUESS_FACTORS}


@dataclass(frozen=True)
class MeasuredSpeed:
    """Training speed that an earlier run reached.

    Attributes:
        hardware: `Offer.hardware` of that run.
        fingerprint: `config_fingerprint` of its config.
        tokens_per_s: Over all ranks, while training (no set-up, no evaluation).
        to_scale: The same for what has other hardware; None: it is not known how it lay on its own.
    """

    run_id: str
    hardware: str
    fingerprint: str
    tokens_per_s: float
    to_scale: Benchmarked | None = None


@dataclass(frozen=True)
class Speed:
    """Tokens per second over all ranks, where that comes from, and the same in words."""

    tokens_per_s: float
    origin: SpeedOrigin
    source: str

    @property
    def factors(self) -> tuple[float, float]:
        """On hours, for the ends of a range."""
        return _FACTORS[self.origin]

    @property
    def is_measured(self) -> bool:
        """Rests on a measurement, if only one of other hardware."""
        return self.origin != "model"


def config_fingerprint(config: TrainConfig) -> str:
    """Equal for configs that train at the same speed on the same hardware: 16 hex digits."""
    encoder = config.token_encoder
    what = {"model": config.model.model_dump(),
            "encoder": [encoder.name, encoder.layer, encoder.weights, encoder.placement,
                        # older runs had none of these
                        *([] if encoder.products == "bf16" else [encoder.products]),
                        *([encoder.micro_batch_size] if encoder.micro_batch_size else [])],
            "length": config.data.sequence_length,
            "batch": [config.global_batch_size,
                      "auto" if config.probe_micro_batch else config.micro_batch_size],
            "precision": config.precision, "zero_stage": config.zero_stage,
            "activation_checkpointing": config.activation_checkpointing,
            "token_loss_fraction": config.token_loss_fraction,
            "self_conditioning": config.diffusion.self_conditioning_probability,
            # Only where it is on: speeds from before there was such a setting stay known.
            **({"compile": True} if config.compile else {})}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def training_speed(config: TrainConfig, shape: EncoderShape | None, offer: Offer, world_size: int,
                   history: Sequence[MeasuredSpeed], benchmarks: Sequence[Benchmarked] = ()) -> Speed:
    """Speed of a config on an offer.

    Args:
        config: Its encoder's placement is resolved, but fingerprints are of configs as written.
        shape: Of the token encoder; None: its share is left out.
        offer: What it trains on.
        world_size: Ranks over all nodes.
        history: Speeds of earlier runs, oldest first, all of this hardware and config.
        benchmarks: Of any GPU and config, earlier runs among them; what is not of this config counts nothing.
    """
    if history:
        runs = f"run {history[-1].run_id}" if len(history) == 1 else (
            f"{len(history)} runs, last {history[-1].run_id}")
        return Speed(median(past.tokens_per_s for past in history), "runs", f"measured in {runs}")
    if offer.gpu is None:
        rate = offer.cpu_ranks * CPU_GFLOPS_PER_CORE * 1e9 / flops_per_token(config, shape).total
        return Speed(rate, "model", f"model by FLOPs: {CPU_GFLOPS_PER_CORE:g} GFLOP/s per core")
    found = nearest(config, offer.gpu, world_size, benchmarks) if shape else None
    if found:
        return _by_benchmark(config, shape, offer, world_size, found)
    rate = _modelled(config, shape, offer.gpu, world_size, offer.num_nodes)
    return Speed(rate, "model", _source(config, shape, offer.gpu))


def _by_benchmark(config: TrainConfig, shape: EncoderShape | None, offer: Offer, world_size: int,
                  found: Benchmarked) -> Speed:
    """As measured where all but the number of micro-batches is the same, else scaled by the model of both.

    Where arithmetic decides, that is by the ratio of their peak rates; it also knows blocks that have to be
    moved or decoded, and what several GPUs share and tell each other.
    """
    assert offer.gpu is not None, "a benchmark is of a GPU"
    then = found.config
    now = changed_config(config, {"train.global_batch_size": then.global_batch_size,
                                  "train.micro_batch_size": config.micro_batch_size})  # no `auto` any more
    is_same_config = config_fingerprint(now) == config_fingerprint(then)
    if is_same_config and (offer.gpu, world_size) == (found.gpu, found.num_ranks):
        return Speed(found.tokens_per_s, "bench", f"measured on {found.hardware}: {found.words}")
    # With as many micro-batches in a step: what a step's end takes, the model guesses worst.
    sequences = then.micro_batch_size * grad_accum_steps(config, world_size) * found.num_ranks
    there = changed_config(then, {"train.global_batch_size": sequences})
    ratio = _modelled(config, shape, offer.gpu, world_size, offer.num_nodes) / _modelled(
        there, shape, found.gpu, found.num_ranks, found.num_nodes)
    return Speed(found.tokens_per_s * ratio, "scaled", f"scaled from {found.hardware}: {found.words}")


def _modelled(config: TrainConfig, shape: EncoderShape | None, gpu: str, world_size: int, num_nodes: int
              ) -> float:
    """Tokens per second by FLOPs, bytes and launches."""
    return config.tokens_per_step / _step_s(config, shape, gpu_kind(gpu), world_size, num_nodes)


def _step_s(config: TrainConfig, shape: EncoderShape | None, kind: GpuKind, world_size: int, num_nodes: int,
            links: float = 1.0) -> float:
    """Seconds of a step. Nothing is computed while gradients and weights are on their way.

    Args:
        links: How many times as fast as believed GPUs hear each other.
    """
    kind = kind._replace(link_bytes_per_s=links * kind.link_bytes_per_s)
    per_node = world_size // num_nodes
    each = micro_batch_time(config, shape, kind, world_size, per_node)
    step_s = grad_accum_steps(config, world_size) * each.total_s
    if shape is not None:
        told = communication_bytes(config, shape, world_size, per_node)
        slowest = min(kind.link_bytes_per_s, links * _NETWORK_BYTES_PER_S if num_nodes > 1 else math.inf)
        step_s += (told.gradients + told.weights) / slowest
    return step_s + _STEP_S + _update_s(config, shape, kind, world_size)


def scaling_efficiency(config: TrainConfig, shape: EncoderShape, gpu: str, world_size: int, num_nodes: int,
                       links: float = 1.0) -> float:
    """Share of the speed that is left when ranks have to wait for what others send, in (0, 1], by the model.

    Args:
        links: See `_step_s`.
    """
    alone_s, together_s = (_step_s(config, shape, gpu_kind(gpu), world_size, num_nodes, speed)
                           for speed in (math.inf, links))
    return alone_s / together_s


def _source(config: TrainConfig, shape: EncoderShape | None, gpu: str) -> str:
    peak, share = _trained_peak(config, gpu_kind(gpu))
    known = "" if gpu in GPU_KINDS else " of an unknown card"
    if shape is None:
        return f"model by FLOPs: {share:.0%} of {peak:g} TFLOP/s{known}, without the encoder"
    encoder = f"{_ENCODER_UTILISATION[shape.family]:.0%} of {gpu_kind(gpu).bf16_tflops:g} at most"
    return f"model by FLOPs: {share:.0%} of {peak:g} TFLOP/s{known}, the encoder {encoder}"


def _trained_peak(config: TrainConfig, kind: GpuKind) -> tuple[float, float]:
    """TFLOP/s of the trained parts' precision, and the share of it that is reached."""
    if config.precision == "fp32":
        return kind.fp32_tflops, _FP32_UTILISATION
    return kind.bf16_tflops, _TRAINED_UTILISATION


def encoder_share(config: TrainConfig, shape: EncoderShape, offer: Offer, world_size: int) -> float:
    """Share of a step's time that the frozen encoder takes, in [0, 1], by the model."""
    if offer.gpu is None:
        flops = flops_per_token(config, shape)
        return flops.encoder / flops.total
    each = micro_batch_time(config, shape, gpu_kind(offer.gpu), world_size, world_size // offer.num_nodes)
    step_s = config.tokens_per_step / _modelled(config, shape, offer.gpu, world_size, offer.num_nodes)
    return grad_accum_steps(config, world_size) * each.hidden_states_s / step_s


@dataclass(frozen=True)
class MicroBatchTime:
    """Seconds of one micro-batch on one rank.

    Attributes:
        encoder_s: The frozen encoder, in bf16 whatever the trained parts' precision is: its arithmetic, or
            the launches of its kernels if they take longer.
        decoding_s: From fp8 or nf4 to bf16, once for every forward pass.
        moving_s: Blocks that come from host memory or from the node's other GPUs, while others compute.
        trained_s: Trained parts, there and back.
    """

    encoder_s: float
    decoding_s: float
    moving_s: float
    trained_s: float

    @property
    def hidden_states_s(self) -> float:
        """The frozen part: the next block moves while this one is decoded and computes."""
        return max(self.encoder_s + self.decoding_s, self.moving_s)

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.hidden_states_s + self.trained_s


def micro_batch_time(config: TrainConfig, shape: EncoderShape | None, kind: GpuKind, world_size: int,
                     ranks_per_node: int) -> MicroBatchTime:
    """What one micro-batch takes, by kind of work; without a shape nothing of the encoder.

    Of an encoder that reads several micro-batches at once it is the share of one.
    """
    tokens, flops = config.micro_batch_size * config.data.sequence_length, flops_per_token(config, shape)
    num = encoder_micro_batch(config, world_size) / config.micro_batch_size  # that it reads at once
    is_decoded = config.token_encoder.is_decoded
    trained = flops.trained + flops.self_conditioning + flops.recomputed
    peak, share = _trained_peak(config, kind)
    # With checkpointing the same kernels are launched twice.
    launches_s = _MICRO_BATCH_S * (2 if config.activation_checkpointing else 1)
    return MicroBatchTime(
        encoder_s=_encoder_s(config, shape, kind, num * tokens * flops.encoder) / num if shape else 0.0,
        decoding_s=_decoding_s(config, shape, kind) / num if shape and is_decoded else 0.0,
        moving_s=_moving_s(config, shape, kind, ranks_per_node) / num if shape else 0.0,
        trained_s=tokens * trained / (peak * 1e12 * share) + launches_s)


def _encoder_s(config: TrainConfig, shape: EncoderShape, kind: GpuKind, flops: float) -> float:
    encoder = config.token_encoder
    is_fed = encoder.is_decoded or encoder.placement in ("host", "sharded")
    block_s = _BLOCK_S[shape.family] + (_PACKED_BLOCK_S if is_fed else 0.0)
    faster = _FP8_GAIN if encoder.products == "fp8" else 1.0
    busy_s = flops / (kind.bf16_tflops * 1e12 * _ENCODER_UTILISATION[shape.family] * faster)
    return max(busy_s, shape.kept_blocks(encoder.layer) * block_s)


def _decoding_s(config: TrainConfig, shape: EncoderShape, kind: GpuKind) -> float:
    rate = _DECODED_PER_S.get(config.token_encoder.weights)
    if rate is None:
        return 0.0
    return _quantised(config, shape) / (
        rate * kind.memory_bytes_per_s / gpu_kind("H100").memory_bytes_per_s)


def _quantised(config: TrainConfig, shape: EncoderShape) -> int:
    kept = shape.blocks[:shape.kept_blocks(config.token_encoder.layer)]
    return sum(block.quantised_parameters for block in kept)


def packing_s(config: TrainConfig, shape: EncoderShape, gpu: str | None) -> float:
    """Seconds in which one rank packs weights that come in bf16; 0 where they stay so."""
    if gpu is not None:
        return _decoding_s(config, shape, gpu_kind(gpu)) / _ENCODING_SHARE
    rate = _ENCODED_PER_S.get(config.token_encoder.weights)
    return _quantised(config, shape) / rate if rate else 0.0


def statistics_s(config: TrainConfig, shape: EncoderShape, offer: Offer, world_size: int) -> float:
    """Seconds of the pass that fixes mean and deviation of hidden states, at a run's first start."""
    tokens = config.token_encoder.statistics_tokens
    if offer.gpu is None:
        rate = offer.cpu_ranks * CPU_GFLOPS_PER_CORE * 1e9
        return tokens * flops_per_token(config, shape).encoder / rate
    config = changed_config(config, {"train.token_encoder.micro_batch_size": None})  # which is a step's
    each = micro_batch_time(config, shape, gpu_kind(offer.gpu), world_size, world_size // offer.num_nodes)
    at_a_time = config.micro_batch_size * config.data.sequence_length * world_size
    return tokens / at_a_time * each.hidden_states_s


def _moving_s(config: TrainConfig, shape: EncoderShape, kind: GpuKind, ranks_per_node: int) -> float:
    encoder = config.token_encoder
    if encoder.placement not in ("host", "sharded"):
        return 0.0
    if encoder.placement == "sharded":
        return gathered_bytes(config, shape, ranks_per_node) / kind.link_bytes_per_s
    packed = sum(block_bytes(shape, index, encoder.weights)
                 for index in range(shape.kept_blocks(encoder.layer)))
    return packed / _HOST_TO_GPU_BYTES_PER_S


def _update_s(config: TrainConfig, shape: EncoderShape | None, kind: GpuKind, world_size: int) -> float:
    """The optimizer's part of a step, each rank its share; nothing where the parts' sizes are not known."""
    if shape is None:
        return 0.0
    share = num_trained(config, shape) / world_size
    return share * _STEP_BYTES / (kind.memory_bytes_per_s * _STEP_MEMORY_SHARE)


def same_speeds(config: TrainConfig, offer: Offer, history: Sequence[MeasuredSpeed]) -> list[MeasuredSpeed]:
    """Of earlier runs those with this hardware and this config, as it was written."""
    fingerprint = config_fingerprint(config)
    return [past for past in history if past.hardware == offer.hardware and past.fingerprint == fingerprint]
