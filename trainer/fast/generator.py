"""The fast path behind the same words as `trainer.generate`: `fast_generator(generator)` is a generator.

Shapes: B batch, K latents, D latent width, L tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.command import talk
from trainer.contract import ConfigError
from trainer.fast.devices import has_triton
from trainer.fast.graph import CapturedProgram
from trainer.fast.noise import sample_keys
from trainer.fast.program import FastModel, Generated, Program, Way, program_of, way_of
from trainer.fast.weights import FORMATS, Mode, is_emulated, multiplies_fp8, usual_mode
from trainer.generate import Generator, Prompt
from trainer.host_copies import to_device
from trainer.prompt import PromptContext


@dataclass(frozen=True, kw_only=True)
class FastGenerator(Generator):
    """A generator that keeps a program for each batch size and length of prompt that it was asked for.

    Attributes:
        fast: Its weights, as programs read them.
        say: Hears what does not work, in a sentence.
    """

    fast: FastModel
    say: Callable[[str], None] = talk
    _programs: dict[tuple[int, int], Program] = field(default_factory=dict, init=False, repr=False,
                                                             compare=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they are multiplied."""
        return FORMATS[self.fast.mode]

    def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> Tensor:
        """As of a generator; batches are all of one size, so that one program makes them."""
        size = min(num, self.config.sampling.batch_size)
        parts = [self.batch(range(first, first + size), seed, prompt) for first in range(0, num, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)[:num]

    def latents(self, num: int, seed: int) -> Tensor:
        """Clean latents (num, K, D), float32, of samples that are drawn at once."""
        return self.generated(range(num), seed).latents_BKD.clone()

    def drawn(self, indices: range, seed: int, context: PromptContext | None) -> Tensor:
        """Token ids of some samples."""
        return self.generated(indices, seed, context).tokens_BL.clone()

    def generated(self, indices: range, seed: int, context: PromptContext | None = None) -> Generated:
        """Latents and token ids of some samples; good until the next are asked for."""
        keys_B2, device = sample_keys(seed, indices, "cpu"), self.model.hidden_mean.device
        size = len(indices), 0 if context is None else context.hidden_BPD.shape[1]
        if size not in self._programs:
            self._programs[size] = self._program(to_device(keys_B2, device), context)
        program = self._programs[size]
        # A graph has a place for keys: that is one copy less on the way to the first noise.
        is_graph = isinstance(program, CapturedProgram)
        return program(keys_B2 if is_graph else to_device(keys_B2, device), context)

    def way(self, batch: int, *, has_prompt: bool = False) -> Way:
        """How so many texts at once are made, as far as it is known by now."""
        return way_of(self.config, self.fast, batch, has_prompt)

    def _program(self, keys_B2: Tensor, context: PromptContext | None) -> Program:
        """A program for these sizes: as one graph where that works, in the fastest way that works."""
        batch, has_prompt = len(keys_B2), context is not None
        while keys_B2.is_cuda:
            way = self.way(batch, has_prompt=has_prompt)
            try:
                return CapturedProgram(program_of(way, self.config, self.fast), keys_B2, context)
            except RuntimeError as error:
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.say(f"warning: no CUDA graph of {self.fast.mode}, {way}, at batch {batch}: {why}")
                # For want of memory other sizes need not do without.
                if isinstance(error, torch.OutOfMemoryError) or not self.fast.step_back(way):
                    break
        return program_of(self.way(batch, has_prompt=has_prompt), self.config, self.fast)


def fast_generator(generator: Generator, say: Callable[[str], None] = talk,
                   compile_mode: str | None = "default", mode: Mode | None = None) -> Generator:
    """The fastest way to the same texts on the generator's device; what that is, is said once.

    Args:
        generator: As `load_generator` gives it. One that changes estimates on the way stays as it is.
        say: Hears what the device and the generator allow.
        compile_mode: Of `torch.compile`, on a GPU, one that makes no graphs itself; None: without, which
            starts at once.
        mode: How matrices are held; None: as `usual_mode` has it.

    Raises:
        ConfigError: The device does not multiply matrices that are held so.
    """
    if type(generator) is not Generator:
        say("what is filled in between given texts has no fast path: the plain one is taken")
        return generator
    device = generator.model.hidden_mean.device
    if mode == "fp8" and not multiplies_fp8(device):
        raise ConfigError("torch multiplies no matrices in fp8 with a scale for each row on this device",
                          place="fp8", fix="take bf16")
    fast = FastModel(generator, mode or usual_mode(device),
                     compile_mode if has_triton(device) else None)
    found = FastGenerator(**vars(generator), fast=fast, say=say)
    ways = list(dict.fromkeys(found.way(batch) for batch in (1, 2)))
    words = ways[0] if len(ways) == 1 else f"{ways[0]} for one text at a time, else {ways[1]}"
    graphs = "one CUDA graph for each batch size" if device.type == "cuda" else "no CUDA graphs here"
    how = " emulated in bf16 (its error, not its speed)" if is_emulated(fast.mode, device) else ""
    say(f"fast path: {fast.mode}{how}, {words}; {graphs}")
    return found
