"""Noise -> latents -> tokens -> text. Needs no token encoder.

Shapes: B batch, K latents, D latent width, L tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.diffusion import TimestepSampler, alpha_sigma, sampling_grid
from trainer.model import LatentDiffusionLM
from trainer.prompt import PromptContext

Solver = Literal["ddim", "ancestral"]
# Noisy latents, their times and the estimate before -> clean latents.
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.inference_mode()
def sample_latents(model: LatentDiffusionLM, num: int, steps: int, generator: torch.Generator,
                   solver: Solver = "ddim", warp: TimestepSampler | None = None,
                   prompt: PromptContext | None = None, guidance: float = 1.0) -> Tensor:
    """Draw latents z0 of shape (num, K, D), float32, on the generator's device.

    Their scale is the denoiser's own: the decoder brings latents to scale on entry.

    Args:
        model: On the device of the generator.
        num: Samples.
        steps: Denoiser passes, each doubled by a guidance other than 0 and 1.
        generator: Where all randomness comes from.
        solver: `ddim` adds no noise on the way; `ancestral` does.
        warp: Even steps in its warped time instead of in u.
        prompt: What each of the samples begins with, from `model.prompt_context`.
        guidance: Weight of the prompt: 0 forgets it, 1 follows it as in training, more follows it more.
    """
    shape = (num, model.config.num_latents, model.config.model.latent_width)
    z_BKD = torch.randn(shape, generator=generator, device=generator.device)
    grid = sampling_grid(steps, warp).to(generator.device)
    denoise = model.denoiser if prompt is None else _guided(model, prompt, guidance)
    return integrate(denoise, z_BKD, grid, model.config.diffusion.tan_d, solver, generator)


def _guided(model: LatentDiffusionLM, prompt: PromptContext, guidance: float) -> Denoise:
    def denoise(z_BKD: Tensor, u_B: Tensor, estimate_BKD: Tensor) -> Tensor:
        if guidance == 1.0:
            return model.denoiser(z_BKD, u_B, estimate_BKD, prompt)
        without = model.denoiser(z_BKD, u_B, estimate_BKD)
        if guidance == 0.0:
            return without
        return torch.lerp(without, model.denoiser(z_BKD, u_B, estimate_BKD, prompt), guidance)

    return denoise


def integrate(denoise: Denoise, z_BKD: Tensor, grid: Tensor, tan_d: float, solver: Solver,
              generator: torch.Generator) -> Tensor:
    """Follow the grid of times from noise to the last prediction of the clean latent.

    Args:
        denoise: (noisy latents, times_B, previous estimate) -> clean latents.
        z_BKD: Standard normal.
        grid: Falling times, one more than there are passes.
        tan_d: d of the schedule.
        solver: See `sample_latents`.
        generator: For the noise that `ancestral` adds.
    """
    alphas, sigmas = alpha_sigma(grid, tan_d)
    estimate = torch.zeros_like(z_BKD)
    for i in range(len(grid) - 1):
        estimate = denoise(z_BKD, grid[i].expand(len(z_BKD)), estimate)
        eps = (z_BKD - alphas[i] * estimate) / sigmas[i]
        z_BKD = alphas[i + 1] * estimate
        if solver == "ddim":
            z_BKD = z_BKD + sigmas[i + 1] * eps
        else:
            eta = sigmas[i + 1] / sigmas[i] * (1 - (alphas[i] / alphas[i + 1]).square()).sqrt()
            fresh = torch.randn(z_BKD.shape, generator=generator, device=z_BKD.device)
            z_BKD = z_BKD + (sigmas[i + 1].square() - eta.square()).sqrt() * eps + eta * fresh
    return estimate


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
    num_rows = None if model.token_ids is not None else num_tokens
    # One text at a time: logits of a batch would be gigabytes at the vocabularies of today.
    rows_BL = torch.stack([model.token_decoder.head(features_LW)[:, :num_rows].argmax(dim=-1)
                           for features_LW in features_BLW])
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
