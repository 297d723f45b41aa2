"""Norms of the trained parts on a GPU, each one kernel, and one for its way back.

torch gives each head of 64 channels a block of threads, most of which have nothing to do, and a modulated row
goes through memory three times; back, gradients of gains and modulation are more kernels. What that takes is
in recipes/LOG.md. Here a program has many rows, and the gradients for what is multiplied and added fall off
with those for the rows, whose statistics are worked out again, since they are read anyway.

Shapes: B samples, K positions, W channels of a row; H heads, C channels of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.fast.devices import has_triton

_WIDEST = 8192  # channels that a program holds


def suits(x: Tensor, gain: Tensor) -> bool:
    """True where these norms are the quicker ones. What torch compiles it joins with what is around it."""
    return (x.is_cuda and x.dtype == gain.dtype == torch.bfloat16 and x.shape[-1] <= _WIDEST and x.numel() > 0
            and not torch.compiler.is_compiling() and has_triton(x.device))


def rms_normed(x: Tensor, gain_C: Tensor) -> Tensor:
    """What `F.rms_norm` computes of heads (..., H, C) with its own epsilon, without gaps.

    Args:
        x: Heads may be parts of wider rows: they are read where they lie.
        gain_C: Of its dtype.
    """
    return _RmsNormed.apply(x, gain_C)


def layer_normed(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """What `F.layer_norm` computes of rows with its own epsilon, times factor, plus offset, rounded once.

    Args:
        x: (..., W).
        factor: (W,), or (B, 1, W) for rows (B, K, W).
        offset: As many.
    """
    return _LayerNormed.apply(x, factor, offset)


# No operations of `torch.library`: calling one and its way back takes the host twice as long.


class _RmsNormed(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain_C: Tensor) -> Tensor:
        from trainer.head_norm_kernels import normed_heads

        ctx.save_for_backward(x, gain_C)
        return normed_heads(x, gain_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_normed: Tensor) -> tuple[Tensor, Tensor]:
        from trainer.head_norm_kernels import gradients

        return gradients(for_normed, *ctx.saved_tensors)


class _LayerNormed(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
        from trainer.layer_norm_kernels import normed_rows

        ctx.save_for_backward(x, factor)
        return normed_rows(x, factor, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from trainer.layer_norm_kernels import gradients

        return gradients(for_normed, *ctx.saved_tensors)
