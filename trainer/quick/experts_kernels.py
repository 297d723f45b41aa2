"""What stands between the products of a mixture of experts, one kernel each. Imports triton.

Each does what the function of its name in `trainer.quick.experts` does. Shapes as there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.e4m3_kernels import code_of, empty_codes, scale_of
from trainer.quick.rows import Rows

_TOKENS = 16  # of a program that chooses (guess)
_COLUMNS = 4096  # of a row at a time (guess)


@triton.jit
def _choose(logits, chosen, weights, num_tokens, num_experts, E: tl.constexpr, K: tl.constexpr,
            KP: tl.constexpr, N: tl.constexpr):
    token = (tl.program_id(0) * N + tl.arange(0, N))[:, None]
    expert, place = tl.arange(0, E)[None, :], tl.arange(0, KP)[None, :]
    is_token = token < num_tokens
    logit = tl.load(logits + token.to(tl.int64) * num_experts + expert,
                    mask=is_token & (expert < num_experts), other=float("-inf")).to(tl.float32)
    top = tl.max(logit, axis=1)
    # Beyond K: 0, which adds nothing to the sum.
    best, weight = tl.zeros((N, KP), tl.int32), tl.zeros((N, KP), tl.float32)
    for k in tl.static_range(K):
        value, index = tl.max(logit, axis=1, return_indices=True, return_indices_tie_break_left=True)
        best = tl.where(place == k, index[:, None], best)
        weight = tl.where(place == k, tl.exp(value - top)[:, None], weight)
        logit = tl.where(expert == index[:, None], float("-inf"), logit)
    weight /= tl.sum(weight, axis=1)[:, None]
    is_place = is_token & (place < K)
    tl.store(chosen + token * K + place, best, mask=is_place)
    tl.store(weights + token * K + place, weight, mask=is_place)


def choose(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    num_tokens, num_experts = logits_NE.shape
    expert_NK = torch.empty(num_tokens, num_chosen, dtype=torch.int32, device=logits_NE.device)
    weight_NK = torch.empty(num_tokens, num_chosen, device=logits_NE.device)
    with torch.cuda.device(logits_NE.device):
        _choose[(triton.cdiv(num_tokens, _TOKENS),)](
            logits_NE, expert_NK, weight_NK, num_tokens, num_experts, triton.next_power_of_2(num_experts),
            num_chosen, triton.next_power_of_2(num_chosen), _TOKENS)
    return expert_NK, weight_NK


@triton.jit
def _gated(gate, up, weights, found, gate_row, up_row, num_columns, HAS_WEIGHT: tl.constexpr,
           F: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * F + tl.arange(0, F)
    value = _gated_part(gate + row * gate_row, up + row * up_row, weights + row, column, num_columns,
                        HAS_WEIGHT)
    tl.store(found + row * num_columns + column, value.to(found.dtype.element_ty), mask=column < num_columns)


@triton.jit
def _gated_part(gate, up, weight, column, num_columns, HAS_WEIGHT: tl.constexpr):
    g = tl.load(gate + column, mask=column < num_columns, other=0.0).to(tl.float32)
    value = g * tl.sigmoid(g) * tl.load(up + column, mask=column < num_columns, other=0.0).to(tl.float32)
    return value * tl.load(weight) if HAS_WEIGHT else value


@triton.jit
def _gated_in_fp8(gate, up, weights, codes, scales, gate_row, up_row, num_columns, HAS_WEIGHT: tl.constexpr,
                  F: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    gate, up, weight = gate + row * gate_row, up + row * up_row, weights + row
    largest = tl.zeros((F,), tl.float32)
    for first in range(0, num_columns, F):
        column = first + tl.arange(0, F)
        largest = tl.maximum(largest, tl.abs(_gated_part(gate, up, weight, column, num_columns, HAS_WEIGHT)))
    scale = scale_of(tl.max(largest, axis=0))
    for first in range(0, num_columns, F):  # what is read again is near
        column = first + tl.arange(0, F)
        value = _gated_part(gate, up, weight, column, num_columns, HAS_WEIGHT)
        tl.store(codes + row * num_columns + column, code_of(value, scale), mask=column < num_columns)
    tl.store(scales + row, scale)


def gated(gate_MF: Tensor, up_MF: Tensor, weight_M: Tensor | None, in_fp8: bool) -> Rows:
    num_rows, num_columns = gate_MF.shape
    columns = min(_COLUMNS, triton.next_power_of_2(num_columns))
    given = gate_MF, up_MF, gate_MF if weight_M is None else weight_M
    sizes = gate_MF.stride(0), up_MF.stride(0), num_columns, weight_M is not None, columns
    num_warps = max(1, min(8, columns // 256))
    with torch.cuda.device(gate_MF.device):
        if in_fp8:
            codes = empty_codes(gate_MF, num_rows)
            _gated_in_fp8[(num_rows,)](*given, *codes, *sizes, num_warps=num_warps)
            return Rows(None, *codes)
        found_MF = torch.empty(num_rows, num_columns, dtype=gate_MF.dtype, device=gate_MF.device)
        _gated[(num_rows, triton.cdiv(num_columns, columns))](*given, found_MF, *sizes, num_warps=num_warps)
        return Rows(found_MF)


@triton.jit
def _combined(mixed, rows, shared, open_, residual, found, width, K: tl.constexpr, D: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    is_column = column < width
    own = token * width + column
    value = tl.load(shared + own, mask=is_column).to(tl.float32)
    value *= tl.sigmoid(tl.load(open_ + token).to(tl.float32))
    for k in tl.static_range(K):
        row = tl.load(rows + token * K + k).to(tl.int64)
        value += tl.load(mixed + row * width + column, mask=is_column).to(tl.float32)
    value += tl.load(residual + own, mask=is_column).to(tl.float32)
    tl.store(found + own, value.to(found.dtype.element_ty), mask=is_column)


def combined(mixed_MD: Tensor, row_NK: Tensor, shared_ND: Tensor, open_N1: Tensor,
             residual_ND: Tensor) -> Tensor:
    found_ND = torch.empty_like(residual_ND, memory_format=torch.contiguous_format)
    num_tokens, width = residual_ND.shape
    with torch.cuda.device(residual_ND.device):
        _combined[(num_tokens,)](mixed_MD, row_NK, shared_ND, open_N1, residual_ND.contiguous(), found_ND,
                                 width, row_NK.shape[1], triton.next_power_of_2(width), num_warps=8)
    return found_ND
