"""What one would take otherwise, with trained weights: an autoregressive model that stands beside ours.

Any causal language model of transformers, token after token at temperature 1. Keys and values keep their
place in memory, so that on a GPU each token is one replay of one CUDA graph. As with ours, a text goes on
behind its end with the next one, and what is drawn depends on the seed and the text's number alone.

Shapes: B batch, L tokens, V ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.causal_lm import CausalLM, load_causal_lm
from trainer.contract import ConfigError
from trainer.fast.graph import quickest_replay
from trainer.fast.noise import normals, sample_keys
from trainer.frontier import timed_rows
from trainer.generate import to_text

OPTION = "--autoregressive"
EXAMPLE = "openai-community/gpt2"
_PLAIN_LAYERS = "StaticLayer", "StaticSlidingWindowLayer"


@dataclass(frozen=True)
class Autoregressive:
    """A model that writes rows of one length; a generator as far as timing and judging go.

    Attributes:
        lm: Model and tokenizer.
        length: L, tokens of a row: the one that it starts from is not among them.
        batch_size: Most rows at once.
        say: Hears what does not work, in a sentence.
    """

    lm: CausalLM
    length: int
    batch_size: int
    say: Callable[[str], None]
    _decoding: dict[int, "Decoding"] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tokenizer(self) -> Any:
        """Of its rows."""
        return self.lm.tokenizer

    @property
    def end_of_text_id(self) -> int:
        """Where a text ends; -1, which no token is, where it has no such id."""
        end = self.tokenizer.eos_token_id
        return -1 if end is None else int(end)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.lm.model.parameters()).dtype

    @property
    def num_parameters(self) -> int:
        """All that it reads to write: of an embedding that is no head too, only rows are read."""
        model = self.lm.model
        total = sum(weight.numel() for weight in model.parameters())
        embedding = model.get_input_embeddings().weight
        is_head = model.get_output_embeddings().weight is embedding
        return total if is_head else total - embedding.numel()

    def tokens(self, num: int, seed: int) -> Tensor:
        """Token ids (num, L), int64, in batches of one size, so that one graph makes them."""
        size = min(num, self.batch_size)
        if size not in self._decoding:
            self._decoding[size] = Decoding(self.lm, size, self.length, self.say)
        rows = [self._decoding[size].rows(chances_of(seed, range(first, first + size), self.length,
                                                     self.lm.model.device))
                for first in range(0, num, size)]
        return torch.cat(rows)[:num]


def load_autoregressive(name: str, device: torch.device, length: int, batch_size: int,
                        say: Callable[[str], None]) -> Autoregressive:
    """Load a model that can write rows of a length. Raises ConfigError: it cannot be had, or cannot do it."""
    lm = load_causal_lm(name, device, role="the model", option=OPTION, example=EXAMPLE)
    if lm.most_tokens is not None and lm.most_tokens < length:
        raise ConfigError(f"{name} has {lm.most_tokens} positions, but texts here are of {length} tokens",
                          place=OPTION, fix="name a model that was trained on rows as long")
    if _start_id(lm) is None:
        raise ConfigError(f"{name} has no token that a text starts from", place=OPTION,
                          fix="set bos_token_id in its config.json")
    _check_layers(lm, length)
    return Autoregressive(lm, length, batch_size, say)


def written(other: Autoregressive, num: int, seed: int) -> dict[str, Any]:
    """Rows of such a model in the form that a frontier's samplings have, and what it is."""
    rows = timed_rows(other, num, min(other.batch_size, num), seed, f"{other.lm.name}, token after token",
                      other.say)
    return {"name": other.lm.name, "revision": other.lm.revision, "parameters": other.num_parameters,
            "random_weights": False, "setting": {"temperature": 1.0}, "seed": seed,
            "dtype": str(other.dtype).removeprefix("torch."), **rows,
            "texts": to_text(other.tokenizer, rows["tokens"], other.end_of_text_id)}


def chances_of(seed: int, indices: Sequence[int], length: int, device: torch.device) -> Tensor:
    """Even numbers (B, L) in (0, 1), float64, of some texts of a seed: one for each token."""
    return torch.special.ndtr(normals(sample_keys(seed, indices, device), 0, (length,)).double())


