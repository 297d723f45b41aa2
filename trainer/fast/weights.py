"""Weights as the fast path reads them: matrices in the dtype that they are multiplied in, laid out once.

The stream between the blocks and all norms stay in float32: only what goes into a matrix product is rounded.
"""

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import GatedMlp

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


def laid_out(part: Part, dtype: torch.dtype) -> Part:
    """A copy of a part for inference. What is in its dtype already is shared with the original."""
    matrices = {id(weight) for module in part.modules() if isinstance(module, nn.Linear)
                for weight in module.parameters(recurse=False)}
    # Rounded weights instead of copies that would be rounded later: a copy of all has no room beside 27B's.
    made = {id(weight): nn.Parameter(weight.detach().to(dtype if id(weight) in matrices else torch.float32),
                                     requires_grad=False) for weight in part.parameters()}
    return _for_inference(copy.deepcopy(part, made).eval(), dtype)


def _for_inference(module: nn.Module, dtype: torch.dtype) -> Any:
    if isinstance(module, nn.LayerNorm):
        return RoundedNorm(module, dtype)
    if isinstance(module, GatedMlp):
        return JoinedGatedMlp(module)
    for name, child in module.named_children():
        setattr(module, name, _for_inference(child, dtype))
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
