"""Attention and transformer blocks that the trained parts are built of.

Shapes: B batch, Q positions that read, C positions that are read, W width, H heads.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer import norms, wide_heads
from trainer.torch_compile import compiled

_ROTARY_BASE = 10_000.0  # the usual one; a guess for sequences of latents


class AttentionShape(NamedTuple):
    """What all attention of one part has in common."""

    width: int
    num_heads: int
    qk_norm: bool = True
    dropout: float = 0.0


class _HeadNorm(nn.RMSNorm):
    """In the dtype of its input: under autocast torch would warn of two, and take a slower way."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.weight.to(x.dtype)
        if norms.suits(x, gain):
            return norms.rms_normed(x, gain)
        return F.rms_norm(x, self.normalized_shape, gain, self.eps)


class RowNorm(nn.LayerNorm):
    """A LayerNorm, on a GPU by kernels of our own."""

    def forward(self, x: Tensor) -> Tensor:
        if norms.suits(x, self.weight):
            return norms.layer_normed(x, self.weight, self.bias)
        return super().forward(x)


class Rotation(NamedTuple):
    """Cosine and sine by which queries and keys turn with their position: each (K, W / H), float32."""

    cos: Tensor
    sin: Tensor


class MultiHead(nn.Module):
    """Queries that read keys and values in several heads; queries and keys RMS-normalised if asked for.

    Attributes:
        mixer: What computes `mix`: torch, unless the fast path has put a kernel there.
    """

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape = shape
        self.mixer: Mixer = mix_by_torch
        head_width = shape.width // shape.num_heads
        self.query_norm = _HeadNorm(head_width) if shape.qk_norm else nn.Identity()
        self.key_norm = _HeadNorm(head_width) if shape.qk_norm else nn.Identity()

    def mix(self, query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor, mask: Tensor | None = None,
            rotation: Rotation | None = None) -> Tensor:
        """What each query reads, (B, Q, W). `mask` is True where reading is allowed."""
        return self.mixer(self, query_BQW, key_BCW, value_BCW, mask, rotation)


# As `MultiHead.mix`, of the heads given first.
Mixer = Callable[[MultiHead, Tensor, Tensor, Tensor, Tensor | None, Rotation | None], Tensor]


def mix_by_torch(heads: MultiHead, query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor,
                 mask: Tensor | None, rotation: Rotation | None) -> Tensor:
    """See `MultiHead.mix`."""
    query, key, value = (part.unflatten(-1, (heads.shape.num_heads, -1))
                         for part in (query_BQW, key_BCW, value_BCW))
    # Before heads change places with positions: a norm copies rows that do not follow each other, and what is
    # read would have to be copied back.
    query, key = heads.query_norm(query), heads.key_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if rotation is not None:
        query, key = _rotated(query, rotation), _rotated(key, rotation)
    dropout = heads.shape.dropout if heads.training else 0.0
    if mask is None and not dropout and wide_heads.suits(query, key):
        mixed = wide_heads.attended(query, key, value)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return mixed.transpose(1, 2).flatten(-2)


class SelfAttention(MultiHead):
    """Attention of a sequence to itself in both directions."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.output = nn.Linear(shape.width, shape.width)

    def forward(self, x_BQW: Tensor, rotation: Rotation | None = None) -> Tensor:
        return self.output(self.mix(*self.query_key_value(x_BQW).chunk(3, dim=-1), rotation=rotation))


class CrossAttention(MultiHead):
    """Attention of a sequence to another of the same width."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self.query, self.key, self.value, self.output = (
            nn.Linear(shape.width, shape.width) for _ in range(4))

    def forward(self, x_BQW: Tensor, context_BCW: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.output(self.mix(self.query(x_BQW), self.key(context_BCW), self.value(context_BCW), mask))


class GatedMlp(nn.Module):
    """A SiLU gate over a linear map with a factor of 4, and a map back: 12 W^2 weights."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.down(F.silu(self.gate(x)) * self.up(x)), self.dropout, self.training)


def plain_mlp(width: int, dropout: float = 0.0) -> nn.Sequential:
    """Two linear maps with a factor of 4 and a GELU between them: 8 W^2 weights."""
    last = [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), *last)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, shape: AttentionShape, gated: bool = False) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = RowNorm(shape.width), RowNorm(shape.width)
        self.attention = SelfAttention(shape)
        self.mlp = (GatedMlp if gated else plain_mlp)(shape.width, shape.dropout)

    def forward(self, x_BQW: Tensor, rotation: Rotation | None = None) -> Tensor:
        x_BQW = x_BQW + self.attention(self.attention_norm(x_BQW), rotation)
        return x_BQW + self.mlp(self.mlp_norm(x_BQW))


class BlockStack(nn.ModuleList):
    """Blocks one after the other: the output of one is the input of the next, all read the same context.

    Args:
        blocks: From first to last.
        recompute: Where there is a way back, in evaluation mode too, keep only each block's input and
            compute the rest again on that way: gradients are the same, memory shrinks to one block's,
            arithmetic grows by a third.

    Attributes:
        compiles: In training, and where there is a way back, a block is what torch compiles of it. Nowhere
            else: there batches come in any size, and each would be compiled for.
    """

    def __init__(self, blocks: Iterable[nn.Module], recompute: bool) -> None:
        super().__init__(blocks)
        self.recompute, self.compiles = recompute, False

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        has_way_back = torch.is_grad_enabled()
        compiles = self.compiles and self.training and has_way_back
        if compiles:  # learned queries are one for all samples, and would be a case of their own
            x = x.contiguous()
        for block in self:
            through = functools.partial(compiled(type(block).forward), block) if compiles else block
            if self.recompute and has_way_back:
                x = checkpoint(through, x, *context, use_reentrant=False)
            else:
                x = through(x, *context)
        return x


def sinusoid(length: int, width: int, stretch: float = 1.0, amplitude: float = 1.0) -> Tensor:
    """Sine and cosine of positions 0, stretch, 2 stretch, ...: shape (length, width), width even.

    The longest wave is as long as the sequence. Waves of thousands of positions, as for embeddings of
    any length, would make neighbours nearly equal and blur the first attention over them.
    """
    longest = max(length * stretch / (2 * math.pi), 1.0)
    # Said outright: once transformers has loaded a model, torch.linspace forgets the default device.
    device = torch.get_default_device()
    if device.type == "meta":  # arithmetic there would load torch's compiler: a second for no number at all
        return torch.empty(length, width)
    frequencies = longest ** -torch.linspace(0, 1, width // 2, device=device)
    angles = torch.arange(length)[:, None] * stretch * frequencies
    return amplitude * torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotation_of(length: int, head_width: int, device: torch.device) -> Rotation:
    """Rotary positions 0 to length - 1 for heads of an even width."""
    frequencies = _ROTARY_BASE ** -(torch.arange(0, head_width, 2, device=device) / head_width)
    angles = torch.arange(length, device=device)[:, None] * frequencies.repeat(2)
    return Rotation(angles.cos(), angles.sin())


def _rotated(x_BHKC: Tensor, rotation: Rotation) -> Tensor:
    """Pairs of channels, half a head apart, turned by their position's angle; dtype kept."""
    first, second = x_BHKC.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x_BHKC.float() * rotation.cos + turned * rotation.sin).to(x_BHKC.dtype)
