"""One optimizer step of one rank.

Shapes: B micro-batch, L tokens, P tokens of a prompt, D channels of a hidden state.
"""

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.config import TrainConfig
from trainer.diffusion import encoder_gate
from trainer.gradients import clip_by_part
from trainer.health import encoder_gradient_norms
from trainer.job import Job
from trainer.model import draw_noise
from trainer.prompt import longest_prompt

_LOSSES = ("total", "hidden", "token", "diffusion")


def train_step(job: Job, step: int) -> None:
    """Take step `step`, from 0: this rank's share of the global batch, all collectives, the average.

    Leaves losses and gradient norms in the job, on the device.
    """
    config, diffusion = job.config, job.config.diffusion
    batch = job.next_batch()
    gate = encoder_gate(step, diffusion.encoder_warmup_steps, diffusion.encoder_warmup_floor)
    set_learning_rate(job, step)
    sums = torch.zeros(len(_LOSSES) + 1, device=job.device)
    bins = torch.zeros(2, diffusion.time_bins, dtype=torch.float64, device=job.device)
    first = dist.get_rank() * len(batch) * config.micro_batch_size
    for micro, tokens_BL in enumerate(batch):
        begin = first + micro * config.micro_batch_size
        positions = range(begin, begin + config.micro_batch_size)
        values, bins_of_micro = forward_and_backward(job, step, positions, tokens_BL, gate)
        sums += values / len(batch)
        bins += bins_of_micro
        if micro == len(batch) - 1:
            job.grad_norms = clip_by_part(job.engine, config.optimizer.clip_norm)
        job.engine.step()
    job.model.end_step()
    job.losses = dict(zip(_LOSSES, sums, strict=False))
    # Any value that the hidden states would spoil does; the total of the losses says nothing new.
    job.watch.note(step + 1, [sums[-1], *sums[1:-1], *job.grad_norms.values()])
    dist.all_reduce(bins)
    job.timesteps.update(*bins.cpu(), step)
    job.average.update(step)


def is_evaluated(config: TrainConfig, step: int) -> bool:
    """True when the averaged weights are scored after so many steps."""
    return step % config.evaluate_every_steps == 0 or step == config.steps


def forward_and_backward(job: Job, step: int, positions: range, tokens_BL: Tensor,
                         gate: float) -> tuple[Tensor, Tensor]:
    """One micro-batch: its losses with the sum of its hidden states, and its sums over bins of time.

    Args:
        job: Whose gradients grow.
        step: From 0.
        positions: Of the samples in the global batch: their noise depends on it.
        tokens_BL: Token ids.
        gate: Share of the diffusion gradient that reaches the latent encoder.
    """
    config = job.config
    if config.model.dropout:
        torch.manual_seed(hash((config.seed, step, positions.start)))
    h_BLD = job.encoder.hidden_states(tokens_BL)
    noise = draw_noise(config, config.seed, step, positions, job.device)
    u_B = job.timesteps.sample(noise.uniform_B)
    prompt_h_BPD = None
    if config.model.prompt and not job.encoder.is_causal:
        prompts_BP = tokens_BL[:, :longest_prompt(config)]
        prompt_h_BPD = job.encoder.prompt_states(prompts_BP, noise.prompt_length_B)
    losses = job.engine(tokens_BL, h_BLD, noise, gate, u_B, prompt_h_BPD)
    if is_evaluated(config, step + 1):
        job.encoder_pulls = encoder_gradient_norms(job.model, losses)
    job.engine.backward(losses.total)
    values = torch.stack([*(getattr(losses, name).detach() for name in _LOSSES), h_BLD.sum()])
    return values, torch.stack(job.timesteps.bin_sums(u_B, losses.diffusion_B))


def set_learning_rate(job: Job, step: int) -> None:
    """Linear warm-up, constant, linear decay over the last `decay_steps`."""
    optimizer = job.config.optimizer
    factor = min(1.0, (step + 1) / max(1, optimizer.warmup_steps))
    if optimizer.decay_steps:
        factor *= min(1.0, (job.config.steps - step) / optimizer.decay_steps)
    for group in job.engine.optimizer.param_groups:
        group["lr"] = optimizer.learning_rate * factor
