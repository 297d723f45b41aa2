"""The kernels behind `trainer.norms.layer_normed`: memory is what they wait for. Imports triton.

Rows of a group share a factor and an offset: those of a sample, or all.
Shapes: G groups, W channels of a row; P programs of a group.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUMBERS = 2048  # of a tile (guess)
_OF_A_THREAD, _OF_A_THREAD_BACK = 16, 8  # so that registers suffice, and many programs have room at once
_MOST_PROGRAMS = 512  # on the way back, each of which leaves two sums of a row (guess)
_EPS = 1e-5  # what `F.layer_norm` takes when it is told none


@triton.jit
def _standard(rows, own, is_there, EPS: tl.constexpr, W: tl.constexpr):
    """Rows with mean 0 and variance 1, and what they were divided by, inverted."""
    value = tl.load(rows + own, mask=is_there, other=0.0).to(tl.float32)
    value = tl.where(is_there, value - (tl.sum(value, axis=1) / W)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / W + EPS)[:, None]
    return value * scale, scale


@triton.jit
def _normed_rows(x, factor, offset, normed, num_rows, factor_stride, offset_stride, EPS: tl.constexpr,
                 W: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    group = tl.program_id(1).to(tl.int64)
    row, channel = (tl.program_id(0) * R + tl.arange(0, R))[:, None], tl.arange(0, C)[None, :]
    is_there, own = (row < num_rows) & (channel < W), (group * num_rows + row) * W + channel
    value, _ = _standard(x, own, is_there, EPS, W)
    value *= tl.load(factor + group * factor_stride + channel, mask=channel < W, other=0.0).to(tl.float32)
    value += tl.load(offset + group * offset_stride + channel, mask=channel < W, other=0.0).to(tl.float32)
    tl.store(normed + own, value.to(normed.dtype.element_ty), mask=is_there)


@triton.jit
def _row_norm_gradients(upstream, x, factor, for_x, sums, num_rows, num_tiles, factor_stride,
                        EPS: tl.constexpr, W: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    group, channel = tl.program_id(1).to(tl.int64), tl.arange(0, C)[None, :]
    times = tl.load(factor + group * factor_stride + channel, mask=channel < W, other=0.0).to(tl.float32)
    for_factor, for_offset = tl.zeros((R, C), tl.float32), tl.zeros((R, C), tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = (tile * R + tl.arange(0, R))[:, None]
        is_there, own = (row < num_rows) & (channel < W), (group * num_rows + row) * W + channel
        given = tl.load(upstream + own, mask=is_there, other=0.0).to(tl.float32)
        value, scale = _standard(x, own, is_there, EPS, W)
        for_factor += given * value
        for_offset += given
        given *= times
        mean, along = tl.sum(given, axis=1) / W, tl.sum(given * value, axis=1) / W
        found = (given - mean[:, None] - along[:, None] * value) * scale
        tl.store(for_x + own, found.to(for_x.dtype.element_ty), mask=is_there)
    to = sums + (group * tl.num_programs(0) + tl.program_id(0)) * W + channel
    others = tl.num_programs(1) * tl.num_programs(0) * W
    tl.store(to, tl.sum(for_factor, axis=0)[None, :], mask=channel < W)
    tl.store(to + others, tl.sum(for_offset, axis=0)[None, :], mask=channel < W)


def normed_rows(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """See `trainer.norms.layer_normed`."""
    factor_GW, offset_GW, normed = _by_group(factor), _by_group(offset), x.new_empty(x.shape)
    num_rows, tile = _tiling(x, len(factor_GW))
    with torch.cuda.device(x.device):
        _normed_rows[(triton.cdiv(num_rows, tile["R"]), len(factor_GW))](
            x.contiguous(), factor_GW, offset_GW, normed, num_rows, factor_GW.stride(0), offset_GW.stride(0),
            _EPS, **tile, num_warps=_num_warps(tile, _OF_A_THREAD))
    return normed


def gradients(for_normed: Tensor, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For rows, factor and offset, from that for what was normed: the same bits each time."""
    factor_GW, for_x = _by_group(factor), x.new_empty(x.shape)
    num_rows, tile = _tiling(x, len(factor_GW))
    num_tiles = triton.cdiv(num_rows, tile["R"])
    num_programs = min(num_tiles, max(1, _MOST_PROGRAMS // len(factor_GW)))
    sums_2GPW = x.new_empty(2, len(factor_GW), num_programs, x.shape[-1], dtype=torch.float32)
    with torch.cuda.device(x.device):
        _row_norm_gradients[(num_programs, len(factor_GW))](
            for_normed.contiguous(), x.contiguous(), factor_GW, for_x, sums_2GPW, num_rows, num_tiles,
            factor_GW.stride(0), _EPS, **tile, num_warps=_num_warps(tile, _OF_A_THREAD_BACK))
    for_factor, for_offset = sums_2GPW.sum(2).to(factor.dtype)
    return for_x, for_factor.view(factor.shape), for_offset.view(factor.shape)


def _by_group(values: Tensor) -> Tensor:
    """(G, W), channels without gaps."""
    values_GW = values.reshape(-1, values.shape[-1])
    return values_GW if values_GW.stride(-1) == 1 else values_GW.contiguous()


def _tiling(x: Tensor, num_groups: int) -> tuple[int, dict[str, int]]:
    """Rows of a group; what a kernel is told of its tiles, whose sides are powers of two."""
    columns = triton.next_power_of_2(x.shape[-1])
    tile = {"W": x.shape[-1], "R": max(1, _NUMBERS // columns), "C": columns}
    return x.numel() // x.shape[-1] // num_groups, tile


def _num_warps(tile: dict[str, int], numbers_of_a_thread: int) -> int:
    return tile["R"] * tile["C"] // numbers_of_a_thread // 32
