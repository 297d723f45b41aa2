"""Solvers on data whose best denoiser is known, against what such data are; noise of samples."""

import math

import pytest

torch = pytest.importorskip("torch")

from trainer.config import SamplingConfig  # noqa: E402
from trainer.diffusion import TimestepSampler, alpha_sigma  # noqa: E402
from trainer.fast.noise import sample_keys  # noqa: E402
from trainer.sampler import SampleNoise, integrate, noise_rate  # noqa: E402

SOLVERS = ("ddim", "ancestral", "sde")
D = 3.0
SEED = 2


def _noise(seed, indices, shape) -> SampleNoise:
    return SampleNoise(sample_keys(seed, indices, "cpu"), shape)


def _warp() -> TimestepSampler:
    """More of the time where there is less noise, as on a loss that rises fast there."""
    warp = TimestepSampler(10, 0.999, 1)
    warp.probabilities = torch.linspace(2.0, 0.2, 10, dtype=torch.float64) / 11
    return warp


def _sampled(denoise, solver: str, steps: int, grid: str = "uniform", num: int = 100, width: int = 400,
             temperature: float = 1.0, rounds: int = 1) -> torch.Tensor:
    sampling = SamplingConfig(steps=steps, solver=solver, grid=grid, temperature=temperature)
    noise = _noise(SEED, range(num), (width,))
    return integrate(denoise, noise, sampling, D, _warp(), rounds)


def _unit_gaussian(z, u_B, _estimate):
    """E[z0 | z_u] where the data are standard normal."""
    return alpha_sigma(u_B, D)[0][:, None] * z


@pytest.mark.parametrize(("solver", "steps", "std"), [
    ("ddim", 16, 0.88), ("ddim", 64, 0.97), ("ddim", 256, 0.99),
    ("ancestral", 16, 0.80), ("ancestral", 64, 0.93), ("ancestral", 256, 0.98)])
def test_the_spread_of_gaussian_data_is_that_of_the_specification(solver, steps, std):
    assert _sampled(_unit_gaussian, solver, steps).std().item() == pytest.approx(std, abs=0.012)


@pytest.mark.parametrize("grid", ["uniform", "warped"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_reproduces_the_variance_and_errs_less_with_more_steps(solver, grid):
    errors = [abs(_sampled(_unit_gaussian, solver, steps, grid).var().item() - 1) for steps in (8, 48, 256)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2
    assert errors[2] < 0.04


# A correlated Gaussian: mean and covariance, neither of them the solvers' start.
MEAN = torch.tensor([1.0, -0.5, 0.0])
COVARIANCE = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, -0.3], [0.0, -0.3, 0.5]])


def _correlated(z, u_B, _estimate):
    alpha, sigma = (float(amplitude[0]) for amplitude in alpha_sigma(u_B, D))
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3))
    return MEAN + (z - alpha * MEAN) @ gain.T


