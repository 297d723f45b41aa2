"""Noise -> latents -> tokens -> text. Needs no token encoder.

Shapes: B batch, K latents, D latent width, L tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from trainer.config import SamplingConfig, TrainConfig
from trainer.diffusion import TimestepSampler
from trainer.fast.head import argmax_rows
from trainer.fast.noise import sample_keys
from trainer.manifest import TIME_DENSITY, Manifest
from trainer.model import LatentDiffusionLM
from trainer.prompt import PromptContext
from trainer.sampler import Denoise, SampleNoise, integrate
from trainer.stored_model import model_of


class Prompt(NamedTuple):
    """What texts begin with: token ids, their hidden states as the token encoder gives them, and lengths.

    Of one text, for all that are drawn, or of each.
    """

    tokens_BP: Tensor
    hidden_BPD: Tensor
    lengths_B: Tensor

    def for_each(self, num: int) -> "Prompt":
        """One of each of `num` samples."""
        return Prompt(*(part.expand(num, *part.shape[1:]) for part in self))


@dataclass(frozen=True)
class Generator:
    """A trained model as sampling needs it; how it samples is `config.sampling`.

    Attributes:
        model: The averaged weights, on the device where it generates.
        warp: The time that training has warped; None: even.
        num_tokens: Ids from there on stand for no token.
        end_of_text_id: Where a text ends.
        tokenizer: None where only ids are wanted.
    """

    config: TrainConfig
    model: LatentDiffusionLM
    warp: TimestepSampler | None
    num_tokens: int
    end_of_text_id: int
    tokenizer: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights as they are multiplied."""
        return next(self.model.parameters()).dtype

    def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> Tensor:
        """Token ids (num, L), int64: the whole way from a seed to tokens in device memory.

        Sample i depends on the seed and i, and but for rounding not on `num`.

        Args:
            num: Samples.
            seed: Of all of them.
            prompt: With which each of them begins.
        """
        return torch.cat([self.batch(range(first, min(first + self.config.sampling.batch_size, num)), seed,
                                     prompt) for first in range(0, num, self.config.sampling.batch_size)])

    def texts(self, num: int, seed: int, prompt: Prompt | None = None) -> list[str]:
        """Texts of the same samples, each up to its first end of text."""
        return self.to_texts(self.tokens(num, seed, prompt))

    def to_texts(self, tokens_BL: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Texts of what was drawn, each up to its first end of text."""
        return to_text(self.tokenizer, tokens_BL, self.end_of_text_id)

    def batch(self, indices: range, seed: int, prompt: Prompt | None) -> Tensor:
        """Token ids of some samples of a seed, at once."""
        tokens_BL = self.drawn(indices, seed, self.context(len(indices), prompt))
        if prompt is None:
            return tokens_BL
        own = prompt.for_each(len(indices))
        return with_prompt(tokens_BL, own.tokens_BP, own.lengths_B)

    def drawn(self, indices: range, seed: int, context: PromptContext | None) -> Tensor:
        """Token ids of some samples as the model gives them: where a prompt stands, too."""
        latents = sample_latents(self.model, indices, seed, self.config.sampling, self.warp, context)
        return decode(self.model, latents, self.num_tokens)

    def context(self, num: int, prompt: Prompt | None) -> PromptContext | None:
        """What the denoiser hears of the prompt of `num` samples."""
        if prompt is None:
            return None
        own = prompt.for_each(num)
        return self.model.prompt_context(own.hidden_BPD, own.lengths_B)


def load_generator(config: TrainConfig, manifest: Manifest, weights: dict[str, Tensor], device: torch.device,
                   tokenizer: Any = None) -> Generator:
    """The model of a checkpoint's averaged weights, of which it has copies, in their dtype."""
    sizes, state = manifest.model, dict(weights)
    warp = warp_of(config, state.pop(TIME_DENSITY))
    own = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
    return Generator(config, model_of(config, sizes["hidden_size"], sizes["vocab_size"], own), warp,
                     sizes["num_tokens"], sizes["end_of_text_id"], tokenizer)


def warp_of(config: TrainConfig, density: Tensor) -> TimestepSampler:
    """The time that training has warped, from the probabilities of its bins."""
    settings = config.diffusion
    warp = TimestepSampler(settings.time_bins, settings.time_loss_decay, settings.time_refresh_steps)
    warp.probabilities = density
    return warp


@torch.inference_mode()
def sample_latents(model: LatentDiffusionLM, indices: Sequence[int], seed: int, sampling: SamplingConfig,
                   warp: TimestepSampler | None = None, prompt: PromptContext | None = None,
                   mend: Callable[[Tensor], Tensor] | None = None, rounds: int = 1) -> Tensor:
    """Draw latents z0 of shape (len(indices), K, D), float32, on the model's device.

    Their scale is the denoiser's own: the decoder brings latents to scale on entry.

    Args:
        model: Whose denoiser it is.
        indices: Which samples of the seed.
        seed: With an index, where all randomness comes from.
        sampling: How.
        warp: For a warped grid; None: even.
        prompt: What each of the samples begins with, from `model.prompt_context`.
        mend: Puts what is known into each estimate of the clean latents.
        rounds: How often each step is done, see `integrate`.
    """
    shape = (model.config.num_latents, model.config.model.latent_width)
    noise = SampleNoise(sample_keys(seed, indices, model.hidden_mean.device), shape)
    estimate = guided(model.denoiser, Guidance.of(sampling), prompt)

    def denoise(z: Tensor, u_B: Tensor, earlier: Tensor) -> Tensor:
        found = estimate(z, u_B, earlier)
        return found if mend is None else mend(found)

    return integrate(denoise, noise, sampling, model.config.diffusion.tan_d, warp, rounds)


class Guidance(NamedTuple):
    """Weights of the denoiser's earlier estimate and of the prompt: 0 ignores, 1 is as in training."""

    self_conditioning: float
    prompt: float

    @classmethod
    def of(cls, sampling: SamplingConfig) -> Self:
        """As the settings have it."""
        return cls(sampling.self_conditioning_guidance, sampling.prompt_guidance)


def guided(denoiser: Callable[..., Tensor], guidance: Guidance, prompt: Any) -> Denoise:
    """The denoiser under guidance: estimate = without + weight * (with - without).

    The inner of the two is that of self-conditioning (as ELF and ConvergeFlow use it), the outer that of
    the prompt.

    Args:
        denoiser: (noisy latents, their times, earlier estimate, prompt) -> clean latents.
        guidance: Weights.
        prompt: As the denoiser takes it; None: there is none.
    """

    def told(z: Tensor, u_B: Tensor, estimate: Tensor, prompt: Any) -> Tensor:
        return _weighted(guidance.self_conditioning,
                         lambda: denoiser(z, u_B, torch.zeros_like(estimate), prompt),
                         lambda: denoiser(z, u_B, estimate, prompt))

    def denoise(z: Tensor, u_B: Tensor, estimate: Tensor) -> Tensor:
        return _weighted(0.0 if prompt is None else guidance.prompt,
                         lambda: told(z, u_B, estimate, None), lambda: told(z, u_B, estimate, prompt))

    return denoise


def _weighted(weight: float, without: Callable[[], Tensor], having: Callable[[], Tensor]) -> Tensor:
    if weight == 0.0:
        return without()
    return having() if weight == 1.0 else torch.lerp(without(), having(), weight)


@torch.inference_mode()
def decode(model: LatentDiffusionLM, z_BKD: Tensor, num_tokens: int | None = None) -> Tensor:
    """Most likely token ids (B, L), int64, of latents. No noise is added.

    Args:
        model: On the latents' device.
        z_BKD: Clean latents, or noisy ones.
        num_tokens: Of the tokenizer. Embeddings are padded with rows that stand for no token: a head
            that covers them must not choose them.
    """
    features_BLW = model.token_decoder.features(model.decoder(z_BKD))
    head, num_rows = model.token_decoder.head, None if model.token_ids is not None else num_tokens
    rows_N = argmax_rows(features_BLW.flatten(0, 1), head.weight, head.bias, num_rows)
    rows_BL = rows_N.view(features_BLW.shape[:2])
    return rows_BL if model.token_ids is None else model.token_ids[rows_BL]


def with_prompt(tokens_BL: Tensor, prompt_BP: Tensor, lengths_B: Tensor) -> Tensor:
    """Generated tokens with each prompt's own tokens, its first `lengths_B`, in place of the first."""
    num = prompt_BP.shape[1]
    is_prompt_BP = torch.arange(num, device=tokens_BL.device) < lengths_B.to(tokens_BL.device)[:, None]
    first_BP = torch.where(is_prompt_BP, prompt_BP.to(tokens_BL.device), tokens_BL[:, :num])
    return torch.cat([first_BP, tokens_BL[:, num:]], dim=1)


def to_text(tokenizer: Any, tokens_BL: Tensor | Sequence[Sequence[int]], end_of_text_id: int) -> list[str]:
    """Text of each sequence up to its first end of text."""
    rows = tokens_BL.tolist() if isinstance(tokens_BL, Tensor) else [list(row) for row in tokens_BL]
    return [tokenizer.decode(_cut(row, end_of_text_id), skip_special_tokens=True) for row in rows]


def _cut(row: list[int], end: int) -> list[int]:
    return row[:row.index(end)] if end in row else row
