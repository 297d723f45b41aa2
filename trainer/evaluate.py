"""What the model does on text that it has not seen. Deterministic for a seed.

Shapes: B batch, N sequences, L tokens, K latents, D channels.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor
from torch import distributed as dist

from trainer.diffusion import noised
from trainer.generate import Generator, decode, to_text
from trainer.health import LatentHealth, distinct, linear_denoiser_loss
from trainer.model import LatentDiffusionLM, StepNoise, draw_noise
from trainer.token_encoder import TokenEncoder

_SCORES = ("reconstruction_accuracy", "reconstruction_accuracy_noisy", "reconstruction_accuracy_denoised",
           "hidden_loss", "token_loss", "diffusion_loss")
_NUM_TIMES = 8
_HALF_TIME = 0.5  # under the tangent schedule, where noise is d times the signal


class Evaluation(BaseModel):
    """What averaged weights were worth at one step; `evaluation/result.json` for the last one.

    Attributes:
        step: Optimizer steps done.
        scores: From `evaluate`, those that are numbers.
        reconstructions: Held-out texts, each with what encoder and decoders make of it.
        samples: Texts from noise, as many as `sampling.num_samples`, unselected.
    """

    model_config = ConfigDict(frozen=True)
    step: int
    scores: dict[str, float]
    reconstructions: list[tuple[str, str]]
    samples: list[str] = []

    @field_validator("scores")
    @classmethod
    def _numbers(cls, scores: dict[str, float]) -> dict[str, float]:
        # JSON has no NaN, and readers would each write and read their own word for it.
        return {name: value for name, value in scores.items() if math.isfinite(value)}


@torch.inference_mode()
def evaluate(model: LatentDiffusionLM, encoder: TokenEncoder, heldout_NL: np.ndarray, seed: int,
             batch_size: int) -> dict[str, float]:
    """Measure reconstruction and denoising on some held-out sequences, shared out over the ranks.

    Args:
        model: On the device of `encoder`'s hidden states. The same on every rank.
        encoder: The frozen token encoder.
        heldout_NL: Sequences to measure on; slice them to bound the time. At least 2 for a variance.
        seed: Of the noise. The noise of a sequence depends on its row, not on `batch_size` or ranks.
        batch_size: Sequences at a time.

    Returns:
        reconstruction_accuracy: share of tokens that come back from the clean latents, in [0, 1]
        reconstruction_accuracy_noisy: the same with the decoder noise of training
        reconstruction_accuracy_denoised: the same from the denoiser's estimate at half time, as samples are
        hidden_loss: mean squared error of the hidden states under that noise
        hidden_loss_trivial: the same for the best constant at each position, about 1
        token_loss: cross-entropy under that noise, nats, over all positions
        diffusion_loss: mean squared error of the denoiser over even times, without self-conditioning
        diffusion_loss_trivial: the same for the best constant prediction, which is the mean latent
        diffusion_loss_linear: the same for the best linear filter of each latent alone
        latent_...: how latents of different texts differ, from `LatentHealth.summary`
    """
    totals = torch.zeros(len(_SCORES), dtype=torch.float64, device=model.hidden_mean.device)
    health = LatentHealth(model.config.num_latents, model.config.model.latent_width, model.hidden_mean.device)
    hidden = _HiddenSpread(model)
    for rows in _own_batches(len(heldout_NL), batch_size):
        # Past the end, a rank without sequences of its own takes part: an encoder may need all ranks.
        read = rows or range(min(batch_size, len(heldout_NL)))
        tokens_BL = tokens_of(heldout_NL[read.start:read.stop], model)
        noise = draw_noise(model.config, seed, 0, read, tokens_BL.device)
        hidden_BLD = encoder.hidden_states(tokens_BL)
        z_BKD, scores = _measure(model, tokens_BL, hidden_BLD, noise, encoder.num_tokens)
        health.add(z_BKD[: len(rows)])
        hidden.add(hidden_BLD[: len(rows)])
        totals += scores.double() * len(rows)
    if dist.is_initialized():
        dist.all_reduce(totals)
        health.reduce()
        hidden.reduce()
    result = dict(zip(_SCORES, (totals / len(heldout_NL)).tolist(), strict=True)) | health.summary()
    linear = (math.nan if len(heldout_NL) < 2 else
              linear_denoiser_loss(health.principal_variances(), _times(), model.config.diffusion.tan_d))
    return result | {"diffusion_loss_trivial": result.get("latent_variance", math.nan),
                     "diffusion_loss_linear": linear,
                     "hidden_loss_trivial": hidden.variance(len(heldout_NL))}


class _HiddenSpread:
    """How normalised hidden states of different texts differ at the same position."""

    def __init__(self, model: LatentDiffusionLM) -> None:
        self._model, device = model, model.hidden_mean.device
        shape = (model.config.data.sequence_length, len(model.hidden_mean))
        self._sum_LD, self._squares = torch.zeros(shape, device=device), torch.zeros((), device=device)

    def add(self, h_BLD: Tensor) -> None:
        hbar_BLD = self._model.normalise(h_BLD)
        self._sum_LD += hbar_BLD.sum(0)
        self._squares += hbar_BLD.square().sum()

    def reduce(self) -> None:
        dist.all_reduce(self._sum_LD)
        dist.all_reduce(self._squares)

    def variance(self, num_texts: int) -> float:
        """Mean over positions and channels."""
        mean_square = self._squares / (num_texts * self._sum_LD.numel())
        return (mean_square - (self._sum_LD / num_texts).square().mean()).item()


@torch.inference_mode()
def write_samples(generator: Generator, seed: int,
                  heldout_NL: np.ndarray) -> tuple[list[str], dict[str, float]]:
    """Texts from noise, as many as `sampling.num_samples`, and whether they repeat themselves.

    It costs `num_samples` x `sampling.steps` denoiser passes of one sequence: beside the eight passes over
    each sequence of `evaluate`, little.

    Args:
        generator: With a tokenizer.
        seed: Of the noise; the same at each evaluation, so that texts can be compared.
        heldout_NL: What to compare with; as many rows as samples are looked at.

    Returns:
        Texts, and:
        distinct_1, distinct_2: share of the samples' tokens, and of their pairs, that are new among them
        distinct_2_text: the same pairs of as much held-out text
    """
    num = generator.config.sampling.num_samples
    tokens_NL = generator.tokens(num, seed)
    scores = {f"distinct_{n}": distinct(tokens_NL.tolist(), n) for n in (1, 2)}
    scores["distinct_2_text"] = distinct(heldout_NL[:num].tolist(), 2)
    return to_text(generator.tokenizer, tokens_NL, generator.end_of_text_id), scores


@torch.inference_mode()
def reconstruct(model: LatentDiffusionLM, encoder: TokenEncoder,
                rows_NL: np.ndarray) -> list[tuple[str, str]]:
    """Held-out text and what latent encoder and decoders make of it, as pairs.

    A collective when `encoder` is: then every rank calls it with the same rows.
    """
    tokens_BL = tokens_of(rows_NL, model)
    z_BKD = model.encoder(model.normalise(encoder.hidden_states(tokens_BL)))
    pairs = zip(tokens_BL, decode(model, z_BKD, encoder.num_tokens), strict=True)
    return [(encoder.tokenizer.decode(truth), encoder.tokenizer.decode(guess)) for truth, guess in pairs]


def tokens_of(rows_NL: np.ndarray, model: LatentDiffusionLM) -> Tensor:
    """Token ids of some sequences on the model's device, int64."""
    return torch.from_numpy(rows_NL.astype(np.int64)).to(model.hidden_mean.device)


