"""Solvers: from noise to the denoiser's last word, along a falling grid of times.

Shapes: B samples, K latents, D latent width.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import SamplingConfig
from trainer.diffusion import TimestepSampler, alpha_sigma, sampling_grid
from trainer.fast.noise import normals

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


class Mix(NamedTuple):
    """Less noisy latents = keep * noisy latents + take * estimate of the clean ones + add * fresh noise."""

    keep: float
    take: float
    add: float

    def of(self, z: Tensor, estimate: Tensor, fresh: Callable[[], Tensor]) -> Tensor:
        """Less noisy latents. Fresh noise is drawn only where some is added."""
        z = self.keep * z + self.take * estimate
        return z + self.add * fresh() if self.add else z


class SampleNoise:
    """Standard normal numbers of some samples. Those of one depend on its key alone: on every device they are
    the same but for rounding.

    Args:
        keys_B2: From `trainer.fast.noise.sample_keys`, where the numbers are wanted.
        shape: Of one sample.
    """

    def __init__(self, keys_B2: Tensor, shape: tuple[int, ...]) -> None:
        self._keys_B2, self._shape = keys_B2, shape
        self._draws = itertools.count(1)

    def start(self) -> Tensor:
        """What the samples start from: (B, *shape), float32."""
        return normals(self._keys_B2, 0, self._shape)

    def fresh(self) -> Tensor:
        """More of it, other numbers at each call: (B, *shape), float32."""
        return normals(self._keys_B2, next(self._draws), self._shape)


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
    grid = grid_of(sampling, warp)
    times, mix_of = grid.to(z_BKD.device), SOLVERS[sampling.solver]
    estimate_BKD = torch.zeros_like(z_BKD)
    for i, step in enumerate(solver_steps(grid, tan_d)):
        for round_ in range(rounds):
            if round_:
                z_BKD = _noised_back(step).of(z_BKD, estimate_BKD, noise.fresh)
            estimate_BKD = denoise(z_BKD, times[i].expand(len(z_BKD)), estimate_BKD)
            if i + 1 == sampling.steps:
                break
            z_BKD = mix_of(step).of(z_BKD, estimate_BKD, noise.fresh)
    return estimate_BKD


def grid_of(sampling: SamplingConfig, warp: TimestepSampler | None) -> Tensor:
    """The times of a sampling, float32 of shape (steps + 1,), on the CPU."""
    return sampling_grid(sampling.steps, warp if sampling.grid == "warped" else None)


def solver_steps(grid: Tensor, tan_d: float) -> list[Step]:
    """The steps of a falling grid of times. Plain numbers: no step waits for the device."""
    alphas, sigmas = (amplitudes.tolist() for amplitudes in alpha_sigma(grid.double(), tan_d))
    times = grid.tolist()
    return [Step(times[i], times[i + 1], alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1], tan_d)
            for i in range(len(times) - 1)]


def _noised_back(step: Step) -> Mix:
    """From u_next to u again, as the noising process goes."""
    ratio = step.alpha / step.alpha_next
    return Mix(ratio, 0.0, math.sqrt(max(0.0, step.sigma**2 - (ratio * step.sigma_next) ** 2)))


def _ddim(step: Step) -> Mix:
    """alpha_next * estimate + sigma_next * eps, where eps = (z - alpha * estimate) / sigma."""
    ratio = step.sigma_next / step.sigma
    return Mix(ratio, step.alpha_next - ratio * step.alpha, 0.0)


def _ancestral(step: Step) -> Mix:
    """Draw from what the noising process can have been at u_next, given its end at u and the clean latent."""
    ratio = step.alpha / step.alpha_next
    eta = step.sigma_next / step.sigma * math.sqrt(max(0.0, 1 - ratio**2))
    # Of eps: the square root of sigma_next^2 - eta^2, without a difference that may round to below 0.
    kept = step.sigma_next**2 / step.sigma * ratio
    return Mix(kept / step.sigma, step.alpha_next - kept * step.alpha / step.sigma, eta)


def _sde(step: Step) -> Mix:
    """A step of Euler and Maruyama on the reverse-time equation: z + added * (z / 2 + score) + noise.

    The score is (alpha * estimate - z) / sigma^2.
    """
    added = noise_rate(min(step.u, _FASTEST_AT), step.d) * (step.u - step.u_next)
    keep = 1 + added / 2 - added / step.sigma**2
    return Mix(keep, added * step.alpha / step.sigma**2, math.sqrt(added))


SOLVERS: dict[str, Callable[[Step], Mix]] = {"ddim": _ddim, "ancestral": _ancestral, "sde": _sde}


def noise_rate(u: float, d: float) -> float:
    """beta(u) = -2 d ln(alpha) / du of the tangent schedule, at a time in [0, 1)."""
    tangent = math.tan(math.pi * u / 2)
    return math.pi * d**2 * tangent * (1 + tangent**2) / (1 + d**2 * tangent**2)
