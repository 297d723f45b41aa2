"""Schedule, warm-up and adaptive timesteps against the numbers of the method."""

import math

import pytest

torch = pytest.importorskip("torch")

from trainer.diffusion import (  # noqa: E402
    TimestepSampler,
    alpha_sigma,
    encoder_gate,
    log_snr,
    noised,
    sampling_grid,
)


@pytest.mark.parametrize(("u", "signal"), [(0.2, 0.513), (0.5, 0.100), (0.8, 0.0116), (0.0, 1.0), (1.0, 0.0)])
def test_tangent_schedule_has_the_signal_power_of_the_paper(u: float, signal: float) -> None:
    alpha, sigma = alpha_sigma(torch.tensor(u), 3.0)
    assert alpha.item() ** 2 == pytest.approx(signal, abs=5e-4)
    assert alpha.item() ** 2 + sigma.item() ** 2 == pytest.approx(1.0)


def test_log_snr_is_that_of_the_tangent_schedule_and_infinite_at_the_ends() -> None:
    for u in (0.1, 0.5, 0.9):
        expected = -2 * math.log(3 * math.tan(math.pi * u / 2))
        assert log_snr(torch.tensor(u), 3.0).item() == pytest.approx(expected, abs=1e-4)
    assert log_snr(torch.tensor([0.0, 1.0]), 3.0).tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize(("share", "gate"), [(0, 0.001), (0.25, 0.005), (0.5, 0.054), (0.6, 0.136),
                                             (0.7, 0.306), (0.8, 0.568), (0.9, 0.830), (1, 1.0), (3, 1.0)])
def test_encoder_gate_follows_the_warmup_curve(share: float, gate: float) -> None:
    assert encoder_gate(int(share * 1000), 1000, 0.001) == pytest.approx(gate, abs=6e-4)


def test_noising_mixes_each_sample_at_its_own_time() -> None:
    z, eps = torch.full((2, 3, 4), 2.0), torch.full((2, 3, 4), 5.0)
    mixed = noised(z, eps, torch.tensor([0.0, 1.0]), 3.0)
    assert torch.equal(mixed[0], z[0])
    assert torch.allclose(mixed[1], eps[1], atol=1e-5)


def _loss(u: torch.Tensor) -> torch.Tensor:
    """A loss curve that rises steeply around u = 0.3 and is flat at both ends."""
    return 0.1 + torch.sigmoid((u - 0.3) * 20)


def _trained_sampler() -> TimestepSampler:
    sampler = TimestepSampler(100, 0.999, refresh_steps=50)
    generator = torch.Generator().manual_seed(0)
    for step in range(50):
        u = sampler.sample(torch.rand(512, generator=generator))
        noise = 1 + 0.03 * torch.randn(512, generator=generator)
        sampler.update(*sampler.bin_sums(u, _loss(u) * noise), step)
    return sampler


def test_loss_rises_evenly_in_the_warped_time() -> None:
    warped = _trained_sampler().sample(torch.linspace(0, 1, 201, dtype=torch.float64))
    share = (_loss(warped) - _loss(torch.tensor(0.0))) / (_loss(torch.tensor(1.0)) - _loss(torch.tensor(0.0)))
    assert (share - torch.linspace(0, 1, 201)).abs().max() < 0.02


def test_density_is_even_until_the_first_refresh_and_no_bin_starves_after_it() -> None:
    sampler = TimestepSampler(100, 0.999, refresh_steps=50)
    u = torch.rand(512, generator=torch.Generator().manual_seed(1))
    for step in range(49):
        sampler.update(*sampler.bin_sums(u, _loss(u)), step)
    assert torch.allclose(sampler.sample(u), u)
    assert _trained_sampler().probabilities.min() > 0.5 * 0.01 / 100
    assert _trained_sampler().probabilities.sum().item() == pytest.approx(1.0)


def test_running_mean_starts_at_the_first_value_and_then_decays() -> None:
    sampler = TimestepSampler(2, 0.5, refresh_steps=1_000)
    for step, loss in enumerate((4.0, 8.0, 8.0)):
        sampler.update(torch.tensor([loss, 0.0]), torch.tensor([1.0, 0.0]), step)
    # 4, then the mean of 4 and 8, then half of the way from 6 to 8
    assert sampler.state_dict()["means"].tolist() == [7.0, 0.0]


def test_sums_of_two_ranks_add_up_to_those_of_the_whole_batch() -> None:
    sampler = TimestepSampler(10, 0.999, 50)
    u, loss = torch.tensor([0.05, 0.06, 0.95, 1.0]), torch.tensor([1.0, 2.0, 4.0, 8.0])
    sums, counts = sampler.bin_sums(u, loss)
    assert sums.tolist() == [3.0] + [0.0] * 8 + [12.0]
    assert counts.tolist() == [2.0] + [0.0] * 8 + [2.0]
    parts = [sampler.bin_sums(u[i::2], loss[i::2]) for i in range(2)]
    assert torch.equal(parts[0][0] + parts[1][0], sums)


def test_sampler_resumes_to_the_bit() -> None:
    one, other = _trained_sampler(), TimestepSampler(100, 0.999, 50)
    other.load_state_dict(one.state_dict())
    u = torch.rand(64, generator=torch.Generator().manual_seed(2))
    for step in range(50, 100):
        for sampler in (one, other):
            sampler.update(*sampler.bin_sums(u, _loss(u) + step), step)
    assert torch.equal(one.sample(u), other.sample(u))
    assert torch.equal(one.state_dict()["means"], other.state_dict()["means"])


def test_no_step_reads_the_device_between_refreshes() -> None:
    """Tensors without data cannot be read: whatever waits for a device fails on them."""
    sampler = TimestepSampler(10, 0.999, refresh_steps=50, device="meta")
    for step in range(49):
        u = sampler.sample(torch.empty(8, device="meta"))
        sampler.update(*sampler.bin_sums(u, torch.empty(8, device="meta")), step)


def test_sampling_grid_falls_from_noise_to_clean_even_or_warped() -> None:
    even, warped = sampling_grid(8), sampling_grid(8, _trained_sampler())
    assert len(even) == 9
    assert even[[0, -1]].tolist() == pytest.approx([0.999, 0.001])
    assert torch.allclose(even.diff(), torch.full((8,), -0.998 / 8))
    assert (warped.diff() < 0).all()
    # The synthetic loss rises around 0.3, so that is where the warped steps are short.
    assert math.isclose(warped[4].item(), 0.3, abs_tol=0.05)
