"""What a model that reads prompts makes of the beginnings of held-out texts.

Shapes: N texts, L tokens of a sequence, P of them the prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.frontier import in_words, setting_of, with_settings
from trainer.generate import Generator, to_text
from trainer.prompting import check_reads_prompts, encoded
from trainer.sizes import longest_prompt
from trainer.token_encoder import TokenEncoder

OPTION = "--prompt-tokens"


class Beginnings(NamedTuple):
    """Held-out sequences whose first P tokens are of one document.

    Attributes:
        tokens_NP: The beginnings, int64.
        tokens_NL: The whole sequences, int64.
        prompts: Texts of the beginnings.
        continuations: What the documents really say then, each up to its first end of text.
    """

    tokens_NP: Tensor
    tokens_NL: Tensor
    prompts: list[str]
    continuations: list[str]


def check_length(config: TrainConfig, num_tokens: int) -> None:
    """Refuse prompts that a model cannot read. Raises ConfigError."""
    check_reads_prompts(config, OPTION, f"leave {OPTION} out")
    if num_tokens > longest_prompt(config):
        raise ConfigError(f"{num_tokens} tokens, but this model reads prompts of 1 to "
                          f"{longest_prompt(config)}", place=OPTION, fix="ask for fewer")


def beginnings(generator: Generator, rows_NL: np.ndarray, num_tokens: int) -> Beginnings:
    """Split held-out sequences into prompt and continuation.

    Raises:
        ConfigError: In every sequence a document ends within its first P tokens.
    """
    rows_NL = rows_NL.astype(np.int64)
    rows_NL = rows_NL[(rows_NL[:, :num_tokens] != generator.end_of_text_id).all(axis=1)]
    if not len(rows_NL):
        raise ConfigError(f"in no held-out sequence are the first {num_tokens} tokens of one document",
                          place=OPTION, fix="ask for fewer, or for more sequences: -n N")
    prompts, continuations = (
        to_text(generator.tokenizer, part.tolist(), generator.end_of_text_id)
        for part in (rows_NL[:, :num_tokens], rows_NL[:, num_tokens:]))
    tokens_NL = torch.from_numpy(rows_NL)
    return Beginnings(tokens_NL[:, :num_tokens], tokens_NL, prompts, continuations)


def sample_completions(generator: Generator, encoder: TokenEncoder, told: Beginnings, steps: Sequence[int],
                       temperatures: Sequence[float], batch: int, seed: int,
                       say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A completion of every beginning at every number of steps and temperature.

    Returns:
        For each sampling: `setting`, `seed`, `dtype`, `tokens` (whole sequences) and `texts` (without
        their prompts, up to the first end of text).
    """
    found = []
    num, num_tokens = told.tokens_NP.shape
    for own in with_settings(generator, steps, temperatures, min(batch, num)):
        tokens_NL = complete(own, encoder, told.tokens_NP, seed)
        say(f"{num} completions of {in_words(own)}")
        found.append({"setting": setting_of(own, has_prompt=True), "seed": seed,
                      "dtype": dtype_on(generator.model.hidden_mean.device), "tokens": tokens_NL.tolist(),
                      "texts": own.to_texts(tokens_NL[:, num_tokens:])})
    return found


def complete(generator: Generator, encoder: TokenEncoder, prompts_NP: Tensor, seed: int) -> Tensor:
    """Token ids (N, L) on the host: sample i of the seed goes on from prompt i."""
    device, size = generator.model.hidden_mean.device, generator.config.sampling.batch_size
    found = []
    for first in range(0, len(prompts_NP), size):
        indices = range(first, min(first + size, len(prompts_NP)))
        prompt = encoded(encoder, prompts_NP[indices.start:indices.stop].to(device))
        with in_bf16(device):
            found.append(generator.batch(indices, seed, prompt))
    return torch.cat(found).cpu()


def in_bf16(device: torch.device) -> torch.autocast:
    """Generation as it is measured: networks in bfloat16 on a GPU, as the baselines' are.

    Latents between the steps, times and the solver's arithmetic stay float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def dtype_on(device: torch.device) -> str:
    """What `in_bf16` computes in, for the record."""
    return "bfloat16 autocast" if device.type == "cuda" else "float32"
