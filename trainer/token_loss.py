"""The vocabulary head, and its cross-entropy without a logit of every position and token at once.

Logits of 8 x 1,024 positions over 248,320 ids take 7.6 GiB in float32. Here they exist for some rows
at a time, and their gradients are formed at once, before the next rows.

Shapes: N rows, W width, V vocabulary, C rows of a chunk.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORED = -100  # target of a row that does not count; what cross_entropy skips
# Logits at a time: 256 MiB in float32 (guess: enough to keep a GPU busy).
_CHUNK_ELEMENTS = 2**26
_ROW_MULTIPLE = 64


class VocabularyHead(nn.Linear):
    """Features (..., W) -> logits (..., V); or, given targets, straight to their mean cross-entropy."""

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return super().forward(features)
        return linear_cross_entropy(features.flatten(0, -2), self.weight, self.bias, targets.flatten())


def linear_cross_entropy(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor,
                         chunk_elements: int = _CHUNK_ELEMENTS) -> Tensor:
    """Mean cross-entropy, in nats, of a linear head over the rows that count: a float32 scalar.

    Exact, with exact gradients. Rows whose target is -100 do not count; 0 when none does. Backward
    works once, like any graph that is not retained.
    """
    inputs = (features_NW, weight_VW, bias_V)
    needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    chunk_rows = max(1, chunk_elements // len(weight_VW))
    # Matrix products over an odd number of rows are slow on a GPU.
    chunk_rows -= chunk_rows % _ROW_MULTIPLE if chunk_rows > _ROW_MULTIPLE else 0
    return _LinearCrossEntropy.apply(*inputs, targets_N, chunk_rows, needs_gradients)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor,
                chunk_rows: int, needs_gradients: bool) -> Tensor:
        counted_N = targets_N != IGNORED
        share_N = counted_N / counted_N.sum().clamp(min=1)
        gradients = None
        if needs_gradients:
            gradients = _Gradients(features_NW, weight_VW, is_whole=len(features_NW) <= chunk_rows)
        total = torch.zeros((), device=features_NW.device)
        for begin in range(0, len(features_NW), chunk_rows):
            rows = slice(begin, begin + chunk_rows)
            target_C1 = torch.where(counted_N[rows], targets_N[rows], 0)[:, None]
            logits_CV = F.linear(features_NW[rows], weight_VW, bias_V)
            loss_C = _cross_entropy_(logits_CV, target_C1, None if gradients is None else share_N[rows, None])
            total += torch.where(counted_N[rows], loss_C * share_N[rows], 0.0).sum()
            if gradients is not None:
                gradients.add(rows, logits_CV)
            del logits_CV  # before the next ones exist
        if gradients is not None:
            ctx.gradients = gradients.finished()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the gradient of the weights may be the largest tensor of the step.
        return (*(gradient.mul_(upstream) for gradient in gradients), None, None, None)


def _cross_entropy_(logits_CV: Tensor, target_C1: Tensor, share_C1: Tensor | None) -> Tensor:
    """Loss of each row, float32; with shares, their logits become the gradient of its share of them."""
    log_p_CV = F.log_softmax(logits_CV, dim=1, dtype=torch.float32)
    loss_C = -log_p_CV.gather(1, target_C1).squeeze(1)
    if share_C1 is not None:
        p_CV = log_p_CV.exp_()
        p_CV.scatter_add_(1, target_C1, torch.full_like(target_C1, -1, dtype=p_CV.dtype))
        torch.mul(p_CV, share_C1, out=logits_CV)
    return loss_C


class _Gradients:
    """Gradients of features, weight and bias, collected chunk by chunk; the last two in float32.

    Where all rows are one chunk, `is_whole`, the weight's is rounded once as it is, and so costs no
    float32.
    """

    def __init__(self, features_NW: Tensor, weight_VW: Tensor, is_whole: bool) -> None:
        self._features_NW, self._weight_VW = features_NW, weight_VW
        self._for_features = torch.empty_like(features_NW)
        self._for_weight = torch.zeros_like(weight_VW, dtype=weight_VW.dtype if is_whole else torch.float32)
        self._for_bias = torch.zeros_like(weight_VW[:, 0], dtype=torch.float32)

    def add(self, rows: slice, for_logits_CV: Tensor) -> None:
        """Take in the gradient of some rows' logits."""
        self._for_features[rows] = for_logits_CV @ self._weight_VW
        self._for_bias += for_logits_CV.sum(0, dtype=torch.float32)
        _add_product(self._for_weight, for_logits_CV.T, self._features_NW[rows])

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the dtypes that autograd expects."""
        dtype = self._weight_VW.dtype
        return self._for_features, self._for_weight.to(dtype), self._for_bias.to(dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, rounded no earlier than to total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.float(), right.float())
