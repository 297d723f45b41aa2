"""Noise schedule, encoder warm-up and adaptive timesteps: arithmetic on tensors, no network.

Diffusion time u is in [0, 1]: 0 clean, 1 noise. Amplitudes alpha and sigma, alpha^2 + sigma^2 = 1.
Shapes: B samples.
"""

import math
from typing import Any

import torch
from torch import Tensor

_GATE_STEEPNESS = 10.0  # k and c of equation 29 of the paper (relay)
_GATE_CENTRE = 0.8
_GRID_MARGIN = 1e-3  # sampling runs from 1 - margin to margin: at 0 and 1 a step divides by zero
# Least probability of a bin, as a share of the even one. A guess: at the relayed 1e-6 a bin once left
# would never be measured again.
_BIN_FLOOR = 0.01


def alpha_sigma(u: Tensor, d: float) -> tuple[Tensor, Tensor]:
    """Amplitudes of signal and noise at time u, each of u's shape, float32 or better.

    The tangent schedule: alpha^2 = 1 / (1 + d^2 tan^2(pi u / 2)). Source: the authors' earlier code
    (TEncDM); d = 3 by relay.
    """
    angle = u.to(torch.promote_types(u.dtype, torch.float32)) * (math.pi / 2)
    signal, noise = angle.cos(), d * angle.sin()  # the ratio is 1 / (d tan): no infinity at u = 1
    norm = torch.hypot(signal, noise)
    return signal / norm, noise / norm


def log_snr(u: Tensor, d: float) -> Tensor:
    """ln(alpha^2 / sigma^2) at time u, of u's shape: +inf at 0, -inf at 1."""
    alpha, sigma = alpha_sigma(u, d)
    return 2 * (alpha.clamp(min=0).log() - sigma.log())  # the cosine of pi / 2 rounds to below 0


def encoder_gate(step: int, warmup_steps: int, floor: float) -> float:
    """gamma(s): share of the diffusion loss's gradient that reaches the latent encoder, in [floor, 1].

    A sigmoid stretched to go from `floor` at step 0 to 1 at `warmup_steps`. Source: equations 29 and
    30 of the paper (relay).
    """
    if step >= warmup_steps:
        return 1.0
    start, now, end = (1 / (1 + math.exp(-_GATE_STEEPNESS * (share - _GATE_CENTRE)))
                       for share in (0.0, step / warmup_steps, 1.0))
    return floor + (1 - floor) * (now - start) / (end - start)


def noised(z: Tensor, eps: Tensor, u_B: Tensor, d: float) -> Tensor:
    """z_u = alpha_u z + sigma_u eps, of z's shape (B, ...)."""
    alpha, sigma = (amplitude.view(-1, *[1] * (z.dim() - 1)) for amplitude in alpha_sigma(u_B, d))
    return alpha * z + sigma * eps


