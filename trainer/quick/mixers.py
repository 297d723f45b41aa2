"""Gated DeltaNet and attention over whole sequences, with what stands around them in few kernels.

Shapes: B batch, L tokens, D channels, H heads, C channels of a head, W width of the convolution.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def linear_attention(part: Any, x_BLD: Tensor) -> Tensor:
    """What `Qwen3_5GatedDeltaNet` computes of whole sequences without padding.

    The rule itself is flash-linear-attention's. Convolutions of queries, keys and values read the projection
    where it lies, and norm heads where they have them.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    from trainer.quick.norm_kernels import convolved_heads, gated_norm

    widths = part.key_dim, part.key_dim, part.value_dim
    heads = part.head_k_dim, part.head_k_dim, part.head_v_dim
    parts = zip(part.in_proj_qkv(x_BLD).split(widths, dim=-1), part.conv1d.weight.squeeze(1).split(widths),
                heads, (True, True, False), strict=True)
    query, key, value = (convolved_heads(*of) for of in parts)
    decay_BLH = -part.A_log.float().exp() * F.softplus(part.in_proj_a(x_BLD).float() + part.dt_bias)
    beta_BLH = part.in_proj_b(x_BLD).sigmoid()
    read_BLHC, _ = chunk_gated_delta_rule(query, key, value, g=decay_BLH, beta=beta_BLH)
    gate_BLHC = part.in_proj_z(x_BLD).view_as(read_BLHC)
    normed_NC = gated_norm(read_BLHC.flatten(0, 2), gate_BLHC.flatten(0, 2), part.norm.weight,
                           part.norm.variance_epsilon)
    return part.out_proj(normed_NC.view(*x_BLD.shape[:2], -1))


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
