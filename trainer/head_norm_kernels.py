"""The kernels behind `trainer.norms.rms_normed`: memory is what they wait for. Imports triton.

Shapes: N positions of all samples, H heads, C channels of a head; P programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 2048  # of a tile: two reads of 16 bytes for each of 128 threads (guess)
_FEW = 256  # columns that one warp reads at once
_MOST_PROGRAMS = 2048  # on the way back, each of which leaves a sum (guess)
_EPS = torch.finfo(torch.float32).eps  # what `F.rms_norm` takes when it is told none, of bfloat16 too


@triton.jit
def _read(heads, row, channel, is_there, position_stride, head_stride, H: tl.constexpr):
    own = (row // H).to(tl.int64) * position_stride + (row % H) * head_stride + channel
    return tl.load(heads + own, mask=is_there, other=0.0).to(tl.float32)


@triton.jit
def _normed_heads(x, gain, normed, num_rows, position_stride, head_stride, EPS: tl.constexpr,
                  H: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    row, channel = (tl.program_id(0) * R + tl.arange(0, R))[:, None], tl.arange(0, C)[None, :]
    is_there = (row < num_rows) & (channel < W)
    value = _read(x, row, channel, is_there, position_stride, head_stride, H)
    value *= tl.rsqrt(tl.sum(value * value, axis=1) / W + EPS)[:, None]
    value *= tl.load(gain + channel, mask=channel < W, other=0.0).to(tl.float32)
    tl.store(normed + row.to(tl.int64) * W + channel, value.to(normed.dtype.element_ty), mask=is_there)


@triton.jit
def _head_norm_gradients(upstream, x, gain, for_x, sums, num_rows, num_tiles, upstream_position,
                         upstream_head, x_position, x_head, EPS: tl.constexpr, H: tl.constexpr,
                         W: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    channel = tl.arange(0, C)[None, :]
    factor = tl.load(gain + channel, mask=channel < W, other=0.0).to(tl.float32)
    summed = tl.zeros((R, C), tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R))[:, None]
        is_there = (row < num_rows) & (channel < W)
        given = _read(upstream, row, channel, is_there, upstream_position, upstream_head, H)
        value = _read(x, row, channel, is_there, x_position, x_head, H)
        scale = tl.rsqrt(tl.sum(value * value, axis=1) / W + EPS)[:, None]
        value *= scale
        summed += given * value
        given *= factor
        along = (tl.sum(given * value, axis=1) / W)[:, None]
        found = (given - along * value) * scale
        tl.store(for_x + row.to(tl.int64) * W + channel, found.to(for_x.dtype.element_ty), mask=is_there)
    tl.store(sums + tl.program_id(0) * W + channel, tl.sum(summed, axis=0)[None, :], mask=channel < W)


def normed_heads(x: Tensor, gain_C: Tensor) -> Tensor:
    """See `trainer.norms.rms_normed`."""
    x_NHC, (height, columns, num_warps) = _heads(x), _tile(x)
    normed, num_rows = x.new_empty(x.shape), x_NHC[..., 0].numel()
    with torch.cuda.device(x.device):
        _normed_heads[(triton.cdiv(num_rows, height),)](
            x_NHC, gain_C, normed, num_rows, *x_NHC.stride()[:2], _EPS, *x_NHC.shape[1:], height, columns,
            num_warps=num_warps)
    return normed


def gradients(for_normed: Tensor, x: Tensor, gain_C: Tensor) -> tuple[Tensor, Tensor]:
    """For inputs and gain, from that for what was normed: the same bits each time."""
    x_NHC, upstream_NHC, (height, columns, num_warps) = _heads(x), _heads(for_normed), _tile(x)
    for_x, num_rows = x.new_empty(x.shape), x_NHC[..., 0].numel()
    num_tiles = triton.cdiv(num_rows, height)
    sums_PC = x.new_empty(min(num_tiles, _MOST_PROGRAMS), x.shape[-1], dtype=torch.float32)
    with torch.cuda.device(x.device):
        _head_norm_gradients[(len(sums_PC),)](
            upstream_NHC, x_NHC, gain_C, for_x, sums_PC, num_rows, num_tiles, *upstream_NHC.stride()[:2],
            *x_NHC.stride()[:2], _EPS, *x_NHC.shape[1:], height, columns, num_warps=num_warps)
    return for_x, sums_PC.sum(0).to(gain_C.dtype)


def _heads(x: Tensor) -> Tensor:
    """(N, H, C), a copy only where positions do not follow each other evenly, or channels have gaps."""
    x_NHC = x.reshape(-1, *x.shape[-2:])
    return x_NHC if x_NHC.stride(-1) == 1 else x_NHC.contiguous()


def _tile(x: Tensor) -> tuple[int, int, int]:
    """Rows and columns that a program holds at once, powers of two, and its warps: registers suffice."""
    columns = triton.next_power_of_2(x.shape[-1])
    return max(1, _NUMBERS // columns), columns, 4 if columns <= _FEW else max(8, columns // 512)
