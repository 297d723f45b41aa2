"""What stands around attention, one kernel each. Imports triton.

Shapes: B batch, L tokens, N of all of them, H heads, C channels of a head, R of them that turn. A program has
a token's heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.e4m3_kernels import empty_codes, store_row
from trainer.quick.rows import Rows


@triton.jit
def _normed_and_turned(heads, gain, cos, sin, found, batch_stride, token_stride, head_stride, num_tokens,
                       num_heads, width, num_turning, angle_stride, EPS: tl.constexpr, H: tl.constexpr,
                       C: tl.constexpr):
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, channel = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    is_there, half = (head < num_heads) & (channel < width), num_turning // 2
    # The channel that each turns with; those that do not turn with themselves.
    other = tl.where(channel < half, channel + half, tl.where(channel < num_turning, channel - half, channel))
    first = heads + batch * batch_stride + token * token_stride + head * head_stride
    x = tl.load(first + channel, mask=is_there, other=0.0).to(tl.float32)
    y = tl.load(first + other, mask=is_there, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / width + EPS)[:, None]
    x *= scale * (1.0 + tl.load(gain + channel, mask=channel < width, other=0.0).to(tl.float32))
    y *= scale * (1.0 + tl.load(gain + other, mask=channel < width, other=0.0).to(tl.float32))
    angle = batch * angle_stride + token * num_turning + channel
    c = tl.load(cos + angle, mask=channel < num_turning, other=1.0).to(tl.float32)
    s = tl.load(sin + angle, mask=channel < num_turning, other=0.0).to(tl.float32)
    turned = x * c + tl.where(channel < half, -y, y) * s
    to = found + ((batch * num_tokens + token) * num_heads + head) * width + channel
    tl.store(to, turned.to(found.dtype.element_ty), mask=is_there)


def normed_and_turned(heads_BLHC: Tensor, gain_C: Tensor, cos_BLR: Tensor, sin_BLR: Tensor,
                      eps: float) -> Tensor:
    """RMS norm of each head, times 1 + gain, its first channels turned: (B, L, H, C) without gaps.

    Channels i and i + R / 2 turn together, as transformers' `apply_rotary_pos_emb` has it.
    """
    batch, num_tokens, num_heads, width = heads_BLHC.shape
    found_BLHC = torch.empty(heads_BLHC.shape, dtype=heads_BLHC.dtype, device=heads_BLHC.device)
    cos_BLR, sin_BLR = cos_BLR.contiguous(), sin_BLR.contiguous()
    angle_stride = 0 if len(cos_BLR) == 1 else cos_BLR.stride(0)
    with torch.cuda.device(heads_BLHC.device):
        _normed_and_turned[(num_tokens, batch)](
            heads_BLHC, gain_C, cos_BLR, sin_BLR, found_BLHC, *heads_BLHC.stride()[:3], num_tokens, num_heads,
            width, cos_BLR.shape[-1], angle_stride, eps, triton.next_power_of_2(num_heads),
            triton.next_power_of_2(width))
    return found_BLHC


@triton.jit
def _gated_by(heads, gate, plain, codes, scales, batch_stride, token_stride, head_stride, gate_batch,
              gate_token, gate_head, num_tokens, num_heads, width, IN_CODES: tl.constexpr, H: tl.constexpr,
              C: tl.constexpr):
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, channel = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    is_there = (head < num_heads) & (channel < width)
    x = tl.load(heads + batch * batch_stride + token * token_stride + head * head_stride + channel,
                mask=is_there, other=0.0).to(tl.float32)
    g = tl.load(gate + batch * gate_batch + token * gate_token + head * gate_head + channel,
                mask=is_there, other=0.0).to(tl.float32)
    x *= tl.sigmoid(g)
    row = batch * num_tokens + token
    own = (row * num_heads + head) * width + channel
    store_row(x, plain, codes, scales, own, row, is_there, IN_CODES)


def gated_by(heads_BLHC: Tensor, gate_BLHC: Tensor, in_fp8: bool) -> Rows:
    """Times the sigmoid of the gate: a row has a token's heads."""
    batch, num_tokens, num_heads, width = heads_BLHC.shape
    shape = batch * num_tokens, num_heads * width
    codes = empty_codes(heads_BLHC, shape[0]) if in_fp8 else (None, None)
    plain_ND = None if in_fp8 else torch.empty(shape, dtype=heads_BLHC.dtype, device=heads_BLHC.device)
    with torch.cuda.device(heads_BLHC.device):
        _gated_by[(num_tokens, batch)](
            heads_BLHC, gate_BLHC, plain_ND, *codes, *heads_BLHC.stride()[:3], *gate_BLHC.stride()[:3],
            num_tokens, num_heads, width, in_fp8, triton.next_power_of_2(num_heads),
            triton.next_power_of_2(width))
    return Rows(plain_ND, *codes)
