"""The most likely row of a vocabulary head for each of many positions, without their logits in memory.

Logits of 64 x 64 positions over 248,320 ids take 4 GB in float32. Here those of some positions and some rows
exist at a time.

Shapes: N positions, W width, V rows of the head; P and C positions and rows of a block.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.fast.devices import has_triton

# A block of 32 MiB in float32 is read again from a GPU's second-level cache (guess), and few positions take
# many rows at a time: at batch 1 the whole head is two blocks.
_LOGITS = 2**23
_POSITIONS = 512
_MOST_FOR_KERNEL = 64  # which takes all positions at once; tiles of more do not fit into shared memory

# Products (P, C) and bias (C,) of rows from the given one on -> the best so far, value (P,) and row (P,), are
# replaced where one of these rows is better. What is no number is never the best.
TakeBetter = Callable[[Tensor, Tensor, int, Tensor, Tensor], None]


def argmax_rows(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, num_rows: int | None) -> Tensor:
    """Most likely rows (N,), int64. Of equal ones it is the first, as `argmax` has it.

    Args:
        features_NW: What the head reads, in the dtype of its weight.
        weight_VW: Of the head.
        bias_V: Of the head; it may be more exact than the weight.
        num_rows: Only the first so many rows are looked at; None: all.
    """
    weight_VW, bias_V = weight_VW[:num_rows], bias_V[:num_rows]
    take_better: TakeBetter = take_better_by_torch
    # Not in float32: that is the reference, which stays torch's.
    if weight_VW.dtype == torch.bfloat16 and has_triton(weight_VW.device):
        from trainer.fast import head_kernel

        if len(features_NW) <= _MOST_FOR_KERNEL:
            return head_kernel.argmax_rows_by_kernel(features_NW.contiguous(), weight_VW, bias_V)
        take_better = head_kernel.take_better_by_kernel
    return torch.cat([_best(part_PW, weight_VW, bias_V, take_better)
                      for part_PW in features_NW.split(_POSITIONS)])


def _best(features_PW: Tensor, weight_VW: Tensor, bias_V: Tensor, take_better: TakeBetter) -> Tensor:
    best_P = features_PW.new_full((len(features_PW),), float("-inf"), dtype=torch.float32)
    row_P = torch.zeros_like(best_P, dtype=torch.int64)
    num = max(1, _LOGITS // len(features_PW))
    for first in range(0, len(weight_VW), num):
        rows = slice(first, first + num)
        take_better(_products(features_PW, weight_VW[rows]), bias_V[rows], first, best_P, row_P)
    return row_P


def take_better_by_torch(products_PC: Tensor, bias_C: Tensor, first: int, best_P: Tensor,
                         row_P: Tensor) -> None:
    """See `TakeBetter`."""
    value_P, own_P = products_PC.add_(bias_C).nan_to_num_(-torch.inf, torch.inf, -torch.inf).max(dim=1)
    row_P.copy_(torch.where(value_P > best_P, own_P + first, row_P))
    best_P.copy_(torch.maximum(best_P, value_P))


def _products(features_PW: Tensor, weight_CW: Tensor) -> Tensor:
    """Float32 (P, C): bfloat16 would make equals of what is not, and the first would win."""
    if weight_CW.is_cuda and weight_CW.dtype != torch.float32:
        return torch.mm(features_PW, weight_CW.T, out_dtype=torch.float32)
    return F.linear(features_PW.float(), weight_CW.float())
