"""Frozen weights in 8 or 4 bits, and back: torch operations only, in pieces, on any device.

fp8: e4m3 codes and one float32 scale for each row (all but the last dimension). nf4: the 16 values of
QLoRA (arXiv 2305.14314, appendix E) scaled by the largest of each 64 weights, two codes a byte, the
first in the high half. nvfp4, made anew at each start of generation and never stored: e2m1 codes (OCP
Microscaling Formats 1.0, section 5.3.3), an e4m3 scale for each 16 of them, a float32 one for each row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from trainer.encoder_shape import NF4_BLOCK

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (paper, appendix E).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0)
FP8_MAX = 448.0
NVFP4_BLOCK = 16
_E2M1_MAX = 6.0
# Weights at a time: at most 12 bytes of temporaries each, so 48 MiB (arithmetic).
_PIECE = 4 * 2**20


def encode_nf4(weights: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Write the nf4 form of `weights` into `codes` and `scales`, all on one device.

    Args:
        weights: Any shape and float type; a multiple of 64 of them.
        codes: uint8, half as many.
        scales: bfloat16, one for each 64: the largest magnitude. All-zero blocks have scale 0.
    """
    flat = weights.reshape(-1)
    values = torch.tensor(NF4_VALUES, device=weights.device)
    borders = (values[1:] + values[:-1]) / 2
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start:start + _PIECE].float().view(-1, NF4_BLOCK)
        largest = piece.abs().amax(dim=1).to(torch.bfloat16)
        divisor = largest.float()
        piece = piece / torch.where(divisor > 0, divisor, 1)[:, None]
        nearest = torch.bucketize(piece, borders, out_int32=True).to(torch.uint8).view(-1, 2)
        end = start + nearest.numel()
        torch.add(nearest[:, 0] * 16, nearest[:, 1], out=codes[start // 2:end // 2])
        scales[start // NF4_BLOCK:end // NF4_BLOCK] = largest


def decode_nf4(codes: Tensor, scales: Tensor, weights: Tensor) -> None:
    """Write the weights of `codes` into `weights`: flat, contiguous, bfloat16 or float32."""
    values = torch.tensor(NF4_VALUES, dtype=weights.dtype, device=weights.device)
    # A byte stands for two neighbouring weights, moved as one integer of their joint size.
    pair = torch.int32 if weights.dtype == torch.bfloat16 else torch.int64
    pairs = torch.cartesian_prod(values, values).view(pair).view(-1)
    for start in range(0, codes.numel(), _PIECE):
        index = codes[start:start + _PIECE].int()
        target = weights[2 * start:2 * (start + index.numel())]
        torch.index_select(pairs, 0, index, out=target.view(pair))
        first = 2 * start // NF4_BLOCK
        blocks = target.view(-1, NF4_BLOCK)
        blocks.mul_(scales[first:first + len(blocks), None])


def encode_fp8(weights: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Write the fp8 form of `weights` into `codes` and `scales`, all on one device.

    Args:
        weights: At least two dimensions, any float type.
        codes: float8_e4m3fn, flat, as many.
        scales: float32, one for each row. All-zero rows have scale 0.
    """
    rows = weights.reshape(-1, weights.shape[-1])
    coded = codes.view(rows.shape)
    # A tensor of the device: by a plain number a GPU multiplies with the rounded inverse instead.
    top = torch.tensor(FP8_MAX, device=weights.device)
    for start, end in _row_pieces(*rows.shape):
        piece = rows[start:end].float()
        scale = piece.abs().amax(dim=1) / top
        piece = piece / torch.where(scale > 0, scale, 1)[:, None]
        coded[start:end] = piece.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        scales[start:end] = scale


def decode_fp8(codes: Tensor, scales: Tensor, weights: Tensor) -> None:
    """Write the weights of `codes` into `weights`: flat, contiguous, bfloat16 or float32."""
    rows = weights.view(len(scales), -1)
    coded = codes.view(rows.shape)
    for start, end in _row_pieces(*rows.shape):
        rows[start:end].copy_(coded[start:end])  # e4m3 is exact in both
        rows[start:end].mul_(scales[start:end, None])


class Nvfp4(NamedTuple):
    """Rows of numbers in 4 bits: N rows of I numbers.

    Attributes:
        codes: uint8 (N, I / 2), two codes a byte, the first in the low half, as tensor cores read them.
        block_scales: float8_e4m3fn (N, I / 16).
        row_scales: float32 (N, 1). NVFP4 has one for a whole matrix; with one for each row a text does not
            depend on others in its batch.
    """

    codes: Tensor
    block_scales: Tensor
    row_scales: Tensor


def encode_nvfp4(rows_NI: Tensor) -> Nvfp4:
    """Rows of any float type, a multiple of 16 numbers each: the largest of a row is 6 * 448 row scales."""
    rows_NI = rows_NI.float()
    row_scales_N1 = rows_NI.abs().amax(dim=1, keepdim=True) / (_E2M1_MAX * FP8_MAX)
    row_scales_N1 = row_scales_N1.clamp(min=torch.finfo(torch.float32).tiny)
    blocks = (rows_NI / row_scales_N1).unflatten(1, (-1, NVFP4_BLOCK))
    block_scales = (blocks.abs().amax(dim=2) / _E2M1_MAX).to(torch.float8_e4m3fn)
    divisors = block_scales.float().unsqueeze(2)
    pairs = _e2m1_codes(blocks / torch.where(divisors > 0, divisors, torch.inf)).view(len(rows_NI), -1, 2)
    return Nvfp4(pairs[..., 0] | pairs[..., 1] << 4, block_scales, row_scales_N1)


def _e2m1_codes(values: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 by number, ties to even ones; 8 more for what is negative."""
    size = values.abs().clamp(max=_E2M1_MAX)
    octave = (size >= 2).float() + (size >= 4).float()  # steps of 0.5, 1 and 2
    return (torch.round(size * torch.exp2(1 - octave)) + 2 * octave + 8 * (values < 0)).to(torch.uint8)


def unscaled_nvfp4(coded: Nvfp4) -> Tensor:
    """Rows (N, I) of codes times block scales, without the scales of rows: exact in bfloat16."""
    halves = torch.stack([coded.codes & 15, coded.codes >> 4], dim=-1).flatten(1)
    code = (halves & 7).float()
    octave = (code >= 4).float() + (code >= 6).float()
    size = (code - 2 * octave) * torch.exp2(octave - 1)
    values = torch.where(halves > 7, -size, size).unflatten(1, (-1, NVFP4_BLOCK))
    return (values * coded.block_scales.float().unsqueeze(2)).flatten(1).to(torch.bfloat16)


def _row_pieces(num_rows: int, row_length: int) -> list[tuple[int, int]]:
    step = max(1, _PIECE // row_length)
    return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
