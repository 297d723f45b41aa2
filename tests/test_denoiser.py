"""The diffusion transformer."""

import pytest

torch = pytest.importorskip("torch")

from trainer.denoiser import Denoiser  # noqa: E402


def _inputs() -> tuple:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, 5, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9]),
            torch.randn(3, 5, 8, generator=generator))


def _disturbed() -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(5, 8, 16, 2, 2)
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


def test_first_prediction_is_zero_and_can_learn() -> None:
    denoiser = Denoiser(5, 8, 16, 2, 2)
    prediction = denoiser(*_inputs())
    assert prediction.shape == (3, 5, 8)
    assert not prediction.any()
    (prediction - 1).square().sum().backward()
    assert denoiser.output.bias.grad.abs().sum() > 0


def test_prediction_depends_on_time_noise_and_earlier_estimate() -> None:
    denoiser, (z, u, estimate) = _disturbed(), _inputs()
    base = denoiser(z, u, estimate)
    for other in ((z + 1, u, estimate), (z, u + 0.001, estimate), (z, u, torch.zeros_like(estimate))):
        assert not torch.allclose(denoiser(*other), base, atol=1e-4)


def test_every_latent_sees_every_other() -> None:
    denoiser, (z, u, estimate) = _disturbed(), _inputs()
    changed = z.clone()
    changed[:, 4] += 1
    assert ((denoiser(changed, u, estimate) - denoiser(z, u, estimate)).abs().amax(-1) > 1e-6).all()


def test_paper_scale_has_the_size_that_readers_report() -> None:
    denoiser = Denoiser(1024, 768, 768, 12, 12)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == pytest.approx(132e6, rel=0.01)
