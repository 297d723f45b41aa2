"""Solvers: from noise to the denoiser's last word, along a falling grid of times.

Shapes: B samples, K latents, D latent width.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.chance import keyed_generator
from trainer.config import SamplingConfig
from trainer.diffusion import TimestepSampler, alpha_sigma, sampling_grid

# Noisy latents, their times and the estimate before -> clean latents.
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
# From here on the rate of noising is held: it is infinite at 1. Source: the authors' earlier code (TEncDM).
_FASTEST_AT = 0.95


class Step(NamedTuple):
    """One step of a solver: from time u to u_next, below it, and the amplitudes at both."""

    u: float
    u_next: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float
    d: float


# Noisy latents, the clean ones that the denoiser sees in them, the step, fresh noise -> less noisy latents.
Advance = Callable[[Tensor, Tensor, Step, Callable[[], Tensor]], Tensor]


class SampleNoise:
    """Standard normal numbers of some samples. Those of one depend on the seed and its index alone.

    What a sample starts from is the same on every device; what stochastic solvers add later is drawn on
    the device, and differs between kinds of device.

    Args:
        seed: Of the whole batch, of which these samples are a part.
        indices: Which samples.
        shape: Of one sample.
        device: Where the numbers are wanted.
    """

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, ...],
                 device: torch.device | str) -> None:
        self._shape, self._device = shape, device
        self._first = [keyed_generator("cpu", "sample", seed, index, "start") for index in indices]
        self._later = [keyed_generator(device, "sample", seed, index, "fresh") for index in indices]

    def start(self) -> Tensor:
        """What the samples start from: (B, *shape), float32."""
        return torch.stack([torch.randn(self._shape, generator=own) for own in self._first]).to(self._device)

    def fresh(self) -> Tensor:
        """More of it, other numbers at each call: (B, *shape), float32."""
        return torch.stack([torch.randn(self._shape, generator=own, device=self._device)
                            for own in self._later])


def integrate(denoise: Denoise, noise: SampleNoise, sampling: SamplingConfig, tan_d: float,
              warp: TimestepSampler | None = None, rounds: int = 1) -> Tensor:
    """Follow the grid of times from noise to the last prediction of the clean latents, float32.

    Args:
        denoise: (noisy latents, times_B, previous estimate) -> clean latents.
        noise: Of the samples.
        sampling: Steps, solver, grid and temperature.
        tan_d: d of the schedule.
        warp: The time that training has warped; read when the grid is `warped`, else even.
        rounds: How often each step is done, noised back in between, so that what `denoise` puts in place and
            the rest come to terms (RePaint, arXiv 2201.09865).
    """
    z_BKD = noise.start() * sampling.temperature
    grid = sampling_grid(sampling.steps, warp if sampling.grid == "warped" else None)
    times, advance = grid.to(z_BKD.device), _SOLVERS[sampling.solver]
    estimate_BKD = torch.zeros_like(z_BKD)
    for i, step in enumerate(solver_steps(grid, tan_d)):
        for round_ in range(rounds):
            if round_:
                z_BKD = _noised_back(z_BKD, step, noise.fresh)
            estimate_BKD = denoise(z_BKD, times[i].expand(len(z_BKD)), estimate_BKD)
            if i + 1 == sampling.steps:
                break
            z_BKD = advance(z_BKD, estimate_BKD, step, noise.fresh)
    return estimate_BKD


def _noised_back(z: Tensor, step: Step, fresh: Callable[[], Tensor]) -> Tensor:
    """From u_next to u again, as the noising process goes."""
    ratio = step.alpha / step.alpha_next
    return ratio * z + math.sqrt(max(0.0, step.sigma**2 - (ratio * step.sigma_next) ** 2)) * fresh()


def solver_steps(grid: Tensor, tan_d: float) -> list[Step]:
    """The steps of a falling grid of times. Plain numbers: no step waits for the device."""
    alphas, sigmas = (amplitudes.tolist() for amplitudes in alpha_sigma(grid.double(), tan_d))
    times = grid.tolist()
    return [Step(times[i], times[i + 1], alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1], tan_d)
            for i in range(len(times) - 1)]


def _ddim(z: Tensor, estimate: Tensor, step: Step, fresh: Callable[[], Tensor]) -> Tensor:
    eps = (z - step.alpha * estimate) / step.sigma
    return step.alpha_next * estimate + step.sigma_next * eps


def _ancestral(z: Tensor, estimate: Tensor, step: Step, fresh: Callable[[], Tensor]) -> Tensor:
    """Draw from what the noising process can have been at u_next, given its end at u and the clean latent."""
    eps = (z - step.alpha * estimate) / step.sigma
    ratio = step.alpha / step.alpha_next
    eta = step.sigma_next / step.sigma * math.sqrt(max(0.0, 1 - ratio**2))
    # The same as the square root of sigma_next^2 - eta^2, without a difference that rounds to below 0.
    kept = step.sigma_next**2 / step.sigma * ratio
    return step.alpha_next * estimate + kept * eps + eta * fresh()


def _sde(z: Tensor, estimate: Tensor, step: Step, fresh: Callable[[], Tensor]) -> Tensor:
    """A step of Euler and Maruyama on the reverse-time equation of the noising process."""
    score = (step.alpha * estimate - z) / step.sigma**2
    added = noise_rate(min(step.u, _FASTEST_AT), step.d) * (step.u - step.u_next)
    return z + added * (z / 2 + score) + math.sqrt(added) * fresh()


_SOLVERS: dict[str, Advance] = {"ddim": _ddim, "ancestral": _ancestral, "sde": _sde}


def noise_rate(u: float, d: float) -> float:
    """beta(u) = -2 d ln(alpha) / du of the tangent schedule, at a time in [0, 1)."""
    tangent = math.tan(math.pi * u / 2)
    return math.pi * d**2 * tangent * (1 + tangent**2) / (1 + d**2 * tangent**2)
