"""Perceiver encoder and decoder between hidden states and latents, and the token decoder.

Layout of the joint Perceiver block from the authors' earlier code; paper scale gives about 50 M
parameters for each Perceiver, which fits the relayed size.

Shapes: B batch, L tokens, K latents, D channels (hidden state or latent), W inner width,
P positions that the vocabulary loss looks at, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import (
    AttentionShape,
    BlockStack,
    CrossAttention,
    MultiHead,
    RowNorm,
    SelfAttention,
    TransformerBlock,
    plain_mlp,
    sinusoid,
)
from trainer.config import ModelConfig, TrainConfig
from trainer.latent_scale import latent_scale
from trainer.token_loss import VocabularyHead

# Gain of queries and keys after their RMS norm in a Perceiver. Measured on a prototype of width 192:
# with queries and positions that start aligned, 1.5 lets a query find its token within 100 steps.
_PERCEIVER_GAIN = 1.5
# Amplitude of the queries' sinusoid: they are where the residual stream starts, and at 1 they would
# drown what is read from the context in the first hundreds of steps (measured at width 128). The norm
# before the first attention undoes it there.
_QUERY_AMPLITUDE = 0.3


class JointBlock(MultiHead):
    """Latents read [context ; latents], then an MLP; separate key and value maps for the two."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        width = shape.width
        self.latent_norm, self.context_norm, self.mlp_norm = (RowNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width)
        self.context_key, self.context_value = nn.Linear(width, width), nn.Linear(width, width)
        self.latent_key, self.latent_value = nn.Linear(width, width), nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.mlp = plain_mlp(width, shape.dropout)
        _align(self.query, self.context_key, self.context_value, self.output, self)

    def forward(self, latents_BKW: Tensor, context_BLW: Tensor) -> Tensor:
        latents, context = self.latent_norm(latents_BKW), self.context_norm(context_BLW)
        key = torch.cat([self.context_key(context), self.latent_key(latents)], dim=1)
        value = torch.cat([self.context_value(context), self.latent_value(latents)], dim=1)
        latents_BKW = latents_BKW + self.output(self.mix(self.query(latents), key, value))
        return latents_BKW + self.mlp(self.mlp_norm(latents_BKW))


