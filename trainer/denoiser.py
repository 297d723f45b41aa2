"""The diffusion transformer: predicts the clean latent from a noisy one.

By default a DiT with AdaLN-Zero and self-conditioning by concatenation; at paper scale its parameters
add up to the relayed 132 M. Shapes: B batch, K latents, D latent width, W inner width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import norms
from trainer.attention import (
    AttentionShape,
    BlockStack,
    Rotation,
    SelfAttention,
    TransformerBlock,
    plain_mlp,
    rotation_of,
    sinusoid,
)
from trainer.config import TrainConfig
from trainer.diffusion import log_snr
from trainer.latents import attention_shape
from trainer.prompt import PromptAttention, PromptContext, PromptInput, ReadablePrompt

# Times in [0, 1] would leave most of the sinusoid's frequencies constant (guess).
_TIME_SCALE = 1_000.0
# Largest |ln SNR| that is told apart. At the ends of the sampling grid it is below 17.1 for every d up
# to 7.7 (arithmetic).
_LOG_SNR_RANGE = 18.0


class Denoiser(nn.Module):
    """Clean latents z0 (B, K, D) predicted from noisy ones, their time and an earlier estimate, float32.

    Its first prediction, before training, is 0. The plain layout has no last norm: without modulation
    by time it would fix the length of the prediction, which must shrink where there is only noise.
    """

    def __init__(self, config: TrainConfig, hidden_size: int) -> None:
        super().__init__()
        sizes, shape = config.model, attention_shape(config.model)
        width, latent_width = sizes.width, sizes.latent_width
        self.config = config
        self.is_plain = sizes.denoiser_block == "plain"
        num_inputs = 2 * latent_width if sizes.self_conditioning else latent_width
        self.input: nn.Module = nn.Identity()
        if not self.is_plain or sizes.self_conditioning or latent_width != width:
            self.input = nn.Linear(num_inputs, width)
        is_learned = sizes.denoiser_positions == "learned"
        self.positions = nn.Parameter(sinusoid(config.num_latents, width)) if is_learned else None
        self.time = _plain_time(width) if self.is_plain else _sinusoid_time(width)
        block = _PlainBlock if self.is_plain else _DiTBlock
        self.blocks = BlockStack((block(shape) for _ in range(sizes.denoiser_layers)),
                                 config.activation_checkpointing)
        self.modulation = None if self.is_plain else _zero(nn.Linear(width, 2 * width))
        is_direct = self.is_plain and latent_width == width
        self.output = _ZeroGain(width) if is_direct else _zero(nn.Linear(width, latent_width))
        # Last, so that all other parts start the same with and without it.
        self.prompt = PromptInput(config, hidden_size) if sizes.prompt else None
        if self.prompt is not None:
            for layer in self.blocks:
                layer.prompt = PromptAttention(shape)

    def forward(self, z_BKD: Tensor, u_B: Tensor, estimate_BKD: Tensor,
                prompt: PromptContext | None = None) -> Tensor:
        """Predict z0.

        Args:
            z_BKD: Noisy latents.
            u_B: Their times in [0, 1].
            estimate_BKD: The denoiser's own earlier prediction, or zeros. Not read without
                `self_conditioning`.
            prompt: What the text begins with; None: nothing is known. Only with `model.prompt`.
        """
        time_B1W = self.time_vector(u_B)[:, None]
        readable = None if prompt is None or self.prompt is None else self.prompt(prompt)
        if self.config.model.self_conditioning:
            z_BKD = torch.cat([z_BKD, estimate_BKD], dim=-1)
        x_BKW = self.input(z_BKD.to(time_B1W.dtype))
        if self.positions is not None:
            x_BKW = x_BKW + self.positions
        if self.is_plain:
            x_BKW = x_BKW + time_B1W
        x_BKW = self.blocks(x_BKW, time_B1W, self._rotation(x_BKW), readable)
        if self.modulation is not None:
            x_BKW = _modulated(x_BKW, *self.modulation(time_B1W).chunk(2, dim=-1))
        return self.output(x_BKW).float()

    def _rotation(self, x_BKW: Tensor) -> Rotation | None:
        sizes = self.config.model
        if sizes.denoiser_positions == "learned":
            return None
        return rotation_of(x_BKW.shape[1], sizes.width // sizes.num_heads, x_BKW.device)

    def time_vector(self, u_B: Tensor) -> Tensor:
        """What the blocks are told of the time: (B, W)."""
        clock_B = u_B.float()
        if self.config.model.time_input == "log_snr":
            signal_B = log_snr(clock_B, self.config.diffusion.tan_d).clamp(-_LOG_SNR_RANGE, _LOG_SNR_RANGE)
            # As even times: 0 clean, 1 noise.
            clock_B = (1 - signal_B / _LOG_SNR_RANGE) / 2
        told = clock_B[:, None] if self.is_plain else _embedded(clock_B, self.config.model.width)
        return self.time(told.to(self.time[0].weight.dtype))


class _ZeroGain(nn.Module):
    """A learned factor for each channel, 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class _DiTBlock(nn.Module):
    """AdaLN-Zero: shifts, scales and gates made from the time, all zero at first."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.attention = SelfAttention(shape)
        self.mlp = plain_mlp(shape.width, shape.dropout)
        self.modulation = _zero(nn.Linear(shape.width, 6 * shape.width))
        self.prompt: PromptAttention | None = None

    def forward(self, x_BKW: Tensor, time_B1W: Tensor, rotation: Rotation | None,
                prompt: ReadablePrompt | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(time_B1W).chunk(6, dim=-1)
        x_BKW = x_BKW + gate_a * self.attention(_modulated(x_BKW, shift_a, scale_a), rotation)
        x_BKW = _with_prompt(x_BKW, self.prompt, prompt)
        return x_BKW + gate_m * self.mlp(_modulated(x_BKW, shift_m, scale_m))


class _PlainBlock(TransformerBlock):
    """A transformer block; the time is already in its input."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.prompt: PromptAttention | None = None

    def forward(self, x_BKW: Tensor, _time_B1W: Tensor, rotation: Rotation | None,
                prompt: ReadablePrompt | None) -> Tensor:
        x_BKW = x_BKW + self.attention(self.attention_norm(x_BKW), rotation)
        x_BKW = _with_prompt(x_BKW, self.prompt, prompt)
        return x_BKW + self.mlp(self.mlp_norm(x_BKW))


def _with_prompt(x_BKW: Tensor, reader: PromptAttention | None, prompt: ReadablePrompt | None) -> Tensor:
    return x_BKW if reader is None or prompt is None else x_BKW + reader(x_BKW, prompt)


def _sinusoid_time(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())


def _plain_time(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    factor = 1 + scale
    if norms.suits(x, factor):
        return norms.layer_normed(x, factor, shift)
    return F.layer_norm(x, x.shape[-1:]) * factor + shift


def _embedded(clock_B: Tensor, width: int) -> Tensor:
    """Sinusoid of a time in [0, 1]: (B, W)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=clock_B.device) * (-math.log(10_000) / width))
    angles = clock_B[:, None] * _TIME_SCALE * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
