"""What stands in for a frozen encoder and its text in a benchmark of training: real sizes, random numbers.

A random mixture's router sends tokens to all experts about alike; a trained one's experts are unequal, which
kernels for many small products feel.

Shapes: B batch, L tokens, D channels of a hidden state, N sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.batches import Layout
from trainer.chance import keyed_generator
from trainer.config import TokenEncoderConfig, TrainConfig, WeightFormat
from trainer.contract import ConfigError
from trainer.encoder_shape import KNOWN_CONFIGS, EncoderShape, blocks_to_keep
from trainer.sizes import head_rows
from trainer.token_encoder import TokenEncoder
from trainer.trunk import empty_trunk, family_of, truncated

_NUM_SEQUENCES = 1024
_END_OF_TEXT = 0


class RandomWeights:
    """A truncated trunk at its true sizes, each tensor drawn where it computes: `encoder_weights.Weights`."""

    folder = Path()
    format: WeightFormat = "bf16"
    commit = None
    source = "random"

    def __init__(self, name: str, layer: int, seed: int, device: torch.device) -> None:
        from transformers import AutoConfig

        if name not in KNOWN_CONFIGS:
            raise ConfigError(f"the sizes of {name} are not known", place="token_encoder.name",
                              fix="name another --preset")
        values = dict(KNOWN_CONFIGS[name])
        whole = AutoConfig.for_model(values.pop("model_type"), **values)
        self.config = truncated(whole, blocks_to_keep(layer, whole.num_hidden_layers, name))
        self._seed, self._device, self._hollow = seed, device, empty_trunk(self.config)

    def outer(self) -> dict[str, Tensor]:
        family = family_of(self.config)
        return {name: self._drawn(name, parameter, torch.bfloat16).cpu()  # as if they came from a file
                for name, parameter in self._hollow.named_parameters()
                if not name.startswith((family.blocks, *family.after))}

    def block(self, index: int, dtype: torch.dtype) -> dict[str, Tensor]:
        block = family_of(self.config).block_list(self._hollow)[index]
        return {name: self._drawn(f"{index}.{name}", parameter, dtype)
                for name, parameter in block.named_parameters()}

    def _drawn(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Maps keep the size of what goes through them; gains are 1, biases and decays 0."""
        made = torch.empty(like.shape, dtype=dtype, device=self._device)
        if like.ndim == 1:
            return made.fill_(float("norm" in name.lower() or "ln_" in name))
        generator = keyed_generator(self._device, "bench", self._seed, name)
        return made.normal_(0, like.shape[-1] ** -0.5, generator=generator)


@dataclass(frozen=True)
class _NoTokenizer:
    """Of a tokenizer what an encoder asks for: how many ids there are, and which begins a text."""

    num_rows: int
    cls_token_id: int = _END_OF_TEXT
    bos_token_id: int = _END_OF_TEXT
    eos_token_id: int = _END_OF_TEXT
    sep_token_id: int = _END_OF_TEXT

    def get_vocab(self) -> dict[str, int]:
        return {"<|endoftext|>": _END_OF_TEXT, "": self.num_rows - 1}


def random_encoder(config: TokenEncoderConfig, seed: int, device: torch.device) -> TokenEncoder:
    """The trainer's own encoder with random weights, loaded.

    Raises:
        ConfigError: Its sizes are not known.
        torch.OutOfMemoryError: There is no room for it.
    """
    weights: Any = RandomWeights(config.name, config.layer, seed, device)
    encoder = TokenEncoder(weights, _NoTokenizer(weights.config.vocab_size), config, device, device)
    encoder.load()
    return encoder


class GivenStates:
    """An encoder that has its answer already: the same normal hidden states for all tokens."""

    is_causal = True
    is_collective = False
    first_measured = 0

    def __init__(self, shape: EncoderShape, config: TrainConfig, device: torch.device) -> None:
        self.name = config.token_encoder.name
        self.hidden_size, self.vocab_size = shape.hidden_size, shape.vocab_size
        size = config.micro_batch_size, config.data.sequence_length, shape.hidden_size
        self._h_BLD = torch.randn(size, device=device)

    def hidden_states(self, tokens_BL: Tensor, _dtype: torch.dtype | None = None) -> Tensor:
        """See `TokenEncoder`."""
        return self._h_BLD[:len(tokens_BL)]


class RandomText:
    """Sequences of random ids, all there: see `batches.Sequences`."""

    layout = Layout((_NUM_SEQUENCES,), window_shards=1)

    def __init__(self, config: TrainConfig, shape: EncoderShape, seed: int) -> None:
        self.seen_ids = np.arange(head_rows(config, shape), dtype=np.uint32)
        rng = np.random.default_rng([seed, config.data.sequence_length])
        self._rows_NL = rng.choice(self.seen_ids, (_NUM_SEQUENCES, config.data.sequence_length))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Sequences by number: uint32 (n, L)."""
        return self._rows_NL[indices]

    def expect(self, shards: Sequence[int]) -> None:
        """All are here."""
