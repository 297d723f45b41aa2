"""Attention of heads that are wider than the sequence is long, by plain products: for the way back.

Flash attention's kernels end at a width of 256. What torch has beyond takes 17 times as long for gradients as
for reading (64 tokens, width 640, an H200's profile), where products take twice as long. The table of scores
is smaller than what is read.

Shapes: N samples and heads, Q positions that read, C positions that are read, H channels of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_FLASH_WIDTH = 256  # the widest head of flash attention's kernels, and of cuDNN's


def suits(query: Tensor, key: Tensor) -> bool:
    """True where `attended` is the quicker one, for (..., Q, H) and (..., C, H)."""
    width = query.shape[-1]
    return width > _FLASH_WIDTH and key.shape[-2] <= width and torch.is_grad_enabled() and query.requires_grad


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What `scaled_dot_product_attention` computes; all of shape (..., positions, H), nothing is masked."""
    rows = _ByProducts.apply(*(part.flatten(0, -3) for part in (query, key, value)))
    return rows.view(query.shape)


class _ByProducts(torch.autograd.Function):
    """Scores in float32, as flash attention's; their weights are rounded, and kept."""

    @staticmethod
    def forward(ctx: Any, query_NQH: Tensor, key_NCH: Tensor, value_NCH: Tensor) -> Tensor:
        scores_NQC = _exact(query_NQH, key_NCH.mT) * query_NQH.shape[-1] ** -0.5
        weights_NQC = scores_NQC.softmax(-1).to(value_NCH.dtype)
        ctx.save_for_backward(query_NQH, key_NCH, value_NCH, weights_NQC)
        return weights_NQC @ value_NCH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_read_NQH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_NQH, key_NCH, value_NCH, weights_NQC = ctx.saved_tensors
        for_weights_NQC = _exact(for_read_NQH, value_NCH.mT)
        mean_NQ1 = (weights_NQC * for_weights_NQC).sum(-1, keepdim=True)
        for_scores_NQC = weights_NQC * (for_weights_NQC - mean_NQ1) * query_NQH.shape[-1] ** -0.5
        for_scores_NQC = for_scores_NQC.to(query_NQH.dtype)
        return for_scores_NQC @ key_NCH, for_scores_NQC.mT @ query_NQH, weights_NQC.mT @ for_read_NQH


def _exact(left: Tensor, right: Tensor) -> Tensor:
    """Their product in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
