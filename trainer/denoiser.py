"""The diffusion transformer: predicts the clean latent from a noisy one.

A DiT with AdaLN-Zero and self-conditioning by concatenation; at paper scale its parameters add up to
the relayed 132 M. Shapes: B batch, K latents, D latent width, W inner width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.latents import SelfAttention, feed_forward, sinusoid

# Times in [0, 1] would leave most of the sinusoid's frequencies constant (guess).
_TIME_SCALE = 1_000.0


class Denoiser(nn.Module):
    """Clean latents z0 (B, K, D) predicted from noisy ones, their time and an earlier estimate, float32.

    Its first prediction, before training, is 0.
    """

    def __init__(self, num_latents: int, latent_width: int, width: int, num_heads: int,
                 num_layers: int) -> None:
        super().__init__()
        self.input = nn.Linear(2 * latent_width, width)
        self.positions = nn.Parameter(sinusoid(num_latents, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(_DiTBlock(width, num_heads) for _ in range(num_layers))
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.output = _zero(nn.Linear(width, latent_width))
        self.width = width

    def forward(self, z_BKD: Tensor, u_B: Tensor, estimate_BKD: Tensor) -> Tensor:
        """Predict z0.

        Args:
            z_BKD: Noisy latents.
            u_B: Their times in [0, 1].
            estimate_BKD: The denoiser's own earlier prediction, or zeros.
        """
        dtype = self.input.weight.dtype
        time_B1W = self.time(_embedded(u_B, self.width).to(dtype))[:, None]
        x_BKW = self.input(torch.cat([z_BKD, estimate_BKD], dim=-1).to(dtype)) + self.positions
        for block in self.blocks:
            x_BKW = block(x_BKW, time_B1W)
        shift, scale = self.modulation(time_B1W).chunk(2, dim=-1)
        return self.output(_modulated(x_BKW, shift, scale)).float()


class _DiTBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.mlp = feed_forward(width)
        self.modulation = _zero(nn.Linear(width, 6 * width))

    def forward(self, x_BKW: Tensor, time_B1W: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(time_B1W).chunk(6, dim=-1)
        x_BKW = x_BKW + gate_a * self.attention(_modulated(x_BKW, shift_a, scale_a))
        return x_BKW + gate_m * self.mlp(_modulated(x_BKW, shift_m, scale_m))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def _embedded(u_B: Tensor, width: int) -> Tensor:
    """Sinusoid of the time: (B, W)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=u_B.device) * (-math.log(10_000) / width))
    angles = u_B.float()[:, None] * _TIME_SCALE * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
