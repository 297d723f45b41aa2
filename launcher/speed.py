"""How fast a config trains on some hardware: measured by an earlier run, else guessed. Pure."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from launcher.offers import GPU_KINDS, Offer, gpu_kind
from trainer.config import TrainConfig
from trainer.encoder_shape import EncoderShape
from trainer.memory import host_bytes_of_encoder
from trainer.sizes import flops_per_token

# Measured with the smoke recipe on two shared x86 cores, 2026-11-23; for any other CPU it is a guess.
CPU_GFLOPS_PER_CORE = 28.0
_GPU_UTILISATION = 0.25  # guess: share of the peak that large matrices reach
_GPU_MICRO_BATCH_S = 0.06  # guess: Python and kernel launches of one micro-batch, however small the model
_HOST_TO_GPU_BYTES_PER_S = 20e9  # guess: page-locked memory over PCIe 4
GUESS_FACTORS = (0.5, 2.0)  # on hours
_MEASURED_FACTORS = (0.9, 1.2)  # guess: the same hardware again


@dataclass(frozen=True)
class MeasuredSpeed:
    """Training speed that an earlier run reached.

    Attributes:
        hardware: `Offer.hardware` of that run.
        fingerprint: `config_fingerprint` of its config.
        tokens_per_s: Over all ranks, while training (no set-up, no evaluation).
    """

    run_id: str
    hardware: str
    fingerprint: str
    tokens_per_s: float


@dataclass(frozen=True)
class Speed:
    """Tokens per second over all ranks, where that comes from, and factors on hours for a range's ends."""

    tokens_per_s: float
    source: str
    factors: tuple[float, float]


def config_fingerprint(config: TrainConfig) -> str:
    """Equal for configs that train at the same speed on the same hardware: 16 hex digits."""
    encoder = config.token_encoder
    what = {"model": config.model.model_dump(),
            "encoder": [encoder.name, encoder.layer, encoder.weights, encoder.placement],
            "length": config.data.sequence_length,
            "batch": [config.global_batch_size, config.micro_batch_size],
            "precision": config.precision, "zero_stage": config.zero_stage,
            "activation_checkpointing": config.activation_checkpointing,
            "token_loss_fraction": config.token_loss_fraction,
            "self_conditioning": config.diffusion.self_conditioning_probability}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def training_speed(config: TrainConfig, shape: EncoderShape | None, offer: Offer, world_size: int,
                   history: Sequence[MeasuredSpeed]) -> Speed:
    """Speed of a config on an offer.

    Args:
        config: Its encoder's placement is resolved, but fingerprints are of configs as written.
        shape: Of the token encoder; None: its share is left out.
        offer: What it trains on.
        world_size: Ranks over all nodes.
        history: Speeds of earlier runs, oldest first, all of this hardware and config.
    """
    if history:
        runs = f"run {history[-1].run_id}" if len(history) == 1 else (
            f"{len(history)} runs, last {history[-1].run_id}")
        return Speed(median(past.tokens_per_s for past in history), f"measured in {runs}", _MEASURED_FACTORS)
    flops = flops_per_token(config, shape).total
    if offer.gpu is None:
        return Speed(offer.cpu_ranks * CPU_GFLOPS_PER_CORE * 1e9 / flops,
                     f"guess: {CPU_GFLOPS_PER_CORE:g} GFLOP/s per core", GUESS_FACTORS)
    peak = gpu_kind(offer.gpu).tflops
    tokens = config.micro_batch_size * config.data.sequence_length
    compute_s = tokens * flops / (peak * 1e12 * _GPU_UTILISATION)
    copied_s = host_bytes_of_encoder(config, shape) / _HOST_TO_GPU_BYTES_PER_S if shape else 0.0
    known = "" if offer.gpu in GPU_KINDS else ", an unknown card"
    return Speed(world_size * tokens / (max(compute_s, copied_s) + _GPU_MICRO_BATCH_S),
                 f"guess: {_GPU_UTILISATION:.0%} of {peak:g} TFLOP/s{known} and {_GPU_MICRO_BATCH_S:g} s per "
                 f"micro-batch", GUESS_FACTORS)


def same_speeds(config: TrainConfig, offer: Offer, history: Sequence[MeasuredSpeed]) -> list[MeasuredSpeed]:
    """Of earlier runs those with this hardware and this config, as it was written."""
    fingerprint = config_fingerprint(config)
    return [past for past in history if past.hardware == offer.hardware and past.fingerprint == fingerprint]
