"""Signs that the latent space is healthy, or that it collapses: what to watch besides the losses.

A diffusion loss near 0 while latents of different texts become alike is a collapse: the encoder has
made its latents trivial. Shapes: B texts, K latents, D latent width, L tokens.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from trainer.diffusion import alpha_sigma
from trainer.model import LatentDiffusionLM, StepNoise, gated

# What subtracting means in float64 can leave of a variance of nothing, relative to the mean square.
_ROUNDING = 1e-12


class LatentHealth:
    """How latents of different texts differ, from batches of them.

    Args:
        num_latents: K.
        latent_width: D.
        device: Where batches come from; sums stay there, in float64: 8 D^2 bytes.
    """

    def __init__(self, num_latents: int, latent_width: int, device: torch.device | str) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._num_texts = zeros()
        self._sum_KD, self._squares_KD = zeros(num_latents, latent_width), zeros(num_latents, latent_width)
        self._directions_KD = zeros(num_latents, latent_width)
        self._products_DD = zeros(latent_width, latent_width)

    def add(self, z_BKD: Tensor) -> None:
        """Take in the latents of some texts."""
        z_BKD = z_BKD.detach().double()
        self._num_texts += len(z_BKD)
        self._sum_KD += z_BKD.sum(0)
        self._squares_KD += z_BKD.square().sum(0)
        self._directions_KD += F.normalize(z_BKD, dim=-1).sum(0)
        flat = z_BKD.flatten(0, 1)
        self._products_DD.addmm_(flat.T, flat)

    def reduce(self) -> None:
        """Add up what all ranks have seen. A collective."""
        for total in vars(self).values():
            dist.all_reduce(total)

    def summary(self) -> dict[str, float]:
        """What can be said of two texts or more; nothing of fewer.

        Returns:
            latent_variance: across texts, mean over positions and channels. The diffusion loss of the
                trivial predictor, which always says the mean latent: a useful denoiser is well below.
            latent_std_min, latent_std_max: the same as a standard deviation, of the channel that says
                least and of the one that says most
            latent_rank: effective number of directions that latents use, in [1, D]: the exponential of
                the entropy of the shares of variance along the principal axes
            latent_cosine: mean cosine between the latents of two texts at one position; towards 1 the
                latents have collapsed
        """
        n = self._num_texts.item()
        if n < 2:
            return {}
        mean_KD = self._sum_KD / n
        variance_D = (self._squares_KD / n - mean_KD.square()).clamp(min=0).mean(0)
        std_D = variance_D.sqrt()
        # Of n (n - 1) ordered pairs: the square of a sum, less each vector with itself.
        cosines = (self._directions_KD.square().sum(-1) - n) / (n * (n - 1))
        return {"latent_variance": variance_D.mean().item(), "latent_std_min": std_D.min().item(),
                "latent_std_max": std_D.max().item(),
                "latent_rank": effective_rank(self.principal_variances()),
                "latent_cosine": cosines.mean().item()}

    def principal_variances(self) -> Tensor:
        """Variances across texts along the principal axes of the channels, of all positions together: (D,),
        float64, not a number where a latent is not finite. Of two texts or more."""
        n = self._num_texts.item()
        mean_KD = self._sum_KD / n
        moments_DD = self._products_DD / (n * len(mean_KD))
        covariance_DD = moments_DD - mean_KD.T @ mean_KD / len(mean_KD)
        if not torch.isfinite(covariance_DD).all():
            return torch.full_like(covariance_DD[0], torch.nan)
        variances_D = torch.linalg.eigvalsh(covariance_DD)
        return torch.where(variances_D > _ROUNDING * moments_DD.abs().max(), variances_D, 0.0)


def effective_rank(variances_D: Tensor) -> float:
    """Directions along which something varies, weighted: in [1, D], or 0 where nothing varies.

    The exponential of the entropy of the shares of principal variances (Roy and Vetterli, 2007).
    """
    if not variances_D.any():
        return 0.0
    shares_D = variances_D / variances_D.sum()
    return torch.special.entr(shares_D).sum().exp().item()


def linear_denoiser_loss(variances_D: Tensor, u_T: Tensor, tan_d: float) -> float:
    """Mean squared error of the best linear denoiser that sees one latent at a time, mean over times.

    It knows mean and covariance of the latents and nothing of texts: a denoiser that is no better has
    learned no language. Of a variance v along an axis the Wiener filter leaves
    v sigma^2 / (alpha^2 v + sigma^2).

    Args:
        variances_D: Along the principal axes.
        u_T: Diffusion times.
        tan_d: Of the schedule.
    """
    alpha_T1, sigma_T1 = (amplitude[:, None] for amplitude in alpha_sigma(u_T.to(variances_D), tan_d))
    left_TD = variances_D * sigma_T1**2 / (alpha_T1**2 * variances_D + sigma_T1**2)
    return left_TD.mean().item()


def encoder_gradient_norms(model: LatentDiffusionLM, tokens_BL: Tensor, h_BLD: Tensor, noise: StepNoise,
                           encoder_gate: float, u_B: Tensor,
                           prompt_h_BPD: Tensor | None = None) -> dict[str, Tensor]:
    """How hard reconstruction and diffusion pull at the latent encoder, each with its weight and gate.

    For one micro-batch on one rank; nothing of the model changes, no `.grad` either, and DeepSpeed,
    which takes any gradient of its parameters for the step's, hears of none: the pass runs on aliases.

    It takes less memory than a training step on as many sequences: of what that keeps for its way back,
    the encoder's part is kept here, and beside it the decoder's or the denoiser's, one after the other
    and without what only the gradients of their weights need. Those of the encoder come one at a time.

    Args:
        model: In training mode, or in evaluation mode for a look without dropout.
        tokens_BL, h_BLD, noise, encoder_gate, u_B, prompt_h_BPD: See `LatentDiffusionLM.forward`.

    Returns:
        encoder_grad_hidden: norm of the gradient of what trains the decoder, a float32 scalar; with
            `decoder_loss: token` that is not the hidden states' error but the tokens'
        encoder_grad_diffusion: the same of the diffusion loss
        encoder_grad_ratio: the second over the first
    """
    scale = model.encoder.scale
    was_training = scale.training
    scale.eval()  # a running scale must not count these latents twice
    aliases = {f"model.{name}": weight.detach() for name, weight in model.named_parameters()}
    of_encoder = [alias.requires_grad_() for name, alias in aliases.items()
                  if name.startswith("model.encoder.")]
    hidden, diffusion = torch.func.functional_call(
        _Pulls(model, of_encoder), aliases, (tokens_BL, h_BLD, noise, encoder_gate, u_B, prompt_h_BPD))
    scale.train(was_training)
    return {"encoder_grad_hidden": hidden, "encoder_grad_diffusion": diffusion,
            "encoder_grad_ratio": diffusion / hidden}


class _Pulls(nn.Module):
    """The passes behind `encoder_gradient_norms`, as a module so that they can be lent other weights.

    Ways back are part of its forward pass: recomputed blocks must find the same weights again.
    """

    def __init__(self, model: LatentDiffusionLM, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self._weights = weights

    def forward(self, tokens_BL: Tensor, h_BLD: Tensor, noise: StepNoise, encoder_gate: float, u_B: Tensor,
                prompt_h_BPD: Tensor | None) -> tuple[Tensor, Tensor]:
        model, settings = self.model, self.model.config.diffusion
        hbar_BLD = model.normalise(h_BLD)
        prompt = model.prompt_of(h_BLD, noise, prompt_h_BPD)
        z_BKD = model.encoder(hbar_BLD)
        end_BKD = z_BKD.detach().requires_grad_()

        def decoder() -> Tensor:
            if settings.decoder_loss == "token":
                return settings.token_weight * model.token_loss(
                    model.reconstruction(end_BKD, noise), tokens_BL, noise.positions_BP)
            return settings.hidden_weight * F.mse_loss(model.reconstruction(end_BKD, noise), hbar_BLD)

        def diffusion() -> Tensor:
            return settings.diffusion_weight * model.diffusion_loss(
                gated(end_BKD, encoder_gate), noise.latent_BKD, u_B, noise.self_conditioned_B, prompt).mean()

        # Each list of temporaries is gone before the next begins.
        pulls = [torch.autograd.grad(loss(), end_BKD)[0] for loss in (decoder, diffusion)]
        return self._norm(z_BKD, pulls[0], is_last=False), self._norm(z_BKD, pulls[1], is_last=True)

    def _norm(self, z_BKD: Tensor, pull_BKD: Tensor, *, is_last: bool) -> Tensor:
        """Norm over the encoder's weights of the gradient that a pull at its latents gives them."""
        norms: list[Tensor] = []

        def take(weight: Tensor) -> None:
            assert weight.grad is not None
            norms.append(torch.linalg.vector_norm(weight.grad, dtype=torch.float32))
            weight.grad = None

        hooks = [weight.register_post_accumulate_grad_hook(take) for weight in self._weights]
        z_BKD.backward(pull_BKD, retain_graph=not is_last)
        for hook in hooks:
            hook.remove()
        return torch.stack(norms).norm()


def distinct(rows: Iterable[Sequence[int]], n: int) -> float:
    """Share of n-grams, over all rows, that are the first of their kind: in [0, 1]; 0 without any."""
    grams = [tuple(row[i:i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(1, len(grams))

