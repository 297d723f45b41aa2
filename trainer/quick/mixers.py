"""Gated DeltaNet by flash-linear-attention's kernels alone, and attention with its norms and rotation in one.

Shapes: B batch, L tokens, D channels, H heads, C channels of a head, W width of the convolution.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def linear_attention(part: Any, x_BLD: Tensor) -> Tensor:
    """What `Qwen3_5GatedDeltaNet` computes of whole sequences without padding.

    Convolutions of queries, keys and values read the projection where it lies; the decay, the sigmoid of
    beta and the norms are in fla's kernels.
    """
    from fla.modules.causal_conv1d import causal_conv1d
    from fla.modules.norm.fused_norm_gate import rms_norm_gated
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    widths = part.key_dim, part.key_dim, part.value_dim
    heads = part.head_k_dim, part.head_k_dim, part.head_v_dim
    mixed_BLC, weight_CW = part.in_proj_qkv(x_BLD), part.conv1d.weight.squeeze(1)
    parts = zip(mixed_BLC.split(widths, dim=-1), weight_CW.split(widths), heads, strict=True)
    query, key, value = (causal_conv1d(own, weight, activation="silu")[0].unflatten(-1, (-1, head))
                         for own, weight, head in parts)
    read_BLHC, _ = chunk_gated_delta_rule(
        query, key, value, g=part.in_proj_a(x_BLD), beta=part.in_proj_b(x_BLD), A_log=part.A_log,
        dt_bias=part.dt_bias, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True)
    gate_BLHC = part.in_proj_z(x_BLD).view_as(read_BLHC)
    normed = rms_norm_gated(read_BLHC, gate_BLHC, part.norm.weight, None, eps=part.norm.variance_epsilon)
    return part.out_proj(normed.flatten(-2))


def full_attention(part: Any, x_BLD: Tensor, cos_BLR: Tensor, sin_BLR: Tensor) -> Tensor:
    """What `Qwen3_5Attention` computes of whole sequences, causally.

    Args:
        part: Of that class.
        x_BLD: Normalised.
        cos_BLR: Of the angles by which the first channels of queries and keys turn.
        sin_BLR: Of the same.
    """
    from trainer.quick.mixer_kernels import gated_by, normed_and_turned

    query_gate = part.q_proj(x_BLD).unflatten(-1, (-1, 2 * part.head_dim))  # (B, L, H, 2 C)
    query, gate = query_gate.chunk(2, dim=-1)
    key, value = (linear(x_BLD).unflatten(-1, (-1, part.head_dim)) for linear in (part.k_proj, part.v_proj))
    query, key = (normed_and_turned(heads, norm.weight, cos_BLR, sin_BLR, norm.eps)
                  for heads, norm in ((query, part.q_norm), (key, part.k_norm)))
    read = F.scaled_dot_product_attention(*(heads.transpose(1, 2) for heads in (query, key, value)),
                                          is_causal=True, scale=part.scaling, enable_gqa=True)
    return part.o_proj(gated_by(read.transpose(1, 2), gate).flatten(-2))