class TimestepSampler:
    """Density of training times, steered so that the loss grows evenly in the warped time.

    Until its first refresh the density is even. State is in float64 where the losses are, so that no
    step waits for the device; the density itself is worked out on the CPU, at refreshes only. Ranks
    that are fed the same sums stay equal to the bit. Source: section 5.3 and equation 5 of the paper
    (relay).

    Args:
        bins: Equal bins on [0, 1].
        decay: Of the running mean of a bin's loss, for each sample.
        refresh_steps: The density changes every so many steps.
        device: Where times are drawn and losses come from.
    """

    def __init__(self, bins: int, decay: float, refresh_steps: int,
                 device: torch.device | str = "cpu") -> None:
        self._decay = decay
        self._refresh_steps = refresh_steps
        self._device = device
        self._counts = torch.zeros(bins, dtype=torch.float64, device=device)
        self._means = torch.zeros(bins, dtype=torch.float64, device=device)
        self.probabilities = torch.full((bins,), 1 / bins, dtype=torch.float64)

    @property
    def num_bins(self) -> int:
        """How many bins share [0, 1]."""
        return len(self._probabilities)

    @property
    def probabilities(self) -> Tensor:
        """Of the bins, float64 on the CPU; they add up to 1."""
        return self._probabilities

    @probabilities.setter
    def probabilities(self, values: Tensor) -> None:
        self._probabilities = values.double().cpu()
        edges = torch.cat([torch.zeros(1, dtype=torch.float64), self._probabilities.cumsum(0)])
        self._edges = (edges / edges[-1]).to(self._device)

    def sample(self, uniform_B: Tensor) -> Tensor:
        """Times u_B whose density is q(u), given even ones in [0, 1]: the inverse of the warp F.

        Also turns an even sampling grid into a warped one.
        """
        edges, uniform = self._edges.to(uniform_B.device), uniform_B.double()
        bin_B = (torch.searchsorted(edges, uniform, right=True) - 1).clamp(0, self.num_bins - 1)
        inside = (uniform - edges[bin_B]) / (edges[bin_B + 1] - edges[bin_B])
        return ((bin_B + inside) / self.num_bins).clamp(0, 1).to(uniform_B.dtype)

    def bin_sums(self, u_B: Tensor, loss_B: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and number of samples added up in each bin: (sum_bins, count_bins), float64 on u's device.

        Ranks add these over all before `update`.
        """
        bin_B = (u_B.double() * self.num_bins).long().clamp(0, self.num_bins - 1)
        # A matrix product: adding by index is not deterministic on a GPU.
        member_BM = torch.nn.functional.one_hot(bin_B, self.num_bins).double()
        return loss_B.double() @ member_BM, member_BM.sum(0)

    def update(self, sums: Tensor, counts: Tensor, step: int) -> None:
        """Take in the losses of one step, over all ranks; refresh the density when it is due.

        Waits for the device at a refresh only.

        Args:
            sums: Loss of the bins, added up over their samples.
            counts: Samples of the bins.
            step: From 0. The density is refreshed at the end of every `refresh_steps` steps.
        """
        sums, counts = sums.double(), counts.double()
        self._counts += counts
        # 1/n at first: a mean that started at zero would pull towards it.
        weight = torch.maximum(1 - self._decay**counts, counts / self._counts.clamp(min=1))
        batch_means = sums / counts.clamp(min=1)
        self._means = torch.where(counts > 0, self._means + weight * (batch_means - self._means), self._means)
        if (step + 1) % self._refresh_steps == 0:
            self._refresh()

    def _refresh(self) -> None:
        measured, means = self._counts.cpu() > 0, self._means.cpu()
        if measured.sum() < 2:
            return
        rising = torch.cummax(_interpolated(means, measured), 0).values
        slopes = torch.gradient(rising)[0].clamp(min=0)
        if slopes.sum() > 0:
            floored = (slopes / slopes.sum()).clamp(min=_BIN_FLOOR / self.num_bins)
            self.probabilities = floored / floored.sum()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on, as it is: to be copied before the next step."""
        return {"counts": self._counts, "means": self._means, "probabilities": self.probabilities}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken."""
        self._counts = state["counts"].to(self._device, copy=True)
        self._means = state["means"].to(self._device, copy=True)
        self.probabilities = state["probabilities"].clone()


def sampling_grid(steps: int, warp: TimestepSampler | None = None) -> Tensor:
    """Times of a sampling run, from almost 1 down to almost 0: float32 of shape (steps + 1,).

    Args:
        steps: Denoiser passes.
        warp: None: even in u. Else even in its warped time, where the loss grows evenly.
    """
    grid = torch.linspace(1 - _GRID_MARGIN, _GRID_MARGIN, steps + 1, dtype=torch.float64)
    if warp is not None:
        grid = warp.sample(grid).clamp(_GRID_MARGIN, 1 - _GRID_MARGIN)
    return grid.float()


def _interpolated(values: Tensor, known: Tensor) -> Tensor:
    """Values with the unknown ones read off the straight line between their known neighbours."""
    index = torch.arange(len(values), dtype=values.dtype)
    x, y = index[known], values[known]
    right = torch.searchsorted(x, index).clamp(1, len(x) - 1)
    left = right - 1
    share = ((index - x[left]) / (x[right] - x[left])).clamp(0, 1)
    return torch.where(known, values, y[left] + share * (y[right] - y[left]))
