"""The vocabulary head with its argmax in one kernel, for few positions: the weight is read once, and logits
never leave the chip. For many the products are a library's, and a kernel looks for the best. Imports triton.

Shapes: N positions, W width, V rows of the head, T tiles of rows; P and C positions and rows of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LEAST_POSITIONS = 16  # of a product on tensor cores
# Rows, columns at a time, stages, warps: the best of those tried on an H200 (recipes/LOG.md).
_ROWS, _COLUMNS, _NUM_STAGES, _NUM_WARPS = 128, 128, 4, 8
_SEARCHED = 4096  # logits of a position at a time (guess)


@triton.jit
def _best_of_tiles(features, weight, bias, values, rows, num_positions, num_rows, width,
                   P: tl.constexpr, V: tl.constexpr, W: tl.constexpr):
    tile = tl.program_id(0)
    position = tl.arange(0, P)
    row = tile * V + tl.arange(0, V)
    is_position, is_row = position < num_positions, row < num_rows
    column = tl.arange(0, W)
    from_features = features + position[:, None] * width + column[None, :]
    from_weight = weight + row[:, None].to(tl.int64) * width + column[None, :]
    logits = tl.zeros((P, V), dtype=tl.float32)
    for first in range(0, width, W):
        is_column = (first + column < width)[None, :]
        x = tl.load(from_features + first, mask=is_position[:, None] & is_column, other=0.0)
        w = tl.load(from_weight + first, mask=is_row[:, None] & is_column, other=0.0)
        logits = tl.dot(x, w.T, logits)
    logits += tl.load(bias + row, mask=is_row, other=0.0)[None, :]
    # What is no number is never the largest: a row that is not there must not win against it.
    logits = tl.where(is_row[None, :] & (logits == logits), logits, float("-inf"))
    value, best = tl.max(logits, axis=1, return_indices=True, return_indices_tie_break_left=True)
    to = tile * num_positions + position
    tl.store(values + to, value, mask=is_position)
    tl.store(rows + to, tile * V + best, mask=is_position)


@triton.jit
def _best_of_all(values, rows, found, num_positions, num_tiles, T: tl.constexpr):
    position, tile = tl.program_id(0), tl.arange(0, T)
    is_tile = tile < num_tiles
    value = tl.load(values + tile * num_positions + position, mask=is_tile, other=float("-inf"))
    row = tl.load(rows + tile * num_positions + position, mask=is_tile, other=2**31 - 1)
    # Of equal ones the first.
    best = tl.min(tl.where(value == tl.max(value, axis=0), row, 2**31 - 1), axis=0)
    tl.store(found + position, best.to(tl.int64))


@triton.jit
def _take_better(products, bias, best, rows, first, num_columns, C: tl.constexpr):
    position, column = tl.program_id(0), tl.arange(0, C)
    value = tl.full((C,), float("-inf"), tl.float32)
    row = column
    for start in range(0, num_columns, C):
        is_row = start + column < num_columns
        logit = tl.load(products + position.to(tl.int64) * num_columns + start + column, mask=is_row,
                        other=float("-inf"))
        logit += tl.load(bias + start + column, mask=is_row, other=0.0)
        is_better = logit > value
        value = tl.where(is_better, logit, value)
        row = tl.where(is_better, start + column, row)
    top = tl.max(value, axis=0)
    is_better = top > tl.load(best + position)
    tl.store(best + position, top, mask=is_better)
    # Of equal ones the first.
    found = first + tl.min(tl.where(value == top, row, 2**31 - 1), axis=0).to(tl.int64)
    tl.store(rows + position, found, mask=is_better)


def take_better_by_kernel(products_PC: Tensor, bias_C: Tensor, first: int, best_P: Tensor,
                          row_P: Tensor) -> None:
    """See `trainer.fast.head.TakeBetter`: on a CUDA device, contiguous."""
    with torch.cuda.device(products_PC.device):
        _take_better[(len(products_PC),)](products_PC, bias_C, best_P, row_P, first, products_PC.shape[1],
                                          _SEARCHED, num_warps=_NUM_WARPS)


def argmax_rows_by_kernel(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor) -> Tensor:
    """See `trainer.fast.head.argmax_rows`: few positions, on a CUDA device, contiguous."""
    num_positions, width = features_NW.shape
    num_tiles = triton.cdiv(len(weight_VW), _ROWS)
    values_TN = torch.empty(num_tiles, num_positions, device=features_NW.device)
    rows_TN = torch.empty_like(values_TN, dtype=torch.int32)
    found_N = torch.empty(num_positions, dtype=torch.int64, device=features_NW.device)
    size = max(_LEAST_POSITIONS, triton.next_power_of_2(num_positions))
    with torch.cuda.device(features_NW.device):
        _best_of_tiles[(num_tiles,)](
            features_NW, weight_VW, bias_V, values_TN, rows_TN, num_positions, len(weight_VW), width,
            size, _ROWS, _COLUMNS, num_stages=_NUM_STAGES, num_warps=_NUM_WARPS)
        _best_of_all[(num_positions,)](values_TN, rows_TN, found_N, num_positions, num_tiles,
                                       triton.next_power_of_2(num_tiles))
    return found_N
