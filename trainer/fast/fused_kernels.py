"""The kernels behind `trainer.fast.fused`. Imports triton.

Shapes as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.e4m3_kernels import empty_codes, store_row

_QUERIES = 64  # of a program
_LEAST = 16  # sides of a product on tensor cores
_WIDE = 8192  # of a row, for which more warps share the registers
_NORM_EPS = torch.finfo(torch.float32).eps  # what `F.rms_norm` takes when it is told none


@triton.jit
def _normed(x, gain, width: tl.constexpr, eps: tl.constexpr):
    x = x.to(tl.float32)
    return (x * tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)[:, None] * gain[None, :]).to(tl.bfloat16)


@triton.jit
def _mix(query, key, value, query_gain, key_gain, mixed, query_batch, query_row, key_batch, key_row,
         value_batch, value_row, mixed_batch, mixed_row, num_queries, num_read,
         EPS: tl.constexpr, Q: tl.constexpr, C: tl.constexpr, H: tl.constexpr):
    head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, H)
    own = head * H + channel[None, :]
    reader, read = (tl.program_id(2) * Q + tl.arange(0, Q))[:, None], tl.arange(0, C)[:, None]
    is_reader, is_read = reader < num_queries, read < num_read
    q = tl.load(query + batch * query_batch + reader * query_row + own, mask=is_reader, other=0.0)
    k = tl.load(key + batch * key_batch + read * key_row + own, mask=is_read, other=0.0)
    q = _normed(q, tl.load(query_gain + channel).to(tl.float32), H, EPS)
    k = _normed(k, tl.load(key_gain + channel).to(tl.float32), H, EPS)
    scores = tl.dot(q, k.T) * (H ** -0.5)
    scores = tl.where((tl.arange(0, C) < num_read)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    v = tl.load(value + batch * value_batch + read * value_row + own, mask=is_read, other=0.0)
    found = tl.dot(weights.to(tl.bfloat16), v) / tl.sum(weights, axis=1)[:, None]
    tl.store(mixed + batch * mixed_batch + reader * mixed_row + own, found.to(tl.bfloat16), mask=is_reader)


def mix_heads(query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor, query_gain_H: Tensor,
              key_gain_H: Tensor, num_heads: int) -> Tensor:
    """What each query reads (B, Q, W), see `mixer_for`; rows may be parts of wider ones."""
    batch, num_queries, width = query_BQW.shape
    mixed_BQW = torch.empty(batch, num_queries, width, dtype=query_BQW.dtype, device=query_BQW.device)
    tensors = query_BQW, key_BCW, value_BCW, mixed_BQW
    strides = [stride for tensor in tensors for stride in tensor.stride()[:2]]
    num_read = key_BCW.shape[1]
    grid = num_heads, batch, triton.cdiv(num_queries, _QUERIES)
    with torch.cuda.device(query_BQW.device):
        _mix[grid](query_BQW, key_BCW, value_BCW, query_gain_H, key_gain_H, mixed_BQW, *strides, num_queries,
                   num_read, _NORM_EPS, _QUERIES, max(_LEAST, triton.next_power_of_2(num_read)),
                   width // num_heads, num_warps=4)
    return mixed_BQW


@triton.jit
def _gelu_rows_in_fp8(rows, codes, scales, row_stride, width, W: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, W)
    is_column = column < width
    x = tl.load(rows + row * row_stride + column, mask=is_column, other=0.0).to(tl.float32)
    # Rounded, as what a map reads in bf16 is.
    x = (0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))).to(tl.bfloat16).to(tl.float32)
    store_row(x, codes, codes, scales, row * width + column, row, is_column, True)


def gelu_rows_in_fp8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """See `trainer.fast.fused.gelu_in_fp8`. A program holds a whole row."""
    num_rows, width = x_NI.shape
    codes_NI, scale_N1 = empty_codes(x_NI, num_rows)
    with torch.cuda.device(x_NI.device):
        _gelu_rows_in_fp8[(num_rows,)](x_NI, codes_NI, scale_N1, x_NI.stride(0), width,
                                       triton.next_power_of_2(width), num_warps=8 if width <= _WIDE else 16)
    return codes_NI, scale_N1
