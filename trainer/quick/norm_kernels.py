"""Norms with what stands around them, one kernel each, none of which is tuned at run time. Imports triton.

Shapes: N rows, D channels; B batch, L tokens, C channels of all heads, H of one, W width of the convolution.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TOKENS = 32  # of a program that convolves (guess)
_LENGTH_EPS = 1e-6  # of transformers' `l2norm`


@triton.jit
def _normed(x, residual, gain, normed, stream, width, EPS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
            D: tl.constexpr):
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    is_channel = channel < width
    value = tl.load(x + row * width + channel, mask=is_channel, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + row * width + channel, mask=is_channel, other=0.0).to(tl.float32)
        tl.store(stream + row * width + channel, value.to(stream.dtype.element_ty), mask=is_channel)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + EPS)
    value *= scale * (1.0 + tl.load(gain + channel, mask=is_channel, other=0.0).to(tl.float32))
    tl.store(normed + row * width + channel, value.to(normed.dtype.element_ty), mask=is_channel)


def normed(x_ND: Tensor, residual_ND: Tensor | None, gain_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """RMS norm of residual + x, times 1 + gain, and that sum; rows without gaps."""
    normed_ND = torch.empty_like(x_ND)
    stream_ND = x_ND if residual_ND is None else torch.empty_like(x_ND)
    width = x_ND.shape[-1]
    columns = triton.next_power_of_2(width)
    with torch.cuda.device(x_ND.device):
        _normed[(x_ND.numel() // width,)](
            x_ND, residual_ND, gain_D, normed_ND, stream_ND, width, eps, residual_ND is not None, columns,
            num_warps=max(1, min(16, columns // 512)))
    return normed_ND, stream_ND


@triton.jit
def _gated_norm(heads, gate, gain, found, num_rows, width, EPS: tl.constexpr, N: tl.constexpr,
                H: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * N + tl.arange(0, N))[:, None]
    channel = tl.arange(0, H)[None, :]
    is_there = (row < num_rows) & (channel < width)
    x = tl.load(heads + row * width + channel, mask=is_there, other=0.0).to(tl.float32)
    g = tl.load(gate + row * width + channel, mask=is_there, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, axis=1) / width + EPS)[:, None]
    x *= tl.load(gain + channel, mask=channel < width, other=0.0).to(tl.float32) * g * tl.sigmoid(g)
    tl.store(found + row * width + channel, x.to(found.dtype.element_ty), mask=is_there)


def gated_norm(heads_NH: Tensor, gate_NH: Tensor, gain_H: Tensor, eps: float) -> Tensor:
    """RMS norm of each head, times gain, times the SiLU of the gate; rows without gaps."""
    found_NH = torch.empty_like(heads_NH)
    num_rows, width = heads_NH.shape
    with torch.cuda.device(heads_NH.device):
        _gated_norm[(triton.cdiv(num_rows, _TOKENS),)](
            heads_NH, gate_NH, gain_H, found_NH, num_rows, width, eps, _TOKENS, triton.next_power_of_2(width))
    return found_NH


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
