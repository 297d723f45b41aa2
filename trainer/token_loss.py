"""The vocabulary head, and its cross-entropy without a logit of every position and token at once.

Logits of 8 x 1,024 positions over 248,320 ids take 7.6 GiB in float32. Here they exist for some rows
at a time, and their gradients are formed at once, before the next rows.

Shapes: N rows, W width, V vocabulary, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.fast.devices import has_triton
from trainer.sizes import loss_chunk_rows

IGNORED = -100  # target of a row that does not count; what cross_entropy skips


class VocabularyHead(nn.Linear):
    """Features (..., W) -> logits (..., V); or, given targets, straight to their mean cross-entropy."""

    def forward(self, features: Tensor, targets: Tensor | None = None) -> Tensor:
        if targets is None:
            return super().forward(features)
        return linear_cross_entropy(features.flatten(0, -2), self.weight, self.bias, targets.flatten())


def linear_cross_entropy(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor,
                         chunk_rows: int | None = None) -> Tensor:
    """Mean cross-entropy, in nats, of a linear head over the rows that count: a float32 scalar.

    Exact, with exact gradients. Rows whose target is -100 do not count; 0 when none does. Backward
    works once, like any graph that is not retained.

    Args:
        features_NW, weight_VW, bias_V: Of one dtype.
        targets_N: Rows of the head.
        chunk_rows: Rows of logits at a time; as many as `trainer.sizes` gives room for, if not said.
    """
    inputs = (features_NW, weight_VW, bias_V)
    needs_gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _LinearCrossEntropy.apply(*inputs, targets_N, needs_gradients, chunk_rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        total, ctx.gradients = loss_and_gradients(*arguments)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the gradient of the weights may be the largest tensor of the step. `mul_` would round the
        # factor on a GPU too, in a kernel that runs at a quarter of the memory's speed (an H200's profile).
        torch._foreach_mul_(list(gradients), upstream.to(gradients[0].dtype))
        return (*gradients, None, None, None)


def loss_and_gradients(features_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor,
                       needs_gradients: bool, chunk_rows: int | None = None,
                       ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The loss of `linear_cross_entropy`, and its gradients by features, weight and bias if asked for."""
    kind = _KernelWork if has_triton(weight_VW.device) else _Work
    chunk_rows = chunk_rows or loss_chunk_rows(len(weight_VW), kind.logit_bytes(weight_VW.dtype))
    counted_N = targets_N != IGNORED
    share_N = counted_N / counted_N.sum().clamp(min=1)
    gradients = None
    if needs_gradients:
        gradients = _Gradients(features_NW, weight_VW, is_whole=len(features_NW) <= chunk_rows)
    work = kind(min(chunk_rows, len(features_NW)), weight_VW)
    total = torch.zeros((), device=features_NW.device)
    for begin in range(0, len(features_NW), chunk_rows):
        rows = slice(begin, begin + chunk_rows)
        target_C1 = torch.where(counted_N[rows], targets_N[rows], 0)[:, None]
        loss_C = work.losses(features_NW[rows], weight_VW, bias_V, target_C1)
        total += torch.where(counted_N[rows], loss_C * share_N[rows], 0.0).sum()
        if gradients is not None:
            gradients.add(rows, *work.gradients(loss_C, target_C1, share_N[rows]))
    del work  # before the gradients are rounded
    return total, None if gradients is None else gradients.finished()


