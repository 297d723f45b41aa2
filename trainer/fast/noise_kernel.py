"""The numbers of `trainer.fast.noise` by one kernel, not a hundred operations of torch. Imports triton."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256  # groups of four numbers
_ANGLE = tl.constexpr(2 * math.pi * 2.0**-32)


@triton.jit
def _box_muller(first, second):
    radius = tl.sqrt(-2.0 * tl.log(first.to(tl.float32) * 2.0**-32 + 2.0**-33))
    angle = second.to(tl.float32) * _ANGLE
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _normals(keys, out, draw, num, BLOCK: tl.constexpr):
    sample = tl.program_id(1)
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + 2 * sample) | (tl.load(keys + 2 * sample + 1) << 32)
    zero = tl.zeros_like(group)
    a, b, c, d = tl.philox(key, group, zero, zero + draw, zero)
    first, second = _box_muller(a, b)
    third, fourth = _box_muller(c, d)
    to = out + sample.to(tl.int64) * num + 4 * group
    tl.store(to, first, mask=4 * group < num)
    tl.store(to + 1, second, mask=4 * group + 1 < num)
    tl.store(to + 2, third, mask=4 * group + 2 < num)
    tl.store(to + 3, fourth, mask=4 * group + 3 < num)


def normals_by_kernel(keys_B2: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """See `trainer.fast.noise.normals`, for keys on a CUDA device."""
    num = math.prod(shape)
    out_BN = torch.empty(len(keys_B2), *shape, device=keys_B2.device)
    with torch.cuda.device(keys_B2.device):
        _normals[(triton.cdiv(num, 4 * _BLOCK), len(keys_B2))](keys_B2, out_BN, draw, num, _BLOCK)
    return out_BN
