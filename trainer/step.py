"""One optimizer step of one rank.

Shapes: B micro-batch, L tokens.
"""

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from trainer.evaluate import tokens_of
from trainer.gradients import clip_by_part
from trainer.health import encoder_gradient_norms
from trainer.job import Job
from trainer.step_inputs import model_inputs, states_in_turn

_LOSSES = ("total", "hidden", "token", "diffusion")


def train_step(job: Job, step: int) -> None:
    """Take step `step`, from 0: this rank's share of the global batch, all collectives, the average.

    Leaves losses and gradient norms in the job, on the device.
    """
    config = job.config
    batch = job.next_batch()
    states = states_in_turn(job, batch)
    set_learning_rate(job, step)
    sums = torch.zeros(len(_LOSSES) + 1, device=job.device)
    bins = torch.zeros(2, config.diffusion.time_bins, dtype=torch.float64, device=job.device)
    first = dist.get_rank() * len(batch) * config.micro_batch_size
    for micro, tokens_BL in enumerate(batch):
        begin = first + micro * config.micro_batch_size
        positions = range(begin, begin + config.micro_batch_size)
        values, bins_of_micro = forward_and_backward(job, step, positions, tokens_BL, next(states))
        sums += values / len(batch)
        bins += bins_of_micro
        if micro == len(batch) - 1:
            job.grad_norms = clip_by_part(job.engine, config.optimizer.clip_norm)
            job.checkpoints.settle()
        job.engine.step()
    job.model.end_step()
    job.losses = dict(zip(_LOSSES, sums, strict=False))
    # Any value that the hidden states would spoil does; the total of the losses says nothing new.
    job.watch.note(step + 1, [sums[-1], *sums[1:-1], *job.grad_norms.values()])
    dist.all_reduce(bins)
    job.timesteps.update(*bins, step)
    job.average.update(step)


def forward_and_backward(job: Job, step: int, positions: range, tokens_BL: Tensor,
                         h_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """One micro-batch: its losses with the sum of its hidden states, and its sums over bins of time."""
    if job.config.model.dropout:
        torch.manual_seed(hash((job.config.seed, step, positions.start)))
    inputs = model_inputs(job, step, positions, tokens_BL, h_BLD)
    losses = job.engine(*inputs)
    job.engine.backward(losses.total)
    values = torch.stack([*(getattr(losses, name).detach() for name in _LOSSES), inputs.h_BLD.sum()])
    return values, torch.stack(job.timesteps.bin_sums(inputs.u_B, losses.diffusion_B))


def encoder_pulls(job: Job, rows_NL: np.ndarray) -> dict[str, float]:
    """How hard the losses pull at the latent encoder on some rows; see `encoder_gradient_norms`."""
    tokens_BL = tokens_of(rows_NL, job.model)
    inputs = model_inputs(job, job.progress.step, range(len(tokens_BL)), tokens_BL,
                          job.encoder.hidden_states(tokens_BL))
    norms = encoder_gradient_norms(job.model.eval(), *inputs)
    job.model.train()
    return {name: float(norm) for name, norm in norms.items()}


def set_learning_rate(job: Job, step: int) -> None:
    """Linear warm-up, constant, linear decay over the last `decay_steps`."""
    optimizer = job.config.optimizer
    factor = min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    if optimizer.decay_steps:
        factor *= min(1.0, (job.config.steps - step) / optimizer.decay_steps)
    for group in job.engine.optimizer.param_groups:
        group["lr"] = optimizer.learning_rate * factor
