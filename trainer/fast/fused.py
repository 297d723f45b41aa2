"""Operations that a library has in parts only, as one each: what is between them stays on the chip.

They are operations of torch (`torch.ops.ldlm`), so that what torch compiles may hold them. Where one does not
fit, torch computes the same but for rounding.

Shapes: B batch, Q positions that read, C positions that are read, W width, H channels of a head; N rows,
I and O inputs and outputs of a map.
"""

import functools

import torch
from torch import Tensor

from trainer.attention import Mixer, MultiHead, Rotation, mix_by_torch
from trainer.fast.devices import has_triton, shared_bytes

_HEAD_WIDTHS = (64, 128, 256)
_LENGTHS = (64, 128)  # keys of a head, which a program holds at once
_ROOM = 1.25  # for what the compiler adds (guess)


def mixer_for(heads: MultiHead, device: torch.device) -> Mixer:
    """`mix`, as one kernel for rows as short as a device has room for; else as it was."""
    width = heads.shape.width // heads.shape.num_heads
    if not (has_triton(device) and heads.shape.qk_norm and width in _HEAD_WIDTHS):
        return mix_by_torch
    # Bytes of queries, keys and values of a head in bfloat16.
    room = [length for length in _LENGTHS if _ROOM * 2 * width * (64 + 2 * length) <= shared_bytes(device)]
    return functools.partial(_mix_if_short, max(room, default=0))


def _mix_if_short(most_read: int, heads: MultiHead, query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor,
                  mask: Tensor | None, rotation: Rotation | None) -> Tensor:
    is_plain = mask is None and rotation is None and query_BQW.dtype == torch.bfloat16
    if not is_plain or key_BCW.shape[1] > most_read:
        return mix_by_torch(heads, query_BQW, key_BCW, value_BCW, mask, rotation)
    return _mix(query_BQW, key_BCW, value_BCW, heads.query_norm.weight, heads.key_norm.weight,
                heads.shape.num_heads)


@torch.library.custom_op("ldlm::mix", mutates_args=())
def _mix(query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor, query_gain_H: Tensor, key_gain_H: Tensor,
         num_heads: int) -> Tensor:
    from trainer.fast.fused_kernels import mix_heads

    return mix_heads(query_BQW, key_BCW, value_BCW, query_gain_H, key_gain_H, num_heads)


@_mix.register_fake
def _(query_BQW: Tensor, key_BCW: Tensor, value_BCW: Tensor, query_gain_H: Tensor, key_gain_H: Tensor,
      num_heads: int) -> Tensor:
    return query_BQW.new_empty(query_BQW.shape)


@torch.library.custom_op("ldlm::map_gelu", mutates_args=())
def map_gelu(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """GELU of a map in bfloat16, by its tanh form, which is off by less than 5e-4: (N, O).

    cuBLAS computes it where the products are (`CUBLASLT_EPILOGUE_GELU_BIAS`); the exact one it has not.
    """
    return torch._addmm_activation(bias_O, x_NI, weight_OI.T, use_gelu=True)


@map_gelu.register_fake
def _(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    return x_NI.new_empty(len(x_NI), len(weight_OI))


@torch.library.custom_op("ldlm::gelu_in_fp8", mutates_args=())
def gelu_in_fp8(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """GELU in e4m3 (N, I) and the scale of each row (N, 1), float32, as `Fp8Map` has them: one reading."""
    from trainer.fast.fused_kernels import gelu_rows_in_fp8

    return gelu_rows_in_fp8(x_NI)


@gelu_in_fp8.register_fake
def _(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    codes_NI = torch.empty_like(x_NI, dtype=torch.float8_e4m3fn)
    return codes_NI, x_NI.new_empty(len(x_NI), 1, dtype=torch.float32)