def _own_batches(num_rows: int, batch_size: int) -> list[range]:
    """This rank's batches of rows: as many on every rank, so some may be empty."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    num_batches = -(-num_rows // (batch_size * world_size))
    firsts = [(i * world_size + rank) * batch_size for i in range(num_batches)]
    return [range(min(first, num_rows), min(first + batch_size, num_rows)) for first in firsts]


def _measure(model: LatentDiffusionLM, tokens_BL: Tensor, h_BLD: Tensor, noise: StepNoise,
             num_tokens: int) -> tuple[Tensor, Tensor]:
    """Latents of a batch, and the batch means of `_SCORES`."""
    hbar_BLD = model.normalise(h_BLD)
    z_BKD = model.encoder(hbar_BLD)
    noisy_BKD = z_BKD + model.config.diffusion.decoder_noise_std * noise.decoder_BKD
    hhat_BLD = model.decoder(noisy_BKD)
    everywhere_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
    return z_BKD, torch.stack([
        _accuracy(decode(model, z_BKD, num_tokens), tokens_BL),
        _accuracy(decode(model, noisy_BKD, num_tokens), tokens_BL),
        _accuracy(decode(model, _denoised(model, z_BKD, noise.latent_BKD), num_tokens), tokens_BL),
        F.mse_loss(hhat_BLD, hbar_BLD),
        model.token_loss(hhat_BLD, tokens_BL, everywhere_BL),
        _diffusion_loss(model, z_BKD, noise.latent_BKD),
    ])


def _accuracy(predicted_BL: Tensor, tokens_BL: Tensor) -> Tensor:
    return (predicted_BL == tokens_BL).float().mean()


def _denoised(model: LatentDiffusionLM, z_BKD: Tensor, eps_BKD: Tensor) -> Tensor:
    """The denoiser's estimate of the latents at half time, without self-conditioning."""
    u_B = torch.full((len(z_BKD),), _HALF_TIME, device=z_BKD.device)
    z_u = noised(z_BKD, eps_BKD, u_B, model.config.diffusion.tan_d)
    return model.denoiser(z_u, u_B, torch.zeros_like(z_u), None)


def _diffusion_loss(model: LatentDiffusionLM, z_BKD: Tensor, eps_BKD: Tensor) -> Tensor:
    losses = [model.diffusion_loss(z_BKD, eps_BKD, torch.full((len(z_BKD),), u, device=z_BKD.device)).mean()
              for u in _times().tolist()]
    return torch.stack(losses).mean()


def _times() -> Tensor:
    """Fixed times of the diffusion loss, in the middle of equal parts of [0, 1]."""
    return (torch.arange(_NUM_TIMES) + 0.5) / _NUM_TIMES
