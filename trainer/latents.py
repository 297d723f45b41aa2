"""Perceiver encoder and decoder between hidden states and latents, and the token decoder.

Layout of the Perceiver block from the authors' earlier code; paper scale gives about 50 M parameters
for each Perceiver, which fits the relayed size. No dropout.

Shapes: B batch, L tokens, K latents, H heads, D channels (hidden state or latent), W inner width,
V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Gain of queries and keys after their RMS norm in a Perceiver. Measured on a prototype of width 192:
# with queries and positions that start aligned, 1.5 lets a query find its token within 100 steps.
_PERCEIVER_GAIN = 1.5
# Amplitude of the queries' sinusoid: they are where the residual stream starts, and at 1 they would
# drown what is read from the context in the first hundreds of steps (measured at width 128). The norm
# before the first attention undoes it there.
_QUERY_AMPLITUDE = 0.3


def sinusoid(length: int, width: int, stretch: float = 1.0) -> Tensor:
    """Sine and cosine of positions 0, stretch, 2 stretch, ...: shape (length, width), width even.

    The longest wave is as long as the sequence. Waves of thousands of positions, as for embeddings of
    any length, would make neighbours nearly equal and blur the first attention over them.
    """
    longest = max(length * stretch / (2 * math.pi), 1.0)
    frequencies = longest ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(length)[:, None] * stretch * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def feed_forward(width: int) -> nn.Sequential:
    """Two linear maps with a factor of 4 and a GELU between them."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class SelfAttention(nn.Module):
    """Attention of a sequence to itself in both directions, with RMS-normalised queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // num_heads)
        self.key_norm = nn.RMSNorm(width // num_heads)
        self.output = nn.Linear(width, width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        parts = self.query_key_value(x_BLW).chunk(3, dim=-1)
        query, key, value = (_split(part, self.num_heads) for part in parts)
        mixed = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value)
        return self.output(_merge(mixed))


class PerceiverBlock(nn.Module):
    """Latents read [context ; latents], then an MLP; separate key and value maps for the two."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.latent_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width)
        self.context_key, self.context_value = nn.Linear(width, width), nn.Linear(width, width)
        self.latent_key, self.latent_value = nn.Linear(width, width), nn.Linear(width, width)
        self.query_norm, self.key_norm = nn.RMSNorm(width // num_heads), nn.RMSNorm(width // num_heads)
        self.output = nn.Linear(width, width)
        self.mlp = feed_forward(width)
        self._align()

    def _align(self) -> None:
        """Let a query start out reading, undamped, the context whose position it shares."""
        self.context_key.load_state_dict(self.query.state_dict())
        nn.init.orthogonal_(self.context_value.weight)
        nn.init.orthogonal_(self.output.weight)
        nn.init.constant_(self.query_norm.weight, _PERCEIVER_GAIN)
        nn.init.constant_(self.key_norm.weight, _PERCEIVER_GAIN)

    def forward(self, latents_BKW: Tensor, context_BLW: Tensor) -> Tensor:
        latents, context = self.latent_norm(latents_BKW), self.context_norm(context_BLW)
        key = torch.cat([self.context_key(context), self.latent_key(latents)], dim=1)
        value = torch.cat([self.context_value(context), self.latent_value(latents)], dim=1)
        mixed = F.scaled_dot_product_attention(
            self.query_norm(_split(self.query(latents), self.num_heads)),
            self.key_norm(_split(key, self.num_heads)), _split(value, self.num_heads))
        latents_BKW = latents_BKW + self.output(_merge(mixed))
        return latents_BKW + self.mlp(self.mlp_norm(latents_BKW))


class Perceiver(nn.Module):
    """Learned queries that read a context of another length and width.

    Queries and context positions are learned; both start as the same sinusoid, stretched when the
    lengths differ, so that a query finds its place in the context from the first step. Without this
    start the decoder noise hides the text from a small model for thousands of steps.
    """

    def __init__(self, num_inputs: int, input_width: int, num_outputs: int, output_width: int,
                 width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.input = nn.Linear(input_width, width)
        nn.init.orthogonal_(self.input.weight)
        self.positions = nn.Parameter(sinusoid(num_inputs, width))
        queries = sinusoid(num_outputs, width, stretch=num_inputs / num_outputs)
        self.queries = nn.Parameter(_QUERY_AMPLITUDE * queries)
        self.blocks = nn.ModuleList(PerceiverBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, output_width)

    def forward(self, inputs: Tensor) -> Tensor:
        context = self.input(inputs.to(self.input.weight.dtype)) + self.positions
        latents = self.queries.expand(len(inputs), -1, -1)
        for block in self.blocks:
            latents = block(latents, context)
        return self.output(self.norm(latents))


class LatentEncoder(nn.Module):
    """Normalised hidden states (B, L, d_h) -> latents (B, K, d_z) of unit RMS each, float32.

    The fixed scale is an open question of the method, answered as in the authors' earlier compressor:
    without it the encoder can escape the decoder noise by growing.
    """

    def __init__(self, hidden_size: int, sequence_length: int, num_latents: int, latent_width: int,
                 width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.perceiver = Perceiver(sequence_length, hidden_size, num_latents, latent_width,
                                   width, num_heads, num_layers)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return unit_rms(self.perceiver(hidden_BLD))


class LatentDecoder(nn.Module):
    """Latents (B, K, d_z), noisy or clean, -> hidden states (B, L, d_h), float32.

    The norm on entry makes clean latents, noisy ones and the denoiser's look alike in scale.
    """

    def __init__(self, hidden_size: int, sequence_length: int, num_latents: int, latent_width: int,
                 width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.perceiver = Perceiver(num_latents, latent_width, sequence_length, hidden_size,
                                   width, num_heads, num_layers)

    def forward(self, z_BKD: Tensor) -> Tensor:
        return self.perceiver(F.layer_norm(z_BKD.float(), z_BKD.shape[-1:])).float()


class TokenDecoder(nn.Module):
    """Hidden states (B, L, d_h) -> logits: a transformer without a mask, then a linear head.

    `features` and `head` are apart so that a loss may look at some positions only.
    """

    def __init__(self, hidden_size: int, sequence_length: int, vocab_size: int,
                 width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.input = nn.Linear(hidden_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(sequence_length, width))
        self.blocks = nn.ModuleList(_TransformerBlock(width, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)

    def features(self, hidden_BLD: Tensor) -> Tensor:
        """What the head reads: (B, L, W)."""
        x_BLW = self.input(hidden_BLD.to(self.input.weight.dtype)) + self.positions
        for block in self.blocks:
            x_BLW = block(x_BLW)
        return self.norm(x_BLW)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.head(self.features(hidden_BLD))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads)
        self.mlp = feed_forward(width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        x_BLW = x_BLW + self.attention(self.attention_norm(x_BLW))
        return x_BLW + self.mlp(self.mlp_norm(x_BLW))


def unit_rms(z: Tensor) -> Tensor:
    """Vectors along the last dimension at a root mean square of 1, float32."""
    return F.rms_norm(z.float(), z.shape[-1:], eps=1e-6)


def _split(x_BLW: Tensor, num_heads: int) -> Tensor:
    """(B, L, W) -> (B, H, L, W / H)."""
    return x_BLW.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _merge(x_BHLC: Tensor) -> Tensor:
    """(B, H, L, C) -> (B, L, H C)."""
    return x_BHLC.transpose(1, 2).flatten(-2)
