"""The trainer's own sublayers as the persistent kernel reads them: matrices in bf16, norms folded into what
follows them, all else float32."""

import torch
from torch import Tensor, nn

from trainer.attention import CrossAttention, GatedMlp, MultiHead, SelfAttention
from trainer.fast.persistent.layout import head_rows, pair_tiles, tile_tiles
from trainer.fast.persistent.phases import Kind, Map, Sublayer
from trainer.fast.persistent.shape import Shape


def self_attention(attention: SelfAttention, norm: nn.LayerNorm, shape: Shape) -> Sublayer:
    """Of the stream to itself."""
    qkv = _normed(Kind.QKV, attention.query_key_value, norm, head_rows(shape, 3), (_gain(attention, shape),))
    return Sublayer(norm.weight.float(), (qkv, _into_stream(Kind.ATTEND, attention.output)))


def cross_attention(attention: CrossAttention, norm: nn.LayerNorm, context: int, shape: Shape) -> Sublayer:
    """Of the stream to a context, whose keys and values are made elsewhere."""
    query = _normed(Kind.QUERY, attention.query, norm, head_rows(shape, 1), (_gain(attention, shape),))
    return Sublayer(norm.weight.float(), (query, _into_stream(Kind.ATTEND, attention.output, context)))


def mlp(part: nn.Sequential | GatedMlp, norm: nn.LayerNorm) -> Sublayer:
    """Plain with GELU, or gated with SiLU."""
    if isinstance(part, GatedMlp):
        up = (_normed(Kind.GATE, part.gate, norm), _normed(Kind.GATED_UP, part.up, norm))
        return Sublayer(norm.weight.float(), (*up, _into_stream(Kind.DOWN, part.down)))
    return Sublayer(norm.weight.float(), (_normed(Kind.UP, part[0], norm), _into_stream(Kind.DOWN, part[2])))


def keys_values(attention: CrossAttention, norm: nn.LayerNorm, context: int, shape: Shape) -> Map:
    """Of a context that is normalised, but for gain and shift."""
    weight = torch.cat([attention.key.weight, attention.value.weight]).float()
    bias = torch.cat([attention.key.bias, attention.value.bias]).float() + weight @ norm.bias.float()
    rows = head_rows(shape, 2).to(weight.device)
    matrix = pair_tiles((weight * norm.weight.float()).bfloat16()[rows])
    return Map(Kind.KEYS_VALUES, matrix, (bias[rows], torch.zeros_like(bias)), context)


def folded(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Bias with the norm's shift in it, and W g: what a map behind a norm needs when only g x is written."""
    weight = linear.weight.float()
    return linear.bias.float() + weight @ norm.bias.float(), weight @ norm.weight.float()


def _normed(kind: Kind, linear: nn.Linear, norm: nn.LayerNorm, rows: Tensor | None = None,
            columns: tuple[Tensor, ...] = ()) -> Map:
    bias, colsum = folded(linear, norm)
    matrix = linear.weight.bfloat16()
    if rows is not None:
        rows = rows.to(matrix.device)
        bias, colsum, matrix = bias[rows], colsum[rows], matrix[rows]
    return Map(kind, pair_tiles(matrix), (bias, colsum, *columns))


def _into_stream(kind: Kind, linear: nn.Linear, context: int = 0) -> Map:
    return Map(kind, tile_tiles(linear.weight.bfloat16()), (linear.bias.float(),), context)


def _gain(heads: MultiHead, shape: Shape) -> Tensor:
    """Of queries: that of keys and the scale of scores are in it."""
    return heads.query_norm.weight.float() * heads.key_norm.weight.float() * shape.head_width**-0.5
