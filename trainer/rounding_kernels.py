"""`rounding.py` on a GPU: every number is read once and written once. Same bits as torch's operations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # numbers of one program
# `count` is any number: a kernel that was made for a first call with one would be of no use to any other, and
# the first rounding of a run would wait for new ones.


@triton.jit(do_not_specialize=["count"])
def _bfloat16_kernel(live, rounded, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    value = tl.load(live + at, here).to(tl.bfloat16)
    tl.store(rounded + at, value, here)
    tl.store(live + at, value.to(tl.float32), here)


@triton.jit(do_not_specialize=["count"])
def _24_bits_kernel(live, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    tl.store(live + at, (tl.load(live + at, here) + 0x80) & -0x100, here)


@triton.jit(do_not_specialize=["count"])
def _distance_kernel(average, weights, distance, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    weight = tl.load(weights + at, here)
    value = (tl.load(average + at, here) - weight).to(tl.bfloat16)
    tl.store(distance + at, value, here)
    tl.store(average + at, weight + value.to(tl.float32), here)


def to_bfloat16(live: Tensor) -> Tensor:
    """See `Rounding`."""
    rounded = torch.empty_like(live, dtype=torch.bfloat16)
    _bfloat16_kernel[_programs(live)](live, rounded, live.numel(), BLOCK=_BLOCK, num_warps=8)
    return rounded


def to_24_bits(live: Tensor) -> Tensor:
    """See `Rounding`."""
    _24_bits_kernel[_programs(live)](live.view(torch.int32), live.numel(), BLOCK=_BLOCK, num_warps=8)
    return live


def to_distance(average: Tensor, weights: Tensor) -> Tensor:
    """See `Rounding`."""
    distance = torch.empty_like(average, dtype=torch.bfloat16)
    _distance_kernel[_programs(average)](average, weights, distance, average.numel(), BLOCK=_BLOCK,
                                         num_warps=8)
    return distance


def _programs(values: Tensor) -> tuple[int]:
    return (triton.cdiv(values.numel(), _BLOCK),)
