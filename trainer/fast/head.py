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


# Features (P, W), weight (C, W), bias (C,) -> the largest logit (P,) and which of the C rows has it (P,).
Largest = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def largest(features_PW: Tensor, weight_CW: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
    """See `Largest`. Where it is compiled, bias and search are one pass over the products."""
    value_P, row_P = _logits(features_PW, weight_CW, bias_C).max(dim=1)
    return value_P, row_P


def argmax_rows(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, num_rows: int | None,
                largest: Largest = largest) -> Tensor:
    """Most likely rows (N,), int64. Of equal ones it is the first, as `argmax` has it.

    Args:
        features_NW: What the head reads, in the dtype of its weight.
        weight_VW: Of the head.
        bias_V: Of the head; it may be more exact than the weight.
        num_rows: Only the first so many rows are looked at; None: all.
        largest: What looks at a block of them.
    """
    weight_VW, bias_V = weight_VW[:num_rows], bias_V[:num_rows]
    is_small = len(features_NW) <= _MOST_FOR_KERNEL and weight_VW.dtype == torch.bfloat16
    if is_small and has_triton(weight_VW.device):
        from trainer.fast.head_kernel import argmax_rows_by_kernel

        return argmax_rows_by_kernel(features_NW.contiguous(), weight_VW, bias_V)
    parts = features_NW.split(_POSITIONS)
    return torch.cat([_best(part_PW, weight_VW, bias_V, largest) for part_PW in parts])


def _best(features_PW: Tensor, weight_VW: Tensor, bias_V: Tensor, largest: Largest) -> Tensor:
    num = max(1, _LOGITS // len(features_PW))
    best_P, row_P = largest(features_PW, weight_VW[:num], bias_V[:num])
    for first in range(num, len(weight_VW), num):
        rows = slice(first, first + num)
        value_P, own_P = largest(features_PW, weight_VW[rows], bias_V[rows])
        row_P = torch.where(value_P > best_P, own_P + first, row_P)
        best_P = torch.maximum(best_P, value_P)
    return row_P


def _logits(features_PW: Tensor, weight_CW: Tensor, bias_C: Tensor) -> Tensor:
    """Float32 (P, C): bfloat16 would make equals of what is not, and the first would win."""
    if weight_CW.dtype == torch.float32:
        return F.linear(features_PW, weight_CW, bias_C)
    if weight_CW.is_cuda:
        return torch.mm(features_PW, weight_CW.T, out_dtype=torch.float32).add_(bias_C)
    return F.linear(features_PW.float(), weight_CW.float(), bias_C.float())
