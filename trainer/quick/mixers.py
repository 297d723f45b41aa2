"""Gated DeltaNet and attention over whole sequences, with what stands around them in few kernels.

Shapes: B batch, L tokens, N of all of them, D channels, H heads, C channels of a head, R of them that turn.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from trainer.quick.rows import Rows, is_fp8, product


def linear_attention(part: Any, rows: Rows, batch: int) -> Tensor:
    """What `Qwen3_5GatedDeltaNet` computes of whole sequences, (N, D).

    The rule itself is flash-linear-attention's. Convolutions of queries, keys and values read the projection
    where it lies, and norm heads where they have them.

    Args:
        part: Of that class.
        rows: Normalised, of B x L tokens.
        batch: B.
    """
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    from trainer.quick.norm_kernels import convolved_heads, gated_norm

    def by_sequence(found: Tensor) -> Tensor:
        return found.unflatten(0, (batch, -1))

    widths = part.key_dim, part.key_dim, part.value_dim
    heads = part.head_k_dim, part.head_k_dim, part.head_v_dim
    mixed_BLC = by_sequence(product(rows, part.in_proj_qkv))
    parts = zip(mixed_BLC.split(widths, dim=-1), part.conv1d.weight.squeeze(1).split(widths), heads,
                (True, True, False), strict=True)
    query, key, value = (convolved_heads(*of) for of in parts)
    decay_NH = -part.A_log.float().exp() * F.softplus(product(rows, part.in_proj_a).float() + part.dt_bias)
    beta_NH = product(rows, part.in_proj_b).sigmoid()
    read_BLHC, _ = chunk_gated_delta_rule(query, key, value, g=by_sequence(decay_NH),
                                          beta=by_sequence(beta_NH))
    read_NHC = read_BLHC.flatten(0, 1)
    normed = gated_norm(read_NHC, product(rows, part.in_proj_z).view_as(read_NHC), part.norm.weight,
                        part.norm.variance_epsilon, is_fp8(part.out_proj))
    return product(normed, part.out_proj)


def full_attention(part: Any, rows: Rows, batch: int, cos_BLR: Tensor, sin_BLR: Tensor) -> Tensor:
    """What `Qwen3_5Attention` computes of whole sequences, causally: (N, D).

    Args:
        part: Of that class.
        rows: Normalised, of B x L tokens.
        batch: B.
        cos_BLR: Of the angles by which the first channels of queries and keys turn.
        sin_BLR: Of the same.
    """
    from trainer.quick.mixer_kernels import gated_by, normed_and_turned

    query_gate, key, value = (
        product(rows, linear).view(batch, -1, linear.out_features // width, width) for linear, width in
        ((part.q_proj, 2 * part.head_dim), (part.k_proj, part.head_dim), (part.v_proj, part.head_dim)))
    query, gate = query_gate.chunk(2, dim=-1)
    query, key = (normed_and_turned(heads, norm.weight, cos_BLR, sin_BLR, norm.eps)
                  for heads, norm in ((query, part.q_norm), (key, part.k_norm)))
    read = F.scaled_dot_product_attention(*(heads.transpose(1, 2) for heads in (query, key, value)),
                                          is_causal=True, scale=part.scaling, enable_gqa=True)
    return product(gated_by(read.transpose(1, 2), gate, is_fp8(part.o_proj)), part.o_proj)
