"""What one would take otherwise: an autoregressive transformer of as many parameters, token after token.

Keys and values keep their place in memory, so that on a GPU each token is one replay of one CUDA graph. Its
weights are random: speed does not depend on them.

Shapes: B batch, W width, H heads, L tokens, C channels of a head.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import AttentionShape, TransformerBlock
from trainer.bench_models import fill, shape_behind
from trainer.bench_timing import over_after, time_path
from trainer.command import talk
from trainer.config import ModelConfig
from trainer.fast.graph import quickest_replay
from trainer.fast.weights import dtype_of, usual_mode
from trainer.generate import Generator, Prompt
from trainer.sizes import generation_parameters

_START = 0  # the id that a row begins with
_TIMED, _MOST_S = 10, 30.0  # of `speeds`: rows of batches at most, and seconds


class Transformer(nn.Module):
    """Blocks as of the token decoder, of the plain kind, under a causal mask, with a head over all ids."""

    def __init__(self, num_rows: int, layers: int, length: int, shape: AttentionShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_rows, shape.width)
        self.positions = nn.Parameter(torch.zeros(length, shape.width))
        self.blocks = nn.ModuleList(TransformerBlock(shape) for _ in range(layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, num_rows)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Logits of what follows each token, all positions at once: what `Decoding` does by parts."""
        x_BLW = self.embedding(tokens_BL) + self.positions[:tokens_BL.shape[1]]
        for block in self.blocks:
            query, key, value = parts_of(block, x_BLW)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x_BLW = added(block, x_BLW, mixed)
        return self.head(self.norm(x_BLW))


def parts_of(block: TransformerBlock, x_BLW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, L, C) of a block's self-attention."""
    attention = block.attention
    query, key, value = (
        part.unflatten(-1, (attention.shape.num_heads, -1)).transpose(1, 2)
        for part in attention.query_key_value(block.attention_norm(x_BLW)).chunk(3, dim=-1))
    return attention.query_norm(query), attention.key_norm(key), value


def added(block: TransformerBlock, x_BLW: Tensor, mixed_BHLC: Tensor) -> Tensor:
    """The block's output, given what its heads have read."""
    x_BLW = x_BLW + block.attention.output(mixed_BHLC.transpose(1, 2).flatten(-2))
    return x_BLW + block.mlp(block.mlp_norm(x_BLW))


class Decoding:
    """Rows of a batch of one size, by the likeliest token each time. A `Path` of the benchmark.

    Args:
        model: On its device, in the dtype to compute in.
        batch: Rows at once.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, batch: int) -> None:
        self._model = model
        device, length = model.positions.device, len(model.positions)
        shape = model.blocks[0].attention.shape
        size = len(model.blocks), batch, shape.num_heads, length, shape.width // shape.num_heads
        self._keys, self._values = (torch.zeros(size, device=device, dtype=model.positions.dtype)
                                    for _ in range(2))
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._latest_B1 = torch.full((batch, 1), _START, device=device)
        self._drawn_BL = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self._places_L = torch.arange(length, device=device)
        self._go_on = quickest_replay(self._step, device, "the autoregressive transformer", talk)

    @torch.inference_mode()
    def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> Tensor:
        """Token ids (num, L) after a first one that the seed chooses; `num` is the batch size."""
        self._at.zero_()
        self._latest_B1.fill_(seed % self._model.head.out_features)
        for _ in range(self._drawn_BL.shape[1]):
            self._go_on()
        return self._drawn_BL.clone()

    def _step(self) -> None:
        """One more token of each row. What lies behind it in the kept keys and values is not read."""
        model, at = self._model, self._at
        x_B1W = model.embedding(self._latest_B1) + model.positions[at]
        mask_1L = (self._places_L <= at)[None]
        for number, block in enumerate(model.blocks):
            query, key, value = parts_of(block, x_B1W)
            keys, values = self._keys[number], self._values[number]
            keys.index_copy_(2, at, key)
            values.index_copy_(2, at, value)
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask_1L)
            x_B1W = added(block, x_B1W, mixed)
        self._latest_B1.copy_(model.head(model.norm(x_B1W)).argmax(dim=-1))
        self._drawn_BL.index_copy_(1, at, self._latest_B1)
        at += 1


def num_layers(config: ModelConfig, num_parameters: int, num_rows: int) -> int:
    """Blocks of 12 W^2 that, with a head, come nearest to a number of parameters: at least one."""
    width = config.width
    return max(1, round((num_parameters - num_rows * width) / (12 * width**2)))


def comparable(generator: Generator, num_parameters: int, dtype: torch.dtype) -> Transformer:
    """A transformer as wide as a generator's model, with as many parameters as generate there.

    Args:
        generator: Whose width, heads, ids and length it has.
        num_parameters: All that its generation reads.
        dtype: To compute in.
    """
    sizes, rows = generator.config.model, generator.model.token_decoder.head.out_features
    shape = AttentionShape(sizes.width, sizes.num_heads, sizes.qk_norm)
    with torch.device("meta"):
        model = Transformer(rows, num_layers(sizes, num_parameters, rows),
                            generator.config.data.sequence_length, shape)
    model = model.to(dtype).to_empty(device=generator.model.hidden_mean.device)
    fill(model, generator.config.seed)
    return model.requires_grad_(False).eval()


def parameters_read(generator: Generator) -> int:
    """All parameters that a generator reads to generate."""
    model = generator.model
    num_seen = None if model.token_ids is None else len(model.token_ids)
    return sum(generation_parameters(generator.config, shape_behind(model), num_seen).values())


def speeds(generator: Generator, batches: Iterable[int]) -> dict[str, float]:
    """Tokens/s of a transformer as large as a generator, at some batch sizes; the keys are a frontier's."""
    device, length = generator.model.hidden_mean.device, generator.config.data.sequence_length
    model = comparable(generator, parameters_read(generator), dtype_of(usual_mode(device)))
    read = [weight.numel() for name, weight in model.named_parameters() if not name.startswith("embedding")]
    found: dict[str, float] = {"parameters": sum(read)}
    for batch in batches:
        timed = time_path(Decoding(model, batch), batch, length, _TIMED, device, over_after(_MOST_S))
        found[f"tokens_per_s_batch_{batch}"] = timed.tokens_per_s
    return found
