"""Blocks of Qwen3.5 and 3.6 that compute what transformers' do, with the kernels of this package.

Shapes: B batch, L tokens, D channels.
"""

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.fast.devices import has_triton
from trainer.quick.experts import mixed_by_experts
from trainer.quick.mixers import full_attention, linear_attention

_KINDS = ("qwen3_5_text", "qwen3_5_moe_text")


def quicken(blocks: nn.ModuleList, config: Any, device: torch.device) -> bool:
    """Let blocks compute by fewer and larger kernels where they know them; else they stay as they are.

    Their parameters are asked for at each call, wherever they lie by then. A batch with padding still goes
    the way of transformers.

    Returns:
        Whether they do.
    """
    knows = config.model_type in _KINDS and config.hidden_act == "silu" and all(
        width & (width - 1) == 0 for width in (config.linear_key_head_dim, config.linear_value_head_dim))
    if not knows or not has_triton(device) or importlib.util.find_spec("fla") is None:
        return False
    for block in blocks:
        block.forward = functools.partial(_forward, block)
    return True


def _forward(block: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor],
             attention_mask: Tensor | None = None, **others: Any) -> Tensor:
    """As of `Qwen3_5DecoderLayer`."""
    if attention_mask is not None:
        found: Tensor = type(block).forward(block, hidden_states, position_embeddings=position_embeddings,
                                            attention_mask=attention_mask, **others)
        return found
    normed_BLD, _ = _normed(block.input_layernorm, hidden_states, None)
    if block_type(block) == "linear_attention":
        mixed_BLD = linear_attention(block.linear_attn, normed_BLD)
    else:
        mixed_BLD = full_attention(block.self_attn, normed_BLD, *position_embeddings)
    normed_BLD, stream_BLD = _normed(block.post_attention_layernorm, mixed_BLD, hidden_states)
    if hasattr(block.mlp, "experts"):
        rows_ND = mixed_by_experts(block.mlp, normed_BLD.flatten(0, 1), stream_BLD.flatten(0, 1))
        return rows_ND.view_as(stream_BLD)
    return stream_BLD + _gated_mlp(block.mlp, normed_BLD)


def block_type(block: Any) -> str:
    """linear_attention or full_attention."""
    return "linear_attention" if hasattr(block, "linear_attn") else "full_attention"


def _normed(norm: Any, x_BLD: Tensor, residual_BLD: Tensor | None) -> tuple[Tensor, Tensor]:
    from trainer.quick.norm_kernels import normed

    return normed(x_BLD.contiguous(), residual_BLD, norm.weight, norm.eps)


def _gated_mlp(mlp: Any, x_BLD: Tensor) -> Tensor:
    from trainer.quick.experts_kernels import gated

    rows_ND = x_BLD.flatten(0, 1)
    hidden_NF = gated(F.linear(rows_ND, mlp.gate_proj.weight), F.linear(rows_ND, mlp.up_proj.weight), None)
    return F.linear(hidden_NF, mlp.down_proj.weight).view_as(x_BLD)
