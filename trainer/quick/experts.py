"""A mixture of experts for a whole batch at once: each token's rows side by side with those of its expert.

Shapes: N tokens, D channels, E experts, K of them for a token, M = N K rows in the order of their experts,
F inner channels of an expert.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.fast.devices import has_triton
from trainer.quick.rows import Rows, grouped_product, is_fp8, product


class Routed(NamedTuple):
    """Where a batch's tokens go.

    Attributes:
        token_M: Of each row, in the order of experts.
        weight_M: Float32, of each row.
        ends_E: Int32: the first row after those of an expert.
        row_NK: Where a token's rows are.
    """

    token_M: Tensor
    weight_M: Tensor
    ends_E: Tensor
    row_NK: Tensor


def mixed_by_experts(mlp: Any, rows: Rows, residual_ND: Tensor) -> Tensor:
    """residual + the mixture of x, experts and shared expert: what `Qwen3_5MoeSparseMoeBlock` computes.

    Args:
        mlp: A block of that class.
        rows: x, normalised.
        residual_ND: What the result is added to, in the dtype of plain rows.
    """
    kernels = _kernels(residual_ND.device)
    experts, shared = mlp.experts, mlp.shared_expert
    routed = by_expert(*kernels.choose(product(rows, mlp.gate), mlp.gate.top_k), experts.num_experts)
    gate_up_MF = grouped_product(rows.of(routed.token_M), experts, "gate_up_proj", routed.ends_E)
    hidden = kernels.gated(*gate_up_MF.chunk(2, dim=1), routed.weight_M, is_fp8(experts, "down_proj"))
    mixed_MD = grouped_product(hidden, experts, "down_proj", routed.ends_E)
    hidden = kernels.gated(product(rows, shared.gate_proj), product(rows, shared.up_proj), None,
                           is_fp8(shared.down_proj))
    shared_ND = product(hidden, shared.down_proj)
    open_N1 = product(rows, mlp.shared_expert_gate)
    return kernels.combined(mixed_MD, routed.row_NK, shared_ND, open_N1, residual_ND)


def by_expert(expert_NK: Tensor, weight_NK: Tensor, num_experts: int) -> Routed:
    """Rows in the order of their experts, and in it of their tokens.

    Args:
        expert_NK: Int32, chosen by each token.
        weight_NK: Of that choice.
        num_experts: E.
    """
    sorted_M, order_M = torch.sort(expert_NK.flatten(), stable=True)
    experts_E = torch.arange(num_experts, dtype=sorted_M.dtype, device=sorted_M.device)
    ends_E = torch.searchsorted(sorted_M, experts_E, right=True, out_int32=True)
    row_M = torch.empty_like(order_M, dtype=torch.int32)
    row_M[order_M] = torch.arange(len(order_M), dtype=torch.int32, device=order_M.device)
    num_chosen = expert_NK.shape[1]
    return Routed(order_M // num_chosen, weight_NK.flatten()[order_M], ends_E, row_M.view(-1, num_chosen))


def choose(logits_NE: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """The experts of each token, int32, and their weights, float32, which add up to 1: both (N, K).

    The softmax over all, divided by the sum of those chosen, is the softmax over those.
    """
    value_NK, expert_NK = logits_NE.float().topk(num_chosen, dim=1)
    return expert_NK.int(), value_NK.softmax(dim=1)


def gated(gate_MF: Tensor, up_MF: Tensor, weight_M: Tensor | None, in_fp8: bool) -> Rows:
    """SiLU of the gate, times up, times the weight of the row: (M, F). In e4m3 only by the kernel."""
    assert not in_fp8
    found_MF = F.silu(gate_MF.float()) * up_MF.float()
    return Rows((found_MF if weight_M is None else found_MF * weight_M[:, None]).to(gate_MF.dtype))


def combined(mixed_MD: Tensor, row_NK: Tensor, shared_ND: Tensor, open_N1: Tensor,
             residual_ND: Tensor) -> Tensor:
    """residual + sigmoid(open) x shared + the sum of a token's rows, added up in float32."""
    rows_ND = mixed_MD.float()[row_NK].sum(dim=1)
    found = residual_ND.float() + torch.sigmoid(open_N1.float()) * shared_ND.float() + rows_ND
    return found.to(residual_ND.dtype)


def _kernels(device: torch.device) -> Any:
    """Who has `choose`, `gated` and `combined`."""
    if has_triton(device):
        from trainer.quick import experts_kernels

        return experts_kernels
    from trainer.quick import experts

    return experts
