"""Latents -> what the vocabulary head reads: latent decoder and token decoder, laid out for inference.

Shapes: B batch, K latents, D latent width, L tokens, W inner width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.fast.weights import Mode, behind_norm, dtype_of, joined, laid_out
from trainer.latents import JointBlock, LatentDecoder, Perceiver, SplitBlock, TokenDecoder


class FastDecoder(nn.Module):
    """`LatentDecoder` and `TokenDecoder.features` in one."""

    def __init__(self, decoder: LatentDecoder, tokens: TokenDecoder, mode: Mode) -> None:
        super().__init__()
        self.dtype = dtype_of(mode)
        self.perceiver = FastPerceiver(decoder.perceiver, mode)
        self.input, self.blocks, self.norm = (
            laid_out(part, mode) for part in (tokens.input, tokens.blocks, tokens.norm))
        self.positions = tokens.positions

    def forward(self, z_BKD: Tensor) -> Tensor:
        """What the head reads, (B, L, W), in the dtype of its weights."""
        hidden_BLD = self.perceiver(F.layer_norm(z_BKD, z_BKD.shape[-1:]))
        x_BLW = self.input(hidden_BLD.to(self.dtype)).float() + self.positions
        for block in self.blocks:
            x_BLW = block(x_BLW)
        return self.norm(x_BLW)


class FastPerceiver(nn.Module):
    """A `Perceiver` whose blocks read their context by one matrix product: it is the same for all of them."""

    def __init__(self, perceiver: Perceiver, mode: Mode) -> None:
        super().__init__()
        self.dtype = dtype_of(mode)
        self.input, self.norm, self.output = (
            laid_out(part, mode) for part in (perceiver.input, perceiver.norm, perceiver.output))
        self.positions, self.queries = perceiver.positions, perceiver.queries
        self.keys_values = laid_out(joined(behind_norm(part, block.context_norm) for block in perceiver.blocks
                                           for part in _context_maps(block)), mode)
        self.blocks = nn.ModuleList(
            (_Joint if isinstance(block, JointBlock) else _Split)(block, mode) for block in perceiver.blocks)

    def forward(self, inputs_BKD: Tensor) -> Tensor:
        context_BKW = self.input(inputs_BKD.to(self.dtype)).float() + self.positions
        read = F.layer_norm(context_BKW, context_BKW.shape[-1:]).to(self.dtype)
        keys_values = self.keys_values(read).chunk(2 * len(self.blocks), dim=-1)
        x_BLW = self.queries.expand(len(inputs_BKD), -1, -1)
        for number, block in enumerate(self.blocks):
            x_BLW = block(x_BLW, *keys_values[2 * number:2 * number + 2])
        return self.output(self.norm(x_BLW))


def _context_maps(block: JointBlock | SplitBlock) -> tuple[nn.Linear, nn.Linear]:
    if isinstance(block, JointBlock):
        return block.context_key, block.context_value
    return block.cross_attention.key, block.cross_attention.value


class _Joint(nn.Module):
    """`JointBlock` whose latents are read by one matrix product."""

    def __init__(self, block: JointBlock, mode: Mode) -> None:
        super().__init__()
        self.query_key_value = laid_out(joined([block.query, block.latent_key, block.latent_value]), mode)
        self.block = laid_out(block, mode)
        for unused in ("query", "latent_key", "latent_value", "context_key", "context_value", "context_norm"):
            delattr(self.block, unused)

    def forward(self, x_BLW: Tensor, key_BKW: Tensor, value_BKW: Tensor) -> Tensor:
        block = self.block
        query, own_key, own_value = self.query_key_value(block.latent_norm(x_BLW)).chunk(3, dim=-1)
        key, value = torch.cat([key_BKW, own_key], dim=1), torch.cat([value_BKW, own_value], dim=1)
        x_BLW = x_BLW + block.output(block.mix(query, key, value))
        return x_BLW + block.mlp(block.mlp_norm(x_BLW))


class _Split(nn.Module):
    """`SplitBlock` that is given keys and values of its context."""

    def __init__(self, block: SplitBlock, mode: Mode) -> None:
        super().__init__()
        self.block = laid_out(block, mode)
        del self.block.context_norm, self.block.cross_attention.key, self.block.cross_attention.value

    def forward(self, x_BLW: Tensor, key_BKW: Tensor, value_BKW: Tensor) -> Tensor:
        block, cross = self.block, self.block.cross_attention
        x_BLW = x_BLW + block.self_attention(block.self_norm(x_BLW))
        read = cross.mix(cross.query(block.cross_norm(x_BLW)), key_BKW, value_BKW)
        x_BLW = x_BLW + cross.output(read)
        return x_BLW + block.mlp(block.mlp_norm(x_BLW))
