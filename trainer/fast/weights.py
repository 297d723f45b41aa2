"""Weights as the fast path reads them: matrices in the format that they are multiplied in, laid out once.

The stream between the blocks and all norms stay in float32: only what goes into a matrix product is rounded.
Shapes: N positions, I and O inputs and outputs of a map.
"""

import copy
import functools
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import GatedMlp, MultiHead
from trainer.fast.devices import has_triton
from trainer.fast.fused import gelu_in_fp8, map_gelu, mixer_for
from trainer.fast.nvfp4 import Nvfp4Map, multiplies_nvfp4
from trainer.quantise import FP8_MAX, encode_fp8

# fp8: matrices of the blocks in e4m3, a scale for each of their rows and of what they read; the rest as bf16.
# fp4: the same matrices, and what they read, in NVFP4.
Mode = Literal["fp32", "bf16", "fp8", "fp4"]
FORMATS: dict[Mode, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn,
                                    "fp4": torch.float4_e2m1fn_x2}
_FP8_SIDES = 16  # torch multiplies matrices in fp8 whose sides divide by it
Part = TypeVar("Part", bound=nn.Module)


class RoundedNorm(nn.Module):
    """A LayerNorm in float32 whose result is in the dtype of the maps behind it."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.dtype = norm.weight, norm.bias, norm.eps, dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(self.dtype)


class JoinedGatedMlp(nn.Module):
    """`GatedMlp` whose gate and upward map are one matrix product."""

    def __init__(self, mlp: GatedMlp) -> None:
        super().__init__()
        self.gate_up, self.down = joined([mlp.gate, mlp.up]), mlp.down

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class PlainMlp(nn.Module):
    """Two maps with a GELU between them, which is computed along with one of them where that can be."""

    def __init__(self, mlp: nn.Sequential) -> None:
        super().__init__()
        self.up, _, self.down, *_ = mlp
        self.is_gpu = next(mlp.parameters()).is_cuda
        self.has_kernels = self.is_gpu and has_triton(next(mlp.parameters()).device)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_gpu and isinstance(self.up, nn.Linear) and self.up.weight.dtype == torch.bfloat16:
            rows_NO = map_gelu(x.flatten(0, -2), self.up.weight, self.up.bias)
            return self.down(rows_NO.unflatten(0, x.shape[:-1]))
        hidden = self.up(x)
        if self.has_kernels and isinstance(self.down, Fp8Map) and hidden.dtype == torch.bfloat16:
            return self.down.multiplied(*gelu_in_fp8(hidden.flatten(0, -2))).unflatten(0, x.shape[:-1])
        return self.down(F.gelu(hidden))


class Fp8Map(nn.Module):
    """A linear map in fp8, both what it reads and its weight, added up in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight
        self.codes_OI = torch.empty_like(weight_OI, dtype=torch.float8_e4m3fn, requires_grad=False)
        self.scale_1O = torch.empty(1, len(weight_OI), device=weight_OI.device)
        encode_fp8(weight_OI, self.codes_OI.view(-1), self.scale_1O[0])
        self.bias_O = linear.bias

    @staticmethod
    def fits(linear: nn.Linear) -> bool:
        """True for a map that torch can multiply so."""
        return linear.in_features % _FP8_SIDES == 0 and linear.out_features % _FP8_SIDES == 0

    def forward(self, x: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2).float()
        scale_N1 = x_NI.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / FP8_MAX
        codes_NI = (x_NI / scale_N1).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        return self.multiplied(codes_NI, scale_N1).unflatten(0, x.shape[:-1])

    def multiplied(self, codes_NI: Tensor, scale_N1: Tensor) -> Tensor:
        """The map of what is in e4m3 already, (N, O)."""
        return torch._scaled_mm(codes_NI, self.codes_OI.T, scale_N1, self.scale_1O, self.bias_O,
                                out_dtype=torch.bfloat16, use_fast_accum=codes_NI.is_cuda)


@functools.cache
def multiplies_fp8(device: torch.device) -> bool:
    """Whether torch does there with a scale for each row.

    A small product is tried, since compute capability does not tell: Hopper has it, and torch 2.10 has not
    on 12.0 (github.com/pytorch/pytorch/issues/192707).
    """
    ones = torch.ones(_FP8_SIDES, _FP8_SIDES, dtype=torch.bfloat16, device=device)
    try:
        Fp8Map(linear(ones, ones[0]))(ones)
    except (RuntimeError, ValueError):
        return False
    return True


_QUANTISED: dict[Mode, type[Fp8Map] | type[Nvfp4Map]] = {"fp8": Fp8Map, "fp4": Nvfp4Map}


def is_emulated(mode: str, device: torch.device) -> bool:
    """True where a mode gives its numbers, and so its error, but not its speed."""
    return mode == "fp4" and not multiplies_nvfp4(device)


def usual_mode(device: torch.device) -> Mode:
    """Where nobody says: bf16 where there are tensor cores for it."""
    has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if has_bf16 else "fp32"


def dtype_of(mode: Mode) -> torch.dtype:
    """Of what maps read and write."""
    return torch.float32 if mode == "fp32" else torch.bfloat16


def laid_out(part: Part, mode: Mode) -> Part:
    """A copy of a part for inference. What is in its format already is shared with the original."""
    dtype = dtype_of(mode)
    # Gains of queries and keys, too: they are multiplied in the dtype of what the map before them writes.
    rounded = {id(weight) for module in part.modules() if isinstance(module, nn.Linear | nn.RMSNorm)
               for weight in module.parameters(recurse=False)}
    # Rounded weights instead of copies that would be rounded later: a copy of all has no room beside 27B's.
    made = {id(weight): nn.Parameter(weight.detach().to(dtype if id(weight) in rounded else torch.float32),
                                     requires_grad=False) for weight in part.parameters()}
    return _for_inference(copy.deepcopy(part, made).eval(), mode)


def _for_inference(module: nn.Module, mode: Mode) -> Any:
    if isinstance(module, nn.LayerNorm):
        return RoundedNorm(module, dtype_of(mode))
    quantised = _QUANTISED.get(mode)
    if isinstance(module, nn.Linear) and quantised and quantised.fits(module):
        return quantised(module)
    if isinstance(module, GatedMlp):
        module = JoinedGatedMlp(module)
    if isinstance(module, MultiHead):
        module.mixer = mixer_for(module, next(module.parameters()).device)
    for name, child in module.named_children():
        setattr(module, name, _for_inference(child, mode))
    if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.GELU):
        return PlainMlp(module)
    return module


def joined(maps: Iterable[nn.Linear]) -> nn.Linear:
    """One map with the outputs of several, one after the other, from the same input."""
    parts = list(maps)
    return linear(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))


def behind_norm(part: nn.Linear, norm: nn.LayerNorm) -> nn.Linear:
    """The map as it reads what is normalised only: gain and shift of the norm are in its weight and bias."""
    weight = part.weight.float()
    return linear(weight * norm.weight.float(), part.bias.float() + weight @ norm.bias.float())


def linear(weight_OI: Tensor, bias_O: Tensor) -> nn.Linear:
    """A map with these numbers, for inference."""
    num_outputs, num_inputs = weight_OI.shape
    made = nn.Linear(num_inputs, num_outputs, device="meta")
    made.weight, made.bias = (nn.Parameter(part.detach(), requires_grad=False)
                              for part in (weight_OI, bias_O))
    return made
