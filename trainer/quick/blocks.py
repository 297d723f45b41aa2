"""Blocks of Qwen3.5 and 3.6 that compute what transformers' do, with the kernels of this package.

Shapes: B batch, L tokens, N of all of them, D channels.
"""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn

from trainer.fast.devices import has_triton
from trainer.quick.experts import mixed_by_experts
from trainer.quick.mixers import full_attention, linear_attention
from trainer.quick.rows import Rows, is_fp8, product

_KINDS = ("qwen3_5_text", "qwen3_5_moe_text")


def why_not_quick(config: Any, device: torch.device) -> str | None:
    """What keeps a trunk's blocks from computing by fewer and larger kernels; None: they can."""
    if config.model_type not in _KINDS or config.hidden_act != "silu":
        return f"its blocks are of the kind {config.model_type}"
    if any(width & (width - 1) for width in (config.linear_key_head_dim, config.linear_value_head_dim)):
        return "its linear heads are not as wide as a power of two"
    if not has_triton(device):
        return f"Triton's kernels do not run on {device}"
    return "flash-linear-attention is missing" if importlib.util.find_spec("fla") is None else None


def quicken(blocks: nn.ModuleList) -> None:
    """Let blocks of which `why_not_quick` says nothing compute so.

    Their parameters are asked for at each call, wherever they lie and in whatever they are by then. Masks are
    not looked at: sequences are padded behind their end, where nothing that counts sees it.
    """
    # fla's kernels are tuned once on a machine, not once a process.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    for block in blocks:
        block.forward = functools.partial(_forward, block)


def _forward(block: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor],
             **_masks: Any) -> Tensor:
    """As of `Qwen3_5DecoderLayer`."""
    batch, x_ND = len(hidden_states), hidden_states.flatten(0, 1).contiguous()
    if hasattr(block, "linear_attn"):
        rows, _ = _normed(block.input_layernorm, x_ND, None, block.linear_attn.in_proj_qkv)
        mixed_ND = linear_attention(block.linear_attn, rows, batch)
    else:
        rows, _ = _normed(block.input_layernorm, x_ND, None, block.self_attn.q_proj)
        mixed_ND = full_attention(block.self_attn, rows, batch, *position_embeddings)
    mlp = block.mlp
    is_mixture = hasattr(mlp, "experts")
    rows, stream_ND = _normed(block.post_attention_layernorm, mixed_ND, x_ND,
                              mlp.shared_expert.up_proj if is_mixture else mlp.up_proj)
    found_ND = (mixed_by_experts(mlp, rows, stream_ND) if is_mixture
                else stream_ND + _gated_mlp(mlp, rows))
    return found_ND.view_as(hidden_states)


def _normed(norm: Any, x_ND: Tensor, residual_ND: Tensor | None, reader: nn.Linear) -> tuple[Rows, Tensor]:
    """Rows as a map behind the norm reads them, and the stream."""
    from trainer.quick.norm_kernels import normed

    return normed(x_ND, residual_ND, norm.weight, norm.eps, is_fp8(reader))


def _gated_mlp(mlp: Any, rows: Rows) -> Tensor:
    from trainer.quick.experts_kernels import gated

    hidden = gated(product(rows, mlp.gate_proj), product(rows, mlp.up_proj), None, is_fp8(mlp.down_proj))
    return product(hidden, mlp.down_proj)
