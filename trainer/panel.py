"""How much of a held-out text comes back from its latents: clean, noisy, and denoised again.

Shapes: B batch, N sequences, L tokens, K latents, D channels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from trainer.diffusion import noised
from trainer.evaluate import tokens_of
from trainer.generate import decode
from trainer.model import LatentDiffusionLM, StepNoise, draw_noise
from trainer.token_encoder import TokenEncoder

DENOISED_FROM = (0.2, 0.5, 0.8)  # times, as in the evaluation protocol of the specification


@torch.inference_mode()
def reconstruction_panel(model: LatentDiffusionLM, encoder: TokenEncoder, heldout_NL: np.ndarray, seed: int,
                         batch_size: int) -> dict[str, dict[str, float]]:
    """What the decoders make of latents in several states.

    Args:
        model: On the device of `encoder`'s hidden states.
        encoder: The frozen token encoder.
        heldout_NL: Sequences to measure on.
        seed: Of the noise; that of a sequence depends on its row alone.
        batch_size: Sequences at a time.

    Returns:
        For `clean`, `noisy` (the decoder noise of training) and `denoised_U` (the denoiser's estimate
        from time U, without self-conditioning): `accuracy`, the share of tokens that come back, and
        `cross_entropy` in nats over all positions whose token the head covers.
    """
    totals: dict[str, Tensor] = {}
    for first in range(0, len(heldout_NL), batch_size):
        rows = range(first, min(first + batch_size, len(heldout_NL)))
        tokens_BL = tokens_of(heldout_NL[rows.start:rows.stop], model)
        z_BKD = model.encoder(model.normalise(encoder.hidden_states(tokens_BL)))
        noise = draw_noise(model.config, seed, 0, rows, tokens_BL.device)
        for name, state_BKD in _states(model, z_BKD, noise):
            scores = _scores(model, state_BKD, tokens_BL, encoder.num_tokens)
            totals[name] = totals.get(name, 0.0) + scores * len(rows)
    means = {name: (total / len(heldout_NL)).tolist() for name, total in totals.items()}
    return {name: {"accuracy": accuracy, "cross_entropy": loss} for name, (accuracy, loss) in means.items()}


def _states(model: LatentDiffusionLM, z_BKD: Tensor, noise: StepNoise) -> Iterator[tuple[str, Tensor]]:
    settings = model.config.diffusion
    yield "clean", z_BKD
    yield "noisy", z_BKD + settings.decoder_noise_std * noise.decoder_BKD
    for u in DENOISED_FROM:
        u_B = torch.full((len(z_BKD),), u, device=z_BKD.device)
        noisy_BKD = noised(z_BKD, noise.latent_BKD, u_B, settings.tan_d)
        yield f"denoised_{u:g}", model.denoiser(noisy_BKD, u_B, torch.zeros_like(z_BKD))


def _scores(model: LatentDiffusionLM, state_BKD: Tensor, tokens_BL: Tensor, num_tokens: int) -> Tensor:
    """Batch means of accuracy and cross-entropy, float64."""
    everywhere_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
    is_right_BL = decode(model, state_BKD, num_tokens) == tokens_BL
    loss = model.token_loss(model.decoder(state_BKD), tokens_BL, everywhere_BL)
    return torch.stack([is_right_BL.double().mean(), loss.double()])