class _Work:
    """Room for the logits of a chunk, as they come and in float32: all that a chunk needs of that size.

    On a GPU nothing below makes a copy of it (log_softmax would, of bfloat16): `trainer.memory` counts
    on that.
    """

    @staticmethod
    def logit_bytes(dtype: torch.dtype) -> int:
        """Of one logit, in both."""
        return dtype.itemsize + (4 if dtype != torch.float32 else 0)

    def __init__(self, num_rows: int, weight_VW: Tensor) -> None:
        self._logits_CV = weight_VW.new_empty(num_rows, len(weight_VW))
        self._exact_CV = self._logits_CV
        if weight_VW.dtype != torch.float32:
            self._exact_CV = torch.empty_like(self._logits_CV, dtype=torch.float32)

    def losses(self, features_CW: Tensor, weight_VW: Tensor, bias_V: Tensor, target_C1: Tensor) -> Tensor:
        """Cross-entropy of each row, float32. Leaves e to the power of its logits, less their largest."""
        logits_CV, exact_CV = self._logits_CV[:len(features_CW)], self._exact_CV[:len(features_CW)]
        torch.addmm(bias_V, features_CW, weight_VW.T, out=logits_CV)
        largest_C1 = logits_CV.amax(1, keepdim=True).float()  # else differences would be rounded
        torch.sub(logits_CV, largest_C1, out=exact_CV)
        of_target_C = exact_CV.gather(1, target_C1).squeeze(1)
        self._sum_C1 = exact_CV.exp_().sum(1, keepdim=True)
        return self._sum_C1.log().squeeze(1) - of_target_C

    def gradients(self, loss_C: Tensor, target_C1: Tensor, share_C: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of a share of each loss by the logits, in their place, and by the bias (V,), float32."""
        logits_CV, exact_CV = self._logits_CV[:len(loss_C)], self._exact_CV[:len(loss_C)]
        torch.mul(exact_CV, share_C[:, None] / self._sum_C1, out=logits_CV)
        # Of the target it is the probability less 1, rounded once.
        of_target_C = (-loss_C).expm1() * share_C
        logits_CV.scatter_(1, target_C1, of_target_C[:, None].to(logits_CV.dtype))
        return logits_CV, logits_CV.sum(0, dtype=torch.float32)


class _KernelWork:
    """As `_Work`, by kernels: logits are read twice, written once, and never held in float32."""

    @staticmethod
    def logit_bytes(dtype: torch.dtype) -> int:
        """Of one logit."""
        return dtype.itemsize

    def __init__(self, num_rows: int, weight_VW: Tensor) -> None:
        from trainer import token_loss_kernels

        self._kernels = token_loss_kernels
        self._logits_CV = weight_VW.new_empty(num_rows, len(weight_VW))

    def losses(self, features_CW: Tensor, weight_VW: Tensor, bias_V: Tensor, target_C1: Tensor) -> Tensor:
        """Cross-entropy of each row, float32. Leaves its logits."""
        logits_CV = self._logits_CV[:len(features_CW)]
        torch.addmm(bias_V, features_CW, weight_VW.T, out=logits_CV)
        self._largest_C1, self._sum_C1 = self._kernels.summed(logits_CV)
        of_target_C1 = logits_CV.gather(1, target_C1) - self._largest_C1
        return (self._sum_C1.log() - of_target_C1).squeeze(1)

    def gradients(self, loss_C: Tensor, target_C1: Tensor, share_C: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of a share of each loss by the logits, in their place, and by the bias (V,), float32."""
        logits_CV, share_C1 = self._logits_CV[:len(loss_C)], share_C[:, None]
        # Of the target it is the probability less 1, without cancellation.
        of_target_C1 = (-loss_C).expm1()[:, None] * share_C1
        return logits_CV, self._kernels.differentiated(
            logits_CV, self._largest_C1, share_C1 / self._sum_C1, target_C1, of_target_C1)


class _Gradients:
    """Gradients of features, weight and bias, collected chunk by chunk; the last two in float32.

    Where all rows are one chunk, `is_whole`, the weight's is rounded once as it is, and so costs no
    float32.
    """

    def __init__(self, features_NW: Tensor, weight_VW: Tensor, is_whole: bool) -> None:
        self._features_NW, self._weight_VW = features_NW, weight_VW
        self._for_features = torch.empty_like(features_NW)
        self._for_weight = torch.zeros_like(weight_VW, dtype=weight_VW.dtype if is_whole else torch.float32)
        self._for_bias = weight_VW.new_zeros(len(weight_VW), dtype=torch.float32)

    def add(self, rows: slice, for_logits_CV: Tensor, for_bias_V: Tensor) -> None:
        """Take in the gradients of some rows: by their logits, and by the bias."""
        self._for_features[rows] = for_logits_CV @ self._weight_VW
        self._for_bias += for_bias_V
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
