"""What stands between the products of the vocabulary loss, on a GPU. Imports triton.

Logits are read twice and written once, in their own precision; arithmetic is in float32. Columns and rows are
shared out among programs by the logits' sizes alone, and what programs find is added in a fixed order: the
same logits give the same bits.

Shapes: C rows, V vocabulary, S sections of a row, G groups of rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# All guesses: enough bytes on their way in each program, enough programs for every GPU.
_SECTION = 8192  # columns of a program that sums
_COLUMNS, _ROWS, _GROUP = 1024, 2, 64  # of one that writes gradients: columns, rows at a time, rows in all


@triton.jit
def _summed(logits, largest, sums, vocabulary, num_sections, SECTION: tl.constexpr):
    program = tl.program_id(0)
    row = (program // num_sections).to(tl.int64)
    column = program % num_sections * SECTION + tl.arange(0, SECTION)
    x = tl.load(logits + row * vocabulary + column, mask=column < vocabulary, other=float("-inf"))
    x = x.to(tl.float32)
    found = tl.max(x, axis=0)
    tl.store(largest + program, found)
    found = tl.where(found == float("-inf"), 0.0, found)  # else a section of nothing else were no number
    tl.store(sums + program, tl.sum(tl.exp(x - found), axis=0))


def summed(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row, and the sum of e to the power of what all are below it: (C, 1), float32.

    A row with NaN, with infinity, or of nothing but minus infinity has no sum that is a number.
    """
    num_rows, vocabulary = logits_CV.shape
    num_sections = triton.cdiv(vocabulary, _SECTION)
    largest_CS = logits_CV.new_empty(num_rows, num_sections, dtype=torch.float32)
    sums_CS = torch.empty_like(largest_CS)
    with torch.cuda.device(logits_CV.device):
        _summed[(largest_CS.numel(),)](logits_CV, largest_CS, sums_CS, vocabulary, num_sections, _SECTION,
                                       num_warps=8)
    largest_C1 = largest_CS.amax(1, keepdim=True)
    return largest_C1, (sums_CS * (largest_CS - largest_C1).exp_()).sum(1, keepdim=True)


@triton.jit
def _differentiated(logits, largest, factors, targets, of_targets, sums, num_rows, vocabulary,
                    COLUMNS: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr):
    column, group = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    is_column = column < vocabulary
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, GROUP, ROWS):
        row = group * GROUP + first + tl.arange(0, ROWS)
        is_row = row < num_rows
        own = logits + row.to(tl.int64)[:, None] * vocabulary + column[None, :]
        is_there = is_row[:, None] & is_column[None, :]
        x = tl.load(own, mask=is_there, other=0.0).to(tl.float32)
        below = tl.load(largest + row, mask=is_row, other=0.0)[:, None]
        gradient = tl.exp(x - below) * tl.load(factors + row, mask=is_row, other=0.0)[:, None]
        target = tl.load(targets + row, mask=is_row, other=-1)[:, None]
        of_target = tl.load(of_targets + row, mask=is_row, other=0.0)[:, None]
        gradient = tl.where(column[None, :] == target, of_target, gradient)
        tl.store(own, gradient.to(logits.dtype.element_ty), mask=is_there)
        total += tl.sum(gradient, axis=0)
    tl.store(sums + group * vocabulary + column, total, mask=is_column)


def differentiated(logits_CV: Tensor, largest_C1: Tensor, factor_C1: Tensor, target_C1: Tensor,
                   of_target_C1: Tensor) -> Tensor:
    """Put the loss's gradient by the logits in their place; its sum over rows before rounding: (V,), float32.

    Args:
        logits_CV: Rows without gaps; rounded once.
        largest_C1: See `summed`.
        factor_C1: Of e to the power of what a logit is below the largest.
        target_C1: The column of each row that gets `of_target_C1` instead.
        of_target_C1: float32.
    """
    num_rows, vocabulary = logits_CV.shape
    grid = triton.cdiv(vocabulary, _COLUMNS), triton.cdiv(num_rows, _GROUP)
    sums_GV = logits_CV.new_empty(grid[1], vocabulary, dtype=torch.float32)
    with torch.cuda.device(logits_CV.device):
        _differentiated[grid](logits_CV, largest_C1, factor_C1, target_C1, of_target_C1, sums_GV, num_rows,
                              vocabulary, _COLUMNS, _ROWS, _GROUP, num_warps=4)
    return sums_GV.sum(0)
