"""The two ways of generating that a benchmark compares, and how far apart they are."""

import copy
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainer.generate import Generator, Prompt, sample_latents

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Path(Protocol):
    """From a seed to token ids in device memory."""

    def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> Tensor:
        """Token ids (num, L)."""

    def latents(self, num: int, seed: int) -> Tensor:
        """The clean latents (num, K, D) behind them, float32."""


@dataclass(frozen=True)
class Eager:
    """The readable path, operation by operation."""

    generator: Generator

    def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> Tensor:
        """See `Path`."""
        return self.generator.tokens(num, seed, prompt)

    def latents(self, num: int, seed: int) -> Tensor:
        """See `Path`."""
        generator = self.generator
        return sample_latents(generator.model, range(num), seed, generator.config.sampling, generator.warp)


def fast_path(generator: Generator, mode: str) -> Path:
    """The fastest way there is to generate with these weights, held as `mode` says."""
    return Eager(Generator(generator.config, copy.deepcopy(generator.model).to(_DTYPES[mode]),
                           generator.warp, generator.num_tokens, generator.end_of_text_id))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference by the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def same_tokens(found_BL: Tensor, wanted_BL: Tensor) -> float:
    """Share of positions with the same token."""
    return float((found_BL == wanted_BL).double().mean())
