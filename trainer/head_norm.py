"""RMS norm of queries and keys: hundreds of thousands of rows of 64 to 256 channels, and the way back.

torch gives each row a block of threads, most of which have nothing to do: 4 times what the memory takes (an
H200's profile). Here a program has many rows. On the way back a row's length is worked out again, since the
row is read anyway, and the gain's gradient falls off with the inputs'.

Shapes: H heads, C channels of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.fast.devices import has_triton

_WIDEST = 1024  # channels: two rows of a program


def suits(x: Tensor) -> bool:
    """True where `normed` is the quicker one. What torch compiles, it joins with what stands around it."""
    return (x.is_cuda and x.dtype == torch.bfloat16 and x.shape[-1] <= _WIDEST
            and not torch.compiler.is_compiling() and has_triton(x.device))


def normed(x: Tensor, gain_C: Tensor) -> Tensor:
    """What `F.rms_norm` computes of heads (..., H, C) in bfloat16 with its own epsilon, without gaps.

    Args:
        x: Heads may be parts of wider rows: they are read where they lie.
        gain_C: In bfloat16, too.
    """
    return _Normed.apply(x, gain_C)


class _Normed(torch.autograd.Function):
    """Keeps its inputs alone. No operation of `torch.library`: calling one takes the host 3 times as long."""

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