class Decoding:
    """Rows of a batch of one size.

    Args:
        lm: Model and tokenizer.
        batch: Rows at once.
        length: Tokens of each.
        say: Hears why there is no graph, where there is none.
    """

    @torch.inference_mode()
    def __init__(self, lm: CausalLM, batch: int, length: int, say: Callable[[str], None]) -> None:
        self._model, self._start = lm.model, int(_start_id(lm))  # type: ignore[arg-type]
        device = lm.model.device
        self._cache = _cache(lm, length)
        self._is_drawn_V = _drawn_ids(lm, device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._latest_B1 = torch.full((batch, 1), self._start, device=device)
        self._chances_BL = torch.full((batch, length), 0.5, dtype=torch.float64, device=device)
        self._drawn_BL = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self._places_L = torch.arange(length, device=device)
        self._step()  # makes room for keys and values, which neither a graph nor a compiler can
        self._go_on = quickest_replay(self._step, device, "the autoregressive model", say)

    @torch.inference_mode()
    def rows(self, chances_BL: Tensor) -> Tensor:
        """Token ids (B, L): at each place the one into whose share of all chances the number falls."""
        self._cache.reset()
        self._at.zero_()
        self._latest_B1.fill_(self._start)
        self._chances_BL.copy_(chances_BL)
        for _ in range(self._drawn_BL.shape[1]):
            self._go_on()
        return self._drawn_BL.clone()

    def _step(self) -> None:
        """One more token of each row. What lies behind it in the kept keys and values is not read."""
        # Mask and positions are given: transformers would ask the device for them.
        mask_B11L = (self._places_L <= self._at).expand(len(self._latest_B1), 1, 1, -1)
        logits_BV = self._model(
            input_ids=self._latest_B1, attention_mask=mask_B11L, position_ids=self._at[None],
            past_key_values=self._cache, use_cache=True).logits[:, -1]
        shares_BV = logits_BV.float().masked_fill(~self._is_drawn_V, -torch.inf).softmax(-1)
        self._latest_B1.copy_(_drawn(shares_BV, self._chances_BL.index_select(1, self._at)))
        self._drawn_BL.index_copy_(1, self._at, self._latest_B1)
        self._at += 1


# One operation to a compiler: torch 2.11 writes no code for sums along as long a row (12,429 ids, H200).
@torch.library.custom_op("ldlm::drawn", mutates_args=())
def _drawn(shares_BV: Tensor, chances_B1: Tensor) -> Tensor:
    """The id (B, 1) into whose share of a row's sum an even number falls."""
    reached_BV = shares_BV.cumsum(-1, dtype=torch.float64)
    return (reached_BV <= chances_B1 * reached_BV[:, -1:]).sum(-1, keepdim=True)


@_drawn.register_fake
def _(shares_BV: Tensor, chances_B1: Tensor) -> Tensor:
    return chances_B1.new_empty(chances_B1.shape, dtype=torch.int64)


def _cache(lm: CausalLM, length: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=lm.model.config, max_cache_len=length)


def _check_layers(lm: CausalLM, length: int) -> None:
    """Refuse a model that keeps more than keys and values, or forgets some of them within a row."""
    for layer in _cache(lm, length).layers:
        if type(layer).__name__ not in _PLAIN_LAYERS or layer.max_cache_len < length:
            raise ConfigError(f"{lm.name} has layers that keep other things than keys and values of a whole "
                              f"row of {length} tokens", place=OPTION,
                              fix=f"name a plain transformer, such as {EXAMPLE}")


def _start_id(lm: CausalLM) -> int | None:
    """What a row starts from: the start, else the end of a text before.

    A config that was not told speaks of ids that a small vocabulary has not.
    """
    found = lm.tokenizer.bos_token_id, lm.model.config.bos_token_id, lm.tokenizer.eos_token_id
    return next((token for token in found if token is not None and token < len(lm.tokenizer)), None)


def _drawn_ids(lm: CausalLM, device: torch.device) -> Tensor:
    """Which ids stand for tokens (V): embeddings have more rows, and a start is only that."""
    num_ids = len(lm.model.get_output_embeddings().weight)
    is_drawn_V = torch.arange(num_ids, device=device) < len(lm.tokenizer)
    start, end = _start_id(lm), lm.tokenizer.eos_token_id
    if start is not None and start != end:
        is_drawn_V[start] = False
    return is_drawn_V
