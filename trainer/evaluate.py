"""What the model does on text that it has not seen. Deterministic for a seed.

Shapes: B batch, N sequences, L tokens, K latents, D channels.
"""

from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.generate import decode
from trainer.model import LatentDiffusionLM, StepNoise, draw_noise
from trainer.token_encoder import TokenEncoder

_NUM_TIMES = 8  # fixed times of the diffusion loss, in the middle of equal parts of [0, 1]


@torch.inference_mode()
def evaluate(model: LatentDiffusionLM, encoder: TokenEncoder, heldout_NL: np.ndarray, seed: int,
             batch_size: int) -> dict[str, float]:
    """Measure reconstruction and denoising on some held-out sequences.

    Args:
        model: On the device where `encoder` is.
        encoder: The frozen token encoder.
        heldout_NL: Sequences to measure on; slice them to bound the time. At least 2 for a variance.
        seed: Of the noise. The noise of a sequence depends on its row, not on `batch_size`.
        batch_size: Sequences at a time.

    Returns:
        reconstruction_accuracy: share of tokens that come back from the clean latents, in [0, 1]
        reconstruction_accuracy_noisy: the same with the decoder noise of training
        hidden_loss: mean squared error of the hidden states under that noise; 1 is predicting the mean
        token_loss: cross-entropy under that noise, nats, over all positions
        diffusion_loss: mean squared error of the denoiser over even times, without self-conditioning
        diffusion_loss_trivial: the same for the best constant prediction, which is the mean latent
        latent_variance: of the latents across texts, mean over positions and channels. It is what the
            best constant leaves, so it equals `diffusion_loss_trivial`; near 0 the latents have collapsed.
    """
    sums: dict[str, float] = defaultdict(float)
    moments = torch.zeros(2, *_latent_shape(model), dtype=torch.float64)
    for first in range(0, len(heldout_NL), batch_size):
        tokens_BL = torch.from_numpy(heldout_NL[first:first + batch_size].astype(np.int64))
        tokens_BL = tokens_BL.to(model.hidden_mean.device)
        rows = range(first, first + len(tokens_BL))
        noise = draw_noise(model.config, seed, 0, rows, tokens_BL.device)
        z_BKD, measured = _measure(model, tokens_BL, encoder.hidden_states(tokens_BL), noise)
        moments += torch.stack([z_BKD.double().sum(0), z_BKD.double().square().sum(0)]).cpu()
        for name, value in measured.items():
            sums[name] += value * len(tokens_BL)
    result = {name: value / len(heldout_NL) for name, value in sums.items()}
    mean, mean_square = moments / len(heldout_NL)
    variance = (mean_square - mean.square()).mean().item()
    return result | {"diffusion_loss_trivial": variance, "latent_variance": variance}


def _latent_shape(model: LatentDiffusionLM) -> tuple[int, int]:
    return model.config.num_latents, model.config.model.latent_width


def _measure(model: LatentDiffusionLM, tokens_BL: Tensor, h_BLD: Tensor,
             noise: StepNoise) -> tuple[Tensor, dict[str, float]]:
    """Latents of a batch, and the batch means of what `evaluate` reports."""
    hbar_BLD = model.normalise(h_BLD)
    z_BKD = model.encoder(hbar_BLD)
    noisy_BKD = z_BKD + model.config.diffusion.decoder_noise_std * noise.decoder_BKD
    hhat_BLD = model.decoder(noisy_BKD)
    everywhere_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
    return z_BKD, {
        "reconstruction_accuracy": _accuracy(decode(model, z_BKD), tokens_BL),
        "reconstruction_accuracy_noisy": _accuracy(decode(model, noisy_BKD), tokens_BL),
        "hidden_loss": F.mse_loss(hhat_BLD, hbar_BLD).item(),
        "token_loss": model.token_loss(hhat_BLD, tokens_BL, everywhere_BL).item(),
        "diffusion_loss": _diffusion_loss(model, z_BKD, noise.latent_BKD),
    }


def _accuracy(predicted_BL: Tensor, tokens_BL: Tensor) -> float:
    return (predicted_BL == tokens_BL).float().mean().item()


def _diffusion_loss(model: LatentDiffusionLM, z_BKD: Tensor, eps_BKD: Tensor) -> float:
    alone_B = torch.zeros(len(z_BKD), dtype=torch.bool, device=z_BKD.device)
    losses = [model.diffusion_loss(z_BKD, eps_BKD, torch.full((len(z_BKD),), (i + 0.5) / _NUM_TIMES,
                                                              device=z_BKD.device), alone_B).mean()
              for i in range(_NUM_TIMES)]
    return torch.stack(losses).mean().item()
