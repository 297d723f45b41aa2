"""Everything from keys to tokens for a batch of one size: static shapes, and nothing waits for the device.

Shapes: B batch, K latents, D latent width, L tokens, P prompt tokens.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.fast.decoder import FastDecoder
from trainer.fast.denoiser import FastDenoiser, ReadPrompt, told_times
from trainer.fast.head import argmax_rows
from trainer.fast.noise import normals
from trainer.fast.weights import Mode, dtype_of
from trainer.generate import Generator, Guidance, guided
from trainer.prompt import PromptContext
from trainer.sampler import SOLVERS, Mix, grid_of, solver_steps

if TYPE_CHECKING:
    from trainer.fast.persistent.packing import Packed

# Fastest first. What works on no device or in no memory is left out, and the next is taken.
Way = Literal["persistent kernels", "compiled", "operations of torch"]


class Generated(NamedTuple):
    """Latents (B, K, D), float32, and the token ids (B, L), int64, that they are decoded to."""

    latents_BKD: Tensor
    tokens_BL: Tensor


class Program(Protocol):
    """Whole generations of one batch size."""

    def __call__(self, keys_B2: Tensor, prompt: PromptContext | None) -> Generated:
        """What `sample_latents` and `decode` make of the samples with these keys.

        Args:
            keys_B2: From `trainer.fast.noise.sample_keys`.
            prompt: Of each sample; all calls of a program have one, or none has.
        """
        ...


class FastModel:
    """The generating parts of a model, laid out once for all batch sizes and samplings that want them so.

    Args:
        generator: Whose model it is.
        mode: How matrices are held and multiplied.
        compile_mode: Of `torch.compile`; None: the operations of torch one by one. A pass of the denoiser
            with its solver's step and the decoders are compiled, each as a whole.
    """

    def __init__(self, generator: Generator, mode: Mode, compile_mode: str | None) -> None:
        model = generator.model
        self.generator, self.mode = generator, mode
        self.persistent = mode in ("bf16", "fp8")
        self.shape = model.config.num_latents, model.config.model.latent_width
        self._parts: tuple[FastDenoiser, FastDecoder] | None = None
        self.packed: Packed | None = None  # what persistent kernels read instead, kept for all samplings
        head = model.token_decoder.head
        self._head = head.weight.detach().to(dtype_of(mode)), head.bias.detach().float()
        self.compiled(compile_mode)

    def compiled(self, mode: str | None) -> None:
        """Go on in another mode of `torch.compile`."""
        self.compile_mode = mode
        if self._parts is not None:
            self.step, self.features = self._made(self._step), self._made(self.decoder)

    def lay_out(self) -> None:
        """Have the denoiser and the decoders, too: persistent kernels have weights of their own."""
        if self._parts is None:
            model = self.generator.model
            self._parts = (FastDenoiser(model.denoiser, self.mode),
                           FastDecoder(model.decoder, model.token_decoder, self.mode))
            self.denoiser, self.decoder = self._parts
            self.compiled(self.compile_mode)

    def _made(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if self.compile_mode is None:
            return function
        return torch.compile(function, mode=self.compile_mode, fullgraph=True, dynamic=False)

    def step_back(self, way: Way) -> bool:
        """Do without a way that does not work here; False: there is no other."""
        if way == "persistent kernels":
            self.persistent = False
        elif way == "compiled":
            self.compiled(None)
        return way != "operations of torch"

    def noise(self, keys_B2: Tensor, draw: int) -> Tensor:
        """Standard normal numbers (B, K, D), float32, see `normals`."""
        return normals(keys_B2, draw, self.shape)

    def tokens(self, features_BLW: Tensor) -> Tensor:
        """Most likely token ids (B, L) of what the head reads."""
        generator = self.generator
        token_ids = generator.model.token_ids
        num_rows = generator.num_tokens if token_ids is None else None
        rows_N = argmax_rows(features_BLW.flatten(0, 1), *self._head, num_rows)
        rows_BL = rows_N.view(features_BLW.shape[:2])
        return rows_BL if token_ids is None else token_ids[rows_BL]

    def _step(self, z_BKD: Tensor, estimate_BKD: Tensor, told_MW: Tensor, mix_3: Tensor,
              fresh_BKD: Tensor | None, guidance: Guidance,
              prompt: ReadPrompt | None) -> tuple[Tensor, Tensor]:
        """Less noisy latents, and the estimate of the clean ones that they come from."""
        estimate_BKD = guided(self.denoiser, guidance, prompt)(z_BKD, told_MW, estimate_BKD)
        keep, take, add = mix_3.unbind()
        z_BKD = keep * z_BKD + take * estimate_BKD
        return z_BKD if fresh_BKD is None else z_BKD + add * fresh_BKD, estimate_BKD


class GeneralProgram:
    """A program for any model, sampling and device.

    Args:
        config: Whose `sampling` it follows.
        model: Weights.
    """

    def __init__(self, config: TrainConfig, model: FastModel) -> None:
        self._sampling, self._model = config.sampling, model
        grid = grid_of(config.sampling, model.generator.warp)
        device = model.generator.model.hidden_mean.device
        mixes = [SOLVERS[config.sampling.solver](step) for step in solver_steps(grid, config.diffusion.tan_d)]
        with torch.inference_mode():
            model.lay_out()
            self._times = told_times(model.generator.model.denoiser, grid[:-1].to(device))
        self._mixes = [torch.tensor(mix, device=device) for mix in mixes]
        self._draws = _draws(mixes)

    @torch.inference_mode()
    def __call__(self, keys_B2: Tensor, prompt: PromptContext | None) -> Generated:
        model, guidance = self._model, Guidance.of(self._sampling)
        read = model.denoiser.read(prompt)
        z_BKD = model.noise(keys_B2, self._draws[0]) * self._sampling.temperature
        estimate_BKD = torch.zeros_like(z_BKD)
        for told_MW, mix_3, draw in zip(self._times, self._mixes, self._draws[1:], strict=True):
            fresh_BKD = None if self._sampling.solver == "ddim" else model.noise(keys_B2, draw)
            z_BKD, estimate_BKD = model.step(z_BKD, estimate_BKD, told_MW, mix_3, fresh_BKD, guidance, read)
        return Generated(estimate_BKD, model.tokens(model.features(estimate_BKD)))


def _draws(mixes: list[Mix]) -> list[int]:
    """Which of a sample's draws its start is, and which each step adds, as `SampleNoise` counts them."""
    return [0, *itertools.accumulate(int(mix.add != 0) for mix in mixes)]


def way_of(config: TrainConfig, model: FastModel, batch: int, has_prompt: bool) -> Way:
    """The fastest way to so many texts that is known to work here."""
    from trainer.fast.persistent.program import why_not, why_not_here

    mean_D = model.generator.model.hidden_mean
    if model.persistent and not (why_not(config, len(mean_D), batch, has_prompt)
                                 or why_not_here(mean_D.device)):
        return "persistent kernels"
    return "operations of torch" if model.compile_mode is None else "compiled"


def program_of(way: Way, config: TrainConfig, model: FastModel) -> Program:
    """Generates in a way.

    Raises:
        RuntimeError: It should work here and does not; `model.step_back` leaves it out.
    """
    from trainer.fast.persistent.program import PersistentProgram

    return PersistentProgram(config, model) if way == "persistent kernels" else GeneralProgram(config, model)
