"""How latents get their scale: the largest open question of the method, so each answer is a setting.

A fixed decoder noise means something only against latents of a known scale. Shapes: B batch,
K latents, D latent width.
"""

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from trainer.config import ModelConfig

# Of the running variance, for each optimizer step: it follows an encoder that changes over thousands
# of steps, and does not follow a single batch (guess).
_DECAY = 0.99
_LEAST_STD = 1e-4  # collapsed latents must not be blown up without bound (guess)


class ExactBuffers(nn.Module):
    """A module whose own floating buffers keep their precision whatever the module is cast to.

    `.bfloat16()` would round statistics: a channel whose mean is large against its spread would be
    shifted by a sizeable part of that spread.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: buffer for name, buffer in self._buffers.items()
                 if buffer is not None and buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


class UnitRms(nn.Module):
    """Each latent vector at a root mean square of 1, as in the authors' earlier compressor. No state."""

    def forward(self, z_BKD: Tensor) -> Tensor:
        return F.rms_norm(z_BKD.float(), z_BKD.shape[-1:], eps=1e-6)


class NoScale(nn.Module):
    """Latents as they are, in float32: only the decoder noise anchors their scale."""

    def forward(self, z_BKD: Tensor) -> Tensor:
        return z_BKD.float()


class RunningScale(ExactBuffers):
    """Latents divided by a running standard deviation: one number, so their shape is left alone.

    Variance is taken about each channel's own mean over texts and positions. Forward passes in
    training collect sums; `end_step` adds them up over all ranks and moves the number, once for each
    optimizer step, so it is the same on every rank and does not depend on how the batch was split.
    Nothing else moves it. Until the first step has ended it is 1. Both buffers belong to the weights.
    """

    std: Tensor
    num_steps: Tensor
    _sums: Tensor

    def __init__(self, latent_width: int) -> None:
        super().__init__()
        self.register_buffer("std", torch.ones(()))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        # Count, sum and sum of squares of each channel since the last step.
        self.register_buffer("_sums", torch.zeros(3, latent_width, dtype=torch.float64), persistent=False)

    def forward(self, z_BKD: Tensor) -> Tensor:
        z_BKD = z_BKD.float()
        if self.training and torch.is_grad_enabled():
            z = z_BKD.detach().double().flatten(0, -2)
            self._sums += torch.stack([torch.full_like(z[0], len(z)), z.sum(0), z.square().sum(0)])
        return z_BKD / self.std

    @torch.no_grad()
    def end_step(self) -> None:
        """Take in the latents of one optimizer step. A collective call: every rank makes it."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sums)
        count, first, second = self._sums
        variance = (second / count - (first / count).square()).mean()
        weight = torch.clamp(1 / (self.num_steps + 1), min=1 - _DECAY)
        moved = torch.lerp(self.std.double().square(), variance, weight.double()).sqrt().clamp(min=_LEAST_STD)
        seen = torch.isfinite(moved)
        self.std.copy_(torch.where(seen, moved, self.std))
        self.num_steps += seen
        self._sums.zero_()


def latent_scale(config: ModelConfig) -> nn.Module:
    """The scale that a configuration asks for."""
    if config.latent_norm == "running_std":
        return RunningScale(config.latent_width)
    return UnitRms() if config.latent_norm == "unit_rms" else NoScale()
