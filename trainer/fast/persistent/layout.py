"""How the persistent kernel's weights lie in memory.

Weights of a CTA lie in the order in which it reads them: swizzled blocks of 128 bytes a row, which are 64
columns of K, or 128 where a weight is a byte.
Shapes: C 128 CTAs, N rows of a CTA, K columns that it sums over, W width.
"""

import functools

import torch
from torch import Tensor

from trainer.fast.persistent.shape import NUM_CTAS, NUM_SUMMED_PARTS, NUM_TILES, Shape, padded

_NUM_UNITS = 8  # of 16 bytes in a row of a block


def swizzled(blocks: Tensor) -> Tensor:
    """Blocks (..., N, 64 or 128) as wgmma reads them: 16-byte unit u of row r lies at u XOR (r mod 8)."""
    units = blocks.unflatten(-1, (_NUM_UNITS, -1))
    order = _swizzle(blocks.shape[-2], blocks.device)
    return torch.take_along_dim(units, order.expand(units.shape), -2).flatten(-2)


@functools.cache
def _swizzle(num_rows: int, device: torch.device) -> Tensor:
    """Kept, so that a CUDA graph need not make it."""
    rows = torch.arange(num_rows, device=device)
    return (torch.arange(_NUM_UNITS, device=device) ^ (rows % 8)[:, None])[..., None]


def tiled(weights_CNK: Tensor) -> Tensor:
    """The rows of each CTA as swizzled blocks: (C, blocks, N, 64 or 128)."""
    return swizzled(blocks_of(weights_CNK).transpose(1, 2)).contiguous()


def blocks_of(rows: Tensor) -> Tensor:
    """Rows (..., K) cut into blocks (..., K / 64, 64), or of 128 where a number is a byte."""
    return rows.unflatten(-1, (-1, 128 if rows.itemsize == 1 else 64))


def pair_tiles(weights: Tensor) -> Tensor:
    """A map whose K is split over a pair of CTAs: rows in the order of the CTAs that finish them, (C x n, W).

    Each CTA of a pair has all columns of both for its half of K: first those of warpgroup 0, of both CTAs,
    then those of warpgroup 1. Where the columns of a CTA are no multiple of 16, rows of zeros follow.
    """
    width = weights.shape[-1]
    rows = weights.view(NUM_CTAS // 2, 2, -1, width)
    count = rows.shape[2]
    rows = torch.nn.functional.pad(rows, (0, 0, 0, padded(count) - count))
    rows = rows.unflatten(2, (2, -1)).transpose(1, 2).flatten(1, 3)  # pair, warpgroup, CTA, column
    halves = rows.unflatten(-1, (2, -1)).transpose(1, 2)
    return tiled(halves.reshape(NUM_CTAS, -1, width // 2))


def tile_tiles(weights: Tensor) -> Tensor:
    """A map (W, K) into the residual stream: CTA 16 a + 2 s + b has rows of tile 2 a + b and part s of K."""
    rows = weights.view(NUM_TILES // 2, 2, -1, NUM_SUMMED_PARTS, weights.shape[1] // NUM_SUMMED_PARTS)
    return tiled(rows.permute(0, 3, 1, 2, 4).flatten(0, 2))


def head_rows(shape: Shape, num_parts: int) -> Tensor:
    """Rows of a map to parts as wide as the model (queries, keys, values), in the order of the CTAs that
    finish them, (C x n,).

    The CTAs of a head share its channels; each has the same of all parts.
    """
    ctas, count = torch.arange(NUM_CTAS), shape.head_columns
    first = ctas // shape.ctas_per_head * shape.head_width + ctas % shape.ctas_per_head * count
    columns = first[:, None] + torch.arange(count)
    return torch.cat([columns + part * shape.width for part in range(num_parts)], dim=1).flatten()
