"""What a row of metrics says of the settings at its step, beside losses and norms."""

import os

import torch

from trainer.contract import Env
from trainer.diffusion import encoder_gate
from trainer.encoder_shape import encoder_shape
from trainer.job import Job
from trainer.sizes import flops_per_token


def settings_at(job: Job, tokens_per_s: float) -> dict[str, float]:
    """Settings of the newest step, and how well the hardware was used.

    Args:
        job: After that step.
        tokens_per_s: Over all ranks, while training.

    Returns:
        gamma: what the latent encoder hears of L_diff, in [0, 1]
        learning_rate: of that step
        mfu: arithmetic of training, the frozen encoder's forward pass included, recomputed blocks not, as a
            share of the GPUs' peak by their data sheets; absent where peak or encoder's size is not known
    """
    settings = job.config.diffusion
    gamma = encoder_gate(job.progress.step - 1, settings.encoder_warmup_steps, settings.encoder_warmup_floor)
    found = {"gamma": float(gamma), "learning_rate": float(job.engine.optimizer.param_groups[0]["lr"])}
    shape = encoder_shape(job.config.token_encoder.name)
    peak = float(os.environ.get(Env.PEAK_TFLOPS) or 0)
    if peak and shape:
        flops = flops_per_token(job.config, shape)
        found["mfu"] = (flops.total - flops.recomputed) * tokens_per_s / (peak * 1e12)
    return found


def time_density(job: Job) -> dict[str, float]:
    """q(u) of the training times, by the bins of u over [0, 1]; 1 is even."""
    values = job.timesteps.probabilities * job.timesteps.num_bins
    return {f"time_density/{index:03d}": value for index, value in enumerate(values.tolist())}


def peak_memory(job: Job) -> dict[str, float]:
    """The most that this rank's GPU has held since the attempt began, GiB; nothing on a CPU."""
    is_gpu = job.device.type == "cuda"
    return {"peak_memory_gib": torch.cuda.max_memory_allocated(job.device) / 2**30} if is_gpu else {}
