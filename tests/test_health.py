"""Health of the latent space, on cases that can be checked by hand."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from live_bytes import LiveBytes  # noqa: E402
from tiny_ldlm import HIDDEN_SIZE, VOCABULARY, tiny_config, tiny_model  # noqa: E402

from trainer.health import (  # noqa: E402
    LatentHealth,
    distinct,
    effective_rank,
    encoder_gradient_norms,
    linear_denoiser_loss,
)
from trainer.model import draw_noise  # noqa: E402


def _summary(z: torch.Tensor, batch: int = 3) -> dict[str, float]:
    health = LatentHealth(z.shape[1], z.shape[2], "cpu")
    for part in z.split(batch):
        health.add(part)
    return health.summary()


def test_two_opposite_texts() -> None:
    """+-1 in the first channel, +-3 in the second, about another mean at each of two positions."""
    away = torch.tensor([[1.0, 3.0, 0.0]])
    means = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 5.0]])
    found = _summary(torch.stack([means + away, means - away]))
    assert found["latent_variance"] == pytest.approx((1 + 9 + 0) / 3)
    assert found["latent_std_min"] == 0.0
    assert found["latent_std_max"] == pytest.approx(3.0)
    assert found["latent_rank"] == pytest.approx(1.0)  # both channels move together
    # cos of (1, 3, c) and (-1, -3, c): (c^2 - 10) / (c^2 + 10), for c of 2 and 5
    assert found["latent_cosine"] == pytest.approx(((4 - 10) / 14 + (25 - 10) / 35) / 2, abs=1e-9)


def test_texts_that_are_all_the_same_have_collapsed_though_positions_differ() -> None:
    one = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    found = _summary(one.expand(10, -1, -1))
    assert found["latent_cosine"] == pytest.approx(1.0)
    assert found["latent_variance"] == pytest.approx(0.0, abs=1e-7)
    assert found["latent_rank"] == 0.0


def test_random_texts_use_every_direction_and_share_none() -> None:
    found = _summary(torch.randn(4_000, 2, 8, generator=torch.Generator().manual_seed(0)), batch=900)
    assert found["latent_cosine"] == pytest.approx(0.0, abs=0.01)
    assert found["latent_rank"] == pytest.approx(8.0, rel=0.01)
    assert found["latent_variance"] == pytest.approx(1.0, rel=0.02)


def test_one_text_says_nothing_and_lost_latents_do_not_raise() -> None:
    assert _summary(torch.ones(1, 2, 3)) == {}
    assert math.isnan(_summary(torch.full((4, 2, 3), float("nan")))["latent_rank"])


def test_effective_rank_counts_directions_by_their_variance() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    # exp of the entropy of (3/4, 1/4)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(expected)


def test_a_linear_denoiser_does_as_least_squares_does_on_latents_that_correlate() -> None:
    """Fitted by numpy on noised draws, time by time, and compared with the closed form of its mean."""
    draw, num, tan_d = np.random.default_rng(0), 200_000, 2.0
    mix = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.0, 0.3, 0.1]])
    z = draw.standard_normal((num, 3)) @ mix.T
    losses = []
    for u in (0.125, 0.375, 0.625, 0.875):
        power = 1 / (1 + (tan_d * math.tan(math.pi * u / 2)) ** 2)
        seen = power**0.5 * z + (1 - power) ** 0.5 * draw.standard_normal((num, 3))
        weights, *_ = np.linalg.lstsq(seen, z, rcond=None)
        losses.append(((seen @ weights - z) ** 2).mean())
    health = LatentHealth(1, 3, "cpu")
    health.add(torch.from_numpy(z)[:, None] + 7.0)
    times = torch.tensor([0.125, 0.375, 0.625, 0.875])
    found = linear_denoiser_loss(health.principal_variances(), times, tan_d)
    assert found == pytest.approx(np.mean(losses), rel=0.01)
    # Over all times: v d / (d + sqrt(v)), by integration of the tangent schedule.
    many = (torch.arange(10_000) + 0.5) / 10_000
    assert linear_denoiser_loss(torch.tensor([4.0]), many, tan_d) == pytest.approx(4 * 2 / (2 + 2), rel=1e-3)


@pytest.mark.parametrize("layout", [{}, {"latent_norm": "running_std"}, {"prompt": True}])
@pytest.mark.parametrize(("recompute", "decoder"), [(False, "hidden"), (True, "hidden"), (False, "token")])
def test_pull_at_the_encoder_is_the_norm_of_its_gradient_and_leaves_the_step_alone(
        recompute: bool, decoder: str, layout: dict) -> None:
    config = tiny_config(layout, activation_checkpointing=recompute, diffusion={
        "hidden_weight": 2.0, "token_weight": 2.0, "diffusion_weight": 3.0, "decoder_loss": decoder})
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (4, 8), generator=generator)
    hidden = torch.randn(4, 8, HIDDEN_SIZE, generator=generator)
    noise = draw_noise(config, 0, 0, range(4), "cpu")
    inputs = (tokens, hidden, noise, 0.1, noise.uniform_B)

    def norm_of(loss: str) -> float:
        model = tiny_model(config)
        getattr(model(*inputs), loss).backward()
        gradients = [p.grad.flatten() for p in model.encoder.parameters() if p.grad is not None]
        return torch.cat(gradients).norm().item()

    model = tiny_model(config)
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    found = encoder_gradient_norms(model, *inputs)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters()) and model.encoder.scale.training
    hidden_norm, diffusion_norm = 2 * norm_of(decoder), 3 * norm_of("diffusion")
    assert found["encoder_grad_hidden"].item() == pytest.approx(hidden_norm, rel=1e-5)
    assert found["encoder_grad_diffusion"].item() == pytest.approx(diffusion_norm, rel=1e-5)
    assert found["encoder_grad_ratio"].item() == pytest.approx(diffusion_norm / hidden_norm, rel=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_looking_at_the_pulls_takes_less_memory_than_a_step_on_as_many_sequences(recompute: bool) -> None:
    config = tiny_config({"width": 64, "latent_width": 32, "encoder_layers": 3, "decoder_layers": 3,
                          "denoiser_layers": 3}, activation_checkpointing=recompute, micro_batch_size=8,
                         data={"sequence_length": 32})
    model, noise = tiny_model(config), draw_noise(config, 0, 0, range(8), "cpu")
    inputs = (torch.zeros(8, 32, dtype=torch.int64), torch.randn(8, 32, HIDDEN_SIZE), noise, 0.1,
              noise.uniform_B)
    there = [*model.parameters(), *model.buffers(), *inputs[:2], *noise]
    with LiveBytes(*there) as looking:
        encoder_gradient_norms(model, *inputs)

    def drop(weight: torch.Tensor) -> None:
        weight.grad = None  # as DeepSpeed does once it has added it up

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(drop)
    with LiveBytes(*there) as training:
        model(*inputs).total.backward()
    assert looking.peak < (0.9 if recompute else 0.8) * training.peak


def test_distinct_counts_each_n_gram_once() -> None:
    rows = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct(rows, 1) == pytest.approx(3 / 7)
    assert distinct(rows, 2) == pytest.approx(3 / 5)  # 12 21 12 | 12 23
    assert distinct(rows, 9) == 0.0
