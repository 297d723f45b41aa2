"""The denoiser over a fixed grid of times: all that depends on the time alone is worked out beforehand.

Shapes: B batch, K latents, D latent width, W inner width, P prompt tokens, M vectors that a pass is told of
its time.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import rotation_of
from trainer.denoiser import Denoiser
from trainer.fast.weights import Mode, dtype_of, laid_out
from trainer.prompt import PromptAttention, PromptContext

_OF_A_BLOCK = 6  # shift, scale and gate of attention and of the MLP


class ReadPrompt(NamedTuple):
    """What the blocks read of a prompt: keys and values (B, P, W) of each, the mask (B, 1, 1, P) of both, and
    whether there is a prompt, (B, 1, 1)."""

    keys: list[Tensor]
    values: list[Tensor]
    mask_B11P: Tensor
    given_B11: Tensor


def told_times(denoiser: Denoiser, u_S: Tensor) -> list[Tensor]:
    """What each pass is told of its time: (M, W), float32; one vector, or six of each block and two."""
    told_SN = denoiser.time_vector(u_S)
    if denoiser.modulation is not None:
        maps = [*(block.modulation for block in denoiser.blocks), denoiser.modulation]
        told_SN = torch.cat([part(told_SN) for part in maps], dim=-1)
    # Each by itself, not a view: a compiled pass takes them to begin where memory was given out.
    return [told_N.view(-1, denoiser.config.model.width).float().clone() for told_N in told_SN]


class FastDenoiser(nn.Module):
    """Computes what a `Denoiser` does, but is told `told_times` where that is told u."""

    def __init__(self, denoiser: Denoiser, mode: Mode) -> None:
        super().__init__()
        self.reads_estimate = denoiser.config.model.self_conditioning
        self.is_plain, self.dtype = denoiser.is_plain, dtype_of(mode)
        self.has_input, self.has_output = (isinstance(part, nn.Linear)
                                           for part in (denoiser.input, denoiser.output))
        self.input, self.blocks, self.output = (
            laid_out(part, mode) for part in (denoiser.input, denoiser.blocks, denoiser.output))
        if not self.is_plain:
            for block in self.blocks:
                del block.modulation
        self.positions = denoiser.positions
        sizes = denoiser.config.model
        self.rotation = None if sizes.denoiser_positions == "learned" else rotation_of(
            denoiser.config.num_latents, sizes.width // sizes.num_heads, next(denoiser.parameters()).device)
        self._original = [denoiser]  # in a list: not a part of this one

    def read(self, prompt: PromptContext | None) -> ReadPrompt | None:
        """What all passes read of a prompt, worked out once."""
        readable = self._original[0].prompt
        if prompt is None or readable is None:
            return None
        context_BPW, mask_B11P, given_B11 = readable(prompt)
        context_BPW = context_BPW.to(self.dtype)
        maps = [block.prompt.attention for block in self.blocks]
        return ReadPrompt([part.key(context_BPW) for part in maps],
                          [part.value(context_BPW) for part in maps], mask_B11P, given_B11)

    def forward(self, z_BKD: Tensor, told_MW: Tensor, estimate_BKD: Tensor,
                prompt: ReadPrompt | None) -> Tensor:
        """Clean latents (B, K, D), float32; see `Denoiser.forward`."""
        if self.reads_estimate:
            z_BKD = torch.cat([z_BKD, estimate_BKD], dim=-1)
        x_BKW = self.input(z_BKD.to(self.dtype)) if self.has_input else z_BKD
        x_BKW = x_BKW.float()
        if self.positions is not None:
            x_BKW = x_BKW + self.positions
        if self.is_plain:
            x_BKW = x_BKW + told_MW[0]
        for number, block in enumerate(self.blocks):
            x_BKW = self._block(number, block, x_BKW, told_MW, prompt)
        if not self.is_plain:
            x_BKW = self._modulated(x_BKW, told_MW[-2], told_MW[-1])
        if self.has_output:
            x_BKW = x_BKW.to(self.dtype)
        return self.output(x_BKW).float()

    def _block(self, number: int, block: nn.Module, x_BKW: Tensor, told_MW: Tensor,
               prompt: ReadPrompt | None) -> Tensor:
        if self.is_plain:
            x_BKW = x_BKW + block.attention(block.attention_norm(x_BKW), self.rotation)
            x_BKW = self._with_prompt(number, block.prompt, x_BKW, prompt)
            return x_BKW + block.mlp(block.mlp_norm(x_BKW))
        own = told_MW[number * _OF_A_BLOCK:(number + 1) * _OF_A_BLOCK]
        x_BKW = x_BKW + own[2] * block.attention(self._modulated(x_BKW, own[0], own[1]), self.rotation)
        x_BKW = self._with_prompt(number, block.prompt, x_BKW, prompt)
        return x_BKW + own[5] * block.mlp(self._modulated(x_BKW, own[3], own[4]))

    def _modulated(self, x_BKW: Tensor, shift_W: Tensor, scale_W: Tensor) -> Tensor:
        return (F.layer_norm(x_BKW, x_BKW.shape[-1:]) * (1 + scale_W) + shift_W).to(self.dtype)

    def _with_prompt(self, number: int, reader: PromptAttention | None, x_BKW: Tensor,
                     prompt: ReadPrompt | None) -> Tensor:
        if prompt is None or reader is None:
            return x_BKW
        heads = reader.attention
        mixed_BKW = heads.mix(heads.query(reader.norm(x_BKW)), prompt.keys[number], prompt.values[number],
                              prompt.mask_B11P)
        return x_BKW + reader.gate * heads.output(mixed_BKW) * prompt.given_B11
