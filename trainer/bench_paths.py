"""The two ways of generating that a benchmark compares, and how far apart they are."""

import dataclasses
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from trainer.fast.generator import FastGenerator, fast_generator
from trainer.fast.weights import Mode
from trainer.generate import Generator, Prompt, sample_latents


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


class FastPaths:
    """The fast paths of one model: the weights of each mode are laid out once.

    Args:
        generator: The float32 model.
        compiles: False: operations of torch as they are, in one graph: slower, and minutes sooner.

    Attributes:
        said: What the paths have said of themselves, each sentence once.
    """

    def __init__(self, generator: Generator, *, compiles: bool = True) -> None:
        self._generator, self._compiles = generator, compiles
        self._laid_out: dict[Mode, Generator] = {}
        self.said: dict[str, None] = {}

    def at(self, own: Generator, mode: Mode) -> Path:
        """The path of one way of sampling: steps, batch size."""
        if mode not in self._laid_out:
            self._laid_out[mode] = fast_generator(
                self._generator, self._hear, "default" if self._compiles else None, mode)
        fast = dataclasses.replace(self._laid_out[mode], config=own.config)
        return fast if isinstance(fast, FastGenerator) else Eager(fast)

    def _hear(self, words: str) -> None:
        self.said[words] = None


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference by the norm of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def same_tokens(found_BL: Tensor, wanted_BL: Tensor) -> float:
    """Share of positions with the same token."""
    return float((found_BL == wanted_BL).double().mean())