@pytest.mark.parametrize("grid", ["uniform", "warped"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_mean_and_covariance_of_correlated_data_come_back(solver, grid):
    samples = _sampled(_correlated, solver, 128, grid, num=1_500, width=3)
    assert torch.allclose(samples.mean(0), MEAN, atol=0.08)
    assert torch.allclose(samples.T.cov(), COVARIANCE, atol=0.12)


def test_ddim_follows_the_exact_flow_of_correlated_data_and_halves_its_error_with_twice_the_steps():
    """Along each principal axis the flow keeps the place in units of the spread at that time."""
    spread, axes = torch.linalg.eigh(COVARIANCE.double())
    first = _noise(SEED, range(50), (3,)).start().double()

    def amplitudes(u):
        tangent = D * math.tan(math.pi * u / 2)
        return 1 / math.hypot(1, tangent), tangent / math.hypot(1, tangent)

    def error(steps):
        # The last estimate is made at the last time but one.
        (a, s), (b, t) = amplitudes(1 - 1e-3), amplitudes(1e-3 + (1 - 2e-3) / steps)
        along = (first - a * MEAN.double()) @ axes
        along = along * ((b**2 * spread + t**2) / (a**2 * spread + s**2)).sqrt()
        exact = MEAN.double() + (along * b * spread / (b**2 * spread + t**2)) @ axes.T
        return (_sampled(_correlated, "ddim", steps, num=50, width=3) - exact).square().mean().sqrt().item()

    errors = [error(steps) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(("solver", "steps", "rounds", "expected"), [
    ("ddim", 96, 1, 0.48), ("ancestral", 96, 1, 0.66), ("sde", 96, 1, 0.68), ("ddim", 24, 4, 0.76),
    ("ancestral", 24, 4, 0.79)])
def test_replacing_what_is_known_moves_the_rest_part_of_the_way_and_rounds_more(solver, steps, rounds,
                                                                                expected):
    """The first of three coordinates is 2: the closed form says where the second then is on average.

    Replacement is known to fall short: what is known is told under as much noise as the rest. Expected
    shares for these seeds come from a loop written apart.
    """
    def denoise(z, u_B, estimate):
        found = _correlated(z, u_B, estimate)
        return torch.cat([torch.full_like(found[:, :1], 2.0), found[:, 1:]], dim=1)

    samples = _sampled(denoise, solver, steps, num=2_000, width=3, rounds=rounds)
    told = MEAN[1] + COVARIANCE[1, 0] / COVARIANCE[0, 0] * (2.0 - MEAN[0])
    assert (samples[:, 1].mean() - MEAN[1]) / (told - MEAN[1]) == pytest.approx(expected, abs=0.05)
    assert (samples[:, 0] == 2).all()


# Two bumps on a line.
WEIGHTS, CENTRES, WIDTHS = (0.3, 0.7), (-1.5, 0.8), (0.3, 0.4)


def _bumps(z, u_B, _estimate):
    alpha, sigma = (float(amplitude[0]) for amplitude in alpha_sigma(u_B, D))
    log_shares, means = [], []
    for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True):
        variance = alpha**2 * width**2 + sigma**2
        away = (z - alpha * centre) ** 2 / (2 * variance)
        log_shares.append(math.log(weight) - away - math.log(variance) / 2)
        means.append(centre + alpha * width**2 / variance * (z - alpha * centre))
    return (torch.stack(log_shares).softmax(0) * torch.stack(means)).sum(0)


def _cumulative(x: float) -> float:
    return sum(weight * (1 + math.erf((x - centre) / (width * math.sqrt(2)))) / 2
               for weight, centre, width in zip(WEIGHTS, CENTRES, WIDTHS, strict=True))


@pytest.mark.parametrize("grid", ["uniform", "warped"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_mixture_comes_back_as_its_distribution(solver, grid):
    """The largest gap between cumulative shares: about 0.8 / sqrt(20,000) = 0.006 by chance alone."""
    def gap(steps):
        samples = _sampled(_bumps, solver, steps, grid, num=100, width=200).flatten().sort().values.tolist()
        return max(abs(_cumulative(x) - (i + 0.5) / len(samples)) for i, x in enumerate(samples))

    assert gap(256) < 0.03
    assert gap(8) > 0.05


def test_a_colder_start_gives_less_spread_where_nothing_is_added_later():
    warm, cold = (_sampled(_unit_gaussian, "ddim", 64, temperature=t) for t in (1.0, 0.5))
    assert torch.allclose(cold, warm / 2, atol=1e-5)


def test_rate_of_noising_is_the_slope_of_the_schedule():
    for u in (0.05, 0.5, 0.9):
        higher, lower = (2 * math.log(float(alpha_sigma(torch.tensor(u + h, dtype=torch.float64), D)[0]))
                         for h in (1e-6, -1e-6))
        assert noise_rate(u, D) == pytest.approx(-(higher - lower) / 2e-6, rel=1e-4)


def test_each_pass_sees_the_estimate_of_the_one_before():
    seen = []

    def denoise(z, _u_B, estimate):
        seen.append(estimate.mean().item())
        return torch.full_like(z, float(len(seen)))

    last = _sampled(denoise, "ddim", 4, num=2, width=3)
    assert seen == [0.0, 1.0, 2.0, 3.0]
    assert (last == 4.0).all()


def test_noise_of_a_sample_depends_on_seed_and_index_alone():
    def drawn(seed, indices):
        noise = _noise(seed, indices, (5, 2))
        return torch.stack([noise.start(), noise.fresh(), noise.fresh()])

    eight = drawn(0, range(8))
    assert torch.equal(eight[:, :4], drawn(0, range(4)))
    assert torch.equal(eight[:, 5:6], drawn(0, [5]))
    assert not torch.equal(eight, drawn(1, range(8)))
    assert len(eight.flatten().unique()) == eight.numel()
