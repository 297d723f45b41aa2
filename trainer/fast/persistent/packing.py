"""The trainer's own sublayers as the persistent kernel reads them: matrices in bf16 or e4m3, norms folded
into what follows them, all else float32."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.attention import CrossAttention, GatedMlp, MultiHead, SelfAttention, TransformerBlock
from trainer.fast.persistent.layout import head_rows, pair_tiles, tile_tiles
from trainer.fast.persistent.phases import Kind, Map, Sublayer
from trainer.fast.persistent.shape import Shape
from trainer.model import LatentDiffusionLM
from trainer.quantise import decode_fp8, encode_fp8


class Packed(NamedTuple):
    """What both kernels read of a model, whatever the sampling: sublayers in order, maps of the latents."""

    denoiser: list[Sublayer]
    latents: list[Map]
    latent_decoder: list[Sublayer]
    token_decoder: list[Sublayer]


def packed(model: LatentDiffusionLM, shape: Shape) -> Packed:
    """A copy of the weights that generate, but for the head's."""
    layers = list(enumerate(model.decoder.perceiver.blocks, 1))
    return Packed(
        _transformer(model.denoiser.blocks, shape),
        [keys_values(part.cross_attention, part.context_norm, number, shape) for number, part in layers],
        [sublayer for number, part in layers for sublayer in (
            self_attention(part.self_attention, part.self_norm, shape),
            cross_attention(part.cross_attention, part.cross_norm, number, shape),
            mlp(part.mlp, part.mlp_norm, shape))],
        _transformer(model.token_decoder.blocks, shape))


def _transformer(blocks: Iterable[TransformerBlock], shape: Shape) -> list[Sublayer]:
    return [sublayer for part in blocks for sublayer in (
        self_attention(part.attention, part.attention_norm, shape), mlp(part.mlp, part.mlp_norm, shape))]


def self_attention(attention: SelfAttention, norm: nn.LayerNorm, shape: Shape) -> Sublayer:
    """Of the stream to itself."""
    qkv = _normed(Kind.QKV, attention.query_key_value, norm, shape, head_rows(shape, 3),
                  (_gain(attention, shape),))
    return Sublayer(norm.weight.float(), (qkv, _attended(attention.output)))


def cross_attention(attention: CrossAttention, norm: nn.LayerNorm, context: int, shape: Shape) -> Sublayer:
    """Of the stream to a context, whose keys and values are made elsewhere."""
    query = _normed(Kind.QUERY, attention.query, norm, shape, head_rows(shape, 1), (_gain(attention, shape),))
    return Sublayer(norm.weight.float(), (query, _attended(attention.output, context)))


def mlp(part: nn.Sequential | GatedMlp, norm: nn.LayerNorm, shape: Shape) -> Sublayer:
    """Plain with GELU, or gated with SiLU."""
    if isinstance(part, GatedMlp):
        up = (_normed(Kind.GATE, part.gate, norm, shape), _normed(Kind.GATED_UP, part.up, norm, shape))
        return Sublayer(norm.weight.float(), (*up, _down(part.down, shape)))
    return Sublayer(norm.weight.float(), (_normed(Kind.UP, part[0], norm, shape), _down(part[2], shape)))


def keys_values(attention: CrossAttention, norm: nn.LayerNorm, context: int, shape: Shape) -> Map:
    """Of a context that is normalised, but for gain and shift."""
    weight = torch.cat([attention.key.weight, attention.value.weight]).float()
    bias = torch.cat([attention.key.bias, attention.value.bias]).float() + weight @ norm.bias.float()
    rows = head_rows(shape, 2).to(weight.device)
    matrix, scale, _ = _held((weight * norm.weight.float())[rows], shape)
    return Map(Kind.KEYS_VALUES, pair_tiles(matrix), (bias[rows], torch.zeros_like(bias)), context, scale)


def _normed(kind: Kind, linear: nn.Linear, norm: nn.LayerNorm, shape: Shape, rows: Tensor | None = None,
            columns: tuple[Tensor, ...] = ()) -> Map:
    """The kernel writes g x only: the norm's shift is in the bias, W g in another number of each column."""
    weight, bias = linear.weight.float(), linear.bias.float()
    bias = bias + weight @ norm.bias.float()
    if rows is not None:
        weight, bias = weight[rows.to(weight.device)], bias[rows.to(weight.device)]
    matrix, scale, held = _held(weight, shape)
    return Map(kind, pair_tiles(matrix), (bias, held @ norm.weight.float(), *columns), scale=scale)


def _attended(linear: nn.Linear, context: int = 0) -> Map:
    """In bf16 always: it multiplies what is mixed, which is in registers."""
    return Map(Kind.ATTEND, tile_tiles(linear.weight.bfloat16()), (linear.bias.float(),), context)


def _down(linear: nn.Linear, shape: Shape) -> Map:
    matrix, scale, _ = _held(linear.weight.float(), shape)
    return Map(Kind.DOWN, tile_tiles(matrix), (linear.bias.float(),), scale=scale)


def _held(weight: Tensor, shape: Shape) -> tuple[Tensor, Tensor | None, Tensor]:
    """A matrix as the kernel reads it, the scale of its rows, and what the two stand for in float32."""
    if not shape.is_fp8:
        return (rounded := weight.bfloat16()), None, rounded.float()
    codes, held = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
    scale = weight.new_empty(len(weight))
    encode_fp8(weight, codes.view(-1), scale)
    decode_fp8(codes.view(-1), scale, held)
    return codes.view(torch.uint8), scale, held


def _gain(heads: MultiHead, shape: Shape) -> Tensor:
    """Of queries: that of keys and the scale of scores are in it."""
    return heads.query_norm.weight.float() * heads.key_norm.weight.float() * shape.head_width**-0.5
