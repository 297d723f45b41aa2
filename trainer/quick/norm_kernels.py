"""Norms with what stands around them, one kernel each, none of which is tuned at run time. Imports triton.

Each gives what maps read: in bfloat16, in e4m3 with a scale for each row, or both.
Shapes: N rows or tokens, D channels; B batch, L tokens, C channels of all heads or of one, H heads or the
channels of one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.e4m3_kernels import empty_codes, store_row
from trainer.quick.rows import Rows

_TOKENS = 32  # of a program that convolves (guess)
_LENGTH_EPS = 1e-6  # of transformers' `l2norm`


@triton.jit
def _normed(x, residual, gain, plain, codes, scales, stream, width, EPS: tl.constexpr,
            HAS_RESIDUAL: tl.constexpr, HAS_CODES: tl.constexpr, D: tl.constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    own, is_channel = row * width + channel, channel < width
    value = tl.load(x + own, mask=is_channel, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + own, mask=is_channel, other=0.0).to(tl.float32)
        tl.store(stream + own, value.to(stream.dtype.element_ty), mask=is_channel)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / width + EPS)
    value *= 1.0 + tl.load(gain + channel, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(plain + own, value.to(plain.dtype.element_ty), mask=is_channel)
    if HAS_CODES:
        store_row(value, plain, codes, scales, own, row, is_channel, True)


def normed(x_ND: Tensor, residual_ND: Tensor | None, gain_D: Tensor, eps: float,
           in_fp8: bool) -> tuple[Rows, Tensor]:
    """RMS norm of residual + x, times 1 + gain, and that sum; rows without gaps. Codes beside plain ones."""
    num_rows, width = x_ND.shape
    plain_ND = torch.empty_like(x_ND)
    codes = empty_codes(x_ND, num_rows) if in_fp8 else (None, None)
    stream_ND = x_ND if residual_ND is None else torch.empty_like(x_ND)
    columns = triton.next_power_of_2(width)
    with torch.cuda.device(x_ND.device):
        _normed[(num_rows,)](x_ND, residual_ND, gain_D, plain_ND, *codes, stream_ND, width, eps,
                             residual_ND is not None, in_fp8, columns,
                             num_warps=max(1, min(16, columns // 512)))
    return Rows(plain_ND, *codes), stream_ND


@triton.jit
def _gated_norm(heads, gate, gain, plain, codes, scales, num_heads, width, EPS: tl.constexpr,
                IN_CODES: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    is_there, own = (head < num_heads) & (channel < width), (token * num_heads + head) * width + channel
    x = tl.load(heads + own, mask=is_there, other=0.0).to(tl.float32)
    g = tl.load(gate + own, mask=is_there, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=1) / width + EPS)[:, None]
    x *= tl.load(gain + channel, mask=channel < width, other=0.0).to(tl.float32) * g * tl.sigmoid(g)
    store_row(x, plain, codes, scales, own, token, is_there, IN_CODES)


def gated_norm(heads_NHC: Tensor, gate_NHC: Tensor, gain_C: Tensor, eps: float, in_fp8: bool) -> Rows:
    """RMS norm of each head, times gain, times the SiLU of the gate: a row has a token's heads."""
    num_tokens, num_heads, width = heads_NHC.shape
    codes = empty_codes(heads_NHC, num_tokens) if in_fp8 else (None, None)
    plain_ND = None if in_fp8 else torch.empty_like(heads_NHC).flatten(1)
    with torch.cuda.device(heads_NHC.device):
        _gated_norm[(num_tokens,)](heads_NHC, gate_NHC, gain_C, plain_ND, *codes, num_heads, width, eps,
                                   in_fp8, triton.next_power_of_2(num_heads), triton.next_power_of_2(width))
    return Rows(plain_ND, *codes)


@triton.jit
def _convolved(x, weights, found, batch_stride, token_stride, num_tokens, num_channels, EPS: tl.constexpr,
               NORMED: tl.constexpr, W: tl.constexpr, L: tl.constexpr, H: tl.constexpr):
    batch = tl.program_id(2).to(tl.int64)
    token = (tl.program_id(0) * L + tl.arange(0, L))[:, None]
    channel = (tl.program_id(1) * H + tl.arange(0, H))[None, :]
    value = tl.zeros((L, H), tl.float32)
    for w in tl.static_range(W):
        read = token - (W - 1) + w
        weight = tl.load(weights + channel * W + w).to(tl.float32)
        value += weight * tl.load(x + batch * batch_stride + read * token_stride + channel,
                                  mask=(read >= 0) & (read < num_tokens), other=0.0).to(tl.float32)
    value *= tl.sigmoid(value)
    if NORMED:
        value *= tl.rsqrt(tl.sum(value * value, axis=1) + EPS)[:, None]
    to = found + (batch * num_tokens + token) * num_channels + channel
    tl.store(to, value.to(found.dtype.element_ty), mask=token < num_tokens)


def convolved_heads(x_BLC: Tensor, weight_CW: Tensor, head_width: int, normed: bool) -> Tensor:
    """SiLU of the causal convolution of each channel, by heads (B, L, C / H, H), if asked for of length 1.

    Args:
        x_BLC: Tokens may have gaps between them, channels none.
        weight_CW: The last is that of the token itself.
        head_width: H, a power of two.
        normed: Each head is divided by its length, as transformers' `l2norm` does.
    """
    batch, num_tokens, num_channels = x_BLC.shape
    found_BLC = torch.empty(x_BLC.shape, dtype=x_BLC.dtype, device=x_BLC.device)
    with torch.cuda.device(x_BLC.device):
        _convolved[(triton.cdiv(num_tokens, _TOKENS), num_channels // head_width, batch)](
            x_BLC, weight_CW, found_BLC, x_BLC.stride(0), x_BLC.stride(1), num_tokens, num_channels,
            _LENGTH_EPS, normed, weight_CW.shape[1], _TOKENS, head_width)
    return found_BLC.unflatten(-1, (-1, head_width))
