"""The diffusion transformer."""

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, tiny_config  # noqa: E402

from trainer.denoiser import Denoiser  # noqa: E402

_LAYOUTS = [{}, {"denoiser_block": "plain"}, {"denoiser_block": "plain", "latent_width": 16},
            {"denoiser_positions": "rotary"}, {"time_input": "log_snr"},
            {"denoiser_block": "plain", "time_input": "log_snr", "denoiser_positions": "rotary"}]


def _denoiser(**layout: object) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(tiny_config({"latent_width": 8, "num_latents": 5, "denoiser_layers": 2} | layout),
                    HIDDEN_SIZE)


def _inputs(width: int = 8) -> tuple:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(3, 5, width, generator=generator), torch.tensor([0.1, 0.5, 0.9]),
            torch.randn(3, 5, width, generator=generator))


def _disturbed(**layout: object) -> Denoiser:
    denoiser = _denoiser(**layout)
    for name, parameter in denoiser.named_parameters():
        if parameter.ndim == 2 or name == "output.weight":
            torch.nn.init.normal_(parameter, std=0.3)
    return denoiser


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_first_prediction_is_zero_and_can_learn(layout: dict) -> None:
    denoiser = _denoiser(**layout)
    z, u, estimate = _inputs(layout.get("latent_width", 8))
    prediction = denoiser(z, u, estimate)
    assert prediction.shape == z.shape
    assert not prediction.any()
    (prediction - 1).square().sum().backward()
    assert denoiser.output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_prediction_depends_on_time_noise_and_earlier_estimate(layout: dict) -> None:
    denoiser, (z, u, estimate) = _disturbed(**layout), _inputs(layout.get("latent_width", 8))
    base = denoiser(z, u, estimate)
    for other in ((z + 1, u, estimate), (z, u + 0.005, estimate), (z, u, torch.zeros_like(estimate))):
        assert not torch.allclose(denoiser(*other), base, atol=1e-4)


@pytest.mark.parametrize("block", ["adaln", "plain"])
def test_without_self_conditioning_the_earlier_estimate_is_not_read(block: str) -> None:
    denoiser, (z, u, estimate) = _disturbed(denoiser_block=block, self_conditioning=False), _inputs()
    assert torch.equal(denoiser(z, u, estimate), denoiser(z, u, estimate + 1))


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_every_latent_sees_every_other_and_its_place(layout: dict) -> None:
    denoiser, (z, u, estimate) = _disturbed(**layout), _inputs(layout.get("latent_width", 8))
    changed = z.clone()
    changed[:, 4] += 1
    assert ((denoiser(changed, u, estimate) - denoiser(z, u, estimate)).abs().amax(-1) > 1e-6).all()
    turned = denoiser(z.flip(1), u, estimate.flip(1)).flip(1)
    assert not torch.allclose(turned, denoiser(z, u, estimate), atol=1e-3)


@pytest.mark.parametrize("block", ["adaln", "plain"])
def test_log_snr_is_told_apart_where_the_time_is_not_and_is_finite_at_both_ends(block: str) -> None:
    z, _, estimate = _inputs()
    denoiser = _disturbed(denoiser_block=block, time_input="log_snr")
    ends = denoiser(z, torch.tensor([0.0, 1.0, 0.5]), estimate)
    assert ends.isfinite().all()
    # From u = 0.001 to 0.002 the signal-to-noise ratio falls by a factor of 4.
    early, later = (denoiser(z, torch.full((3,), u), estimate) for u in (0.001, 0.002))
    assert (early - later).abs().max() > 1e-3
