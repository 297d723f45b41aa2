"""Numbers in e4m3 with a scale for each row, inside kernels. Imports triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.quantise import FP8_MAX

_LARGEST = tl.constexpr(FP8_MAX)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def scale_of(largest):
    """Of a row with this largest magnitude."""
    return tl.maximum(largest, _TINY) / _LARGEST


@triton.jit
def code_of(value, scale):
    """What is no number stays none, as with torch: a bound in its place would pass for one."""
    return tl.clamp(value / scale, -_LARGEST, _LARGEST, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def store_row(value, plain, codes, scales, own, row, is_there, IN_CODES: tl.constexpr):
    """A row of any shape, which lies at `own`: rounded to codes with its scale, or plain."""
    if IN_CODES:
        scale = scale_of(tl.max(tl.abs(value)))
        tl.store(codes + own, code_of(value, scale), mask=is_there)
        tl.store(scales + row, scale)
    else:
        tl.store(plain + own, value.to(plain.dtype.element_ty), mask=is_there)


def empty_codes(like: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Room for codes and scales of so many rows."""
    codes = torch.empty(num_rows, like.numel() // num_rows, dtype=torch.float8_e4m3fn, device=like.device)
    return codes, torch.empty(num_rows, 1, device=like.device)