class SplitBlock(nn.Module):
    """Latents read each other, then the context, then an MLP."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.context_norm, self.mlp_norm = (
            RowNorm(shape.width) for _ in range(4))
        self.self_attention, self.cross_attention = SelfAttention(shape), CrossAttention(shape)
        self.mlp = plain_mlp(shape.width, shape.dropout)
        cross = self.cross_attention
        _align(cross.query, cross.key, cross.value, cross.output, cross)

    def forward(self, latents_BKW: Tensor, context_BLW: Tensor) -> Tensor:
        latents_BKW = latents_BKW + self.self_attention(self.self_norm(latents_BKW))
        read = self.cross_attention(self.cross_norm(latents_BKW), self.context_norm(context_BLW))
        latents_BKW = latents_BKW + read
        return latents_BKW + self.mlp(self.mlp_norm(latents_BKW))


def _align(query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, heads: MultiHead) -> None:
    """Let a query start out reading, undamped, the context whose position it shares."""
    if heads.shape.qk_norm:
        nn.init.constant_(heads.query_norm.weight, _PERCEIVER_GAIN)
        nn.init.constant_(heads.key_norm.weight, _PERCEIVER_GAIN)
    else:
        # Without the norm the map gives queries their size; it starts with variance 1 / (3 width).
        with torch.no_grad():
            query.weight.mul_(_PERCEIVER_GAIN * 3**0.5)
    key.load_state_dict(query.state_dict())
    _orthogonal(value)
    _orthogonal(output)


def _orthogonal(linear: nn.Linear) -> None:
    """Let a map keep lengths; it has none without memory, where torch 2.11 would load its compiler for it."""
    if not linear.weight.is_meta:
        nn.init.orthogonal_(linear.weight)


class Perceiver(nn.Module):
    """Learned queries that read a context of another length and width.

    Queries and context positions are learned; both start as the same sinusoid, stretched when the
    lengths differ, so that a query finds its place in the context from the first step. Without this
    start the decoder noise hides the text from a small model for thousands of steps.

    Blocks of the split kind come without projections between equal widths, and then without a last
    norm: it would fix the length of what is predicted.
    """

    def __init__(self, inputs: tuple[int, int], outputs: tuple[int, int], num_layers: int,
                 config: TrainConfig) -> None:
        super().__init__()
        sizes, (num_inputs, input_width), (num_outputs, output_width) = config.model, inputs, outputs
        width, is_joint = sizes.width, sizes.perceiver_block == "joint"
        self.input: nn.Module = nn.Identity()
        if is_joint or input_width != width:
            self.input = nn.Linear(input_width, width)
            _orthogonal(self.input)
        self.positions = nn.Parameter(sinusoid(num_inputs, width))
        self.queries = nn.Parameter(sinusoid(num_outputs, width, num_inputs / num_outputs, _QUERY_AMPLITUDE))
        block, shape = JointBlock if is_joint else SplitBlock, attention_shape(sizes)
        self.blocks = BlockStack((block(shape) for _ in range(num_layers)), config.activation_checkpointing)
        projects = is_joint or output_width != width
        self.norm = RowNorm(width) if projects else nn.Identity()
        self.output = nn.Linear(width, output_width) if projects else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        context = self.input(inputs.to(self.positions.dtype)) + self.positions
        latents = self.blocks(self.queries.expand(len(inputs), -1, -1), context)
        return self.output(self.norm(latents))


class LatentEncoder(nn.Module):
    """Normalised hidden states (B, L, d_h) -> latents (B, K, d_z) at their scale, float32."""

    def __init__(self, config: TrainConfig, hidden_size: int) -> None:
        super().__init__()
        sizes = config.model
        self.perceiver = Perceiver((config.data.sequence_length, hidden_size),
                                   (config.num_latents, sizes.latent_width), sizes.encoder_layers, config)
        self.scale = latent_scale(sizes)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.scale(self.perceiver(hidden_BLD))


class LatentDecoder(nn.Module):
    """Latents (B, K, d_z), noisy or clean, -> hidden states (B, L, d_h), float32.

    The norm on entry makes clean latents, noisy ones and the denoiser's look alike in scale.
    """

    def __init__(self, config: TrainConfig, hidden_size: int) -> None:
        super().__init__()
        sizes = config.model
        self.perceiver = Perceiver((config.num_latents, sizes.latent_width),
                                   (config.data.sequence_length, hidden_size), sizes.decoder_layers, config)

    def forward(self, z_BKD: Tensor) -> Tensor:
        return self.perceiver(F.layer_norm(z_BKD.float(), z_BKD.shape[-1:])).float()


class TokenDecoder(nn.Module):
    """Hidden states (B, L, d_h) -> logits: a transformer without a mask, then a linear head."""

    def __init__(self, config: TrainConfig, hidden_size: int, num_rows: int) -> None:
        super().__init__()
        sizes = config.model
        width, gated = sizes.token_decoder_width, sizes.token_decoder_mlp == "gated"
        shape = AttentionShape(width, sizes.token_decoder_heads, sizes.qk_norm, sizes.dropout)
        self.input = nn.Linear(hidden_size, width) if hidden_size != width else nn.Identity()
        self.positions = nn.Parameter(torch.empty(config.data.sequence_length, width))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = BlockStack((TransformerBlock(shape, gated) for _ in range(sizes.token_decoder_layers)),
                                 config.activation_checkpointing)
        self.norm = RowNorm(width)
        self.head = VocabularyHead(width, num_rows)

    def features(self, hidden_BLD: Tensor) -> Tensor:
        """What the head reads: (B, L, W)."""
        x_BLW = self.input(hidden_BLD.to(self.positions.dtype)) + self.positions
        return self.norm(self.blocks(x_BLW))

    def forward(self, hidden_BLD: Tensor, positions_BP: Tensor | None = None,
                targets_BP: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of all positions; or the mean cross-entropy at some, given their targets.

        Targets are rows of the head, -100 where nothing is to be counted.
        """
        features_BLW = self.features(hidden_BLD)
        if positions_BP is None:
            return self.head(features_BLW)
        chosen = features_BLW.gather(1, positions_BP[..., None].expand(-1, -1, features_BLW.shape[-1]))
        return self.head(chosen, targets_BP)


def attention_shape(sizes: ModelConfig) -> AttentionShape:
    """Of Perceivers and denoiser."""
    return AttentionShape(sizes.width, sizes.num_heads, sizes.qk_norm, sizes.dropout)
