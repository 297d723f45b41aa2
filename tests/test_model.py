"""Losses, the gradients they may send, and the randomness of a step."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.evaluate import evaluate  # noqa: E402
from trainer.generate import decode  # noqa: E402
from trainer.model import LatentDiffusionLM, StepNoise, draw_noise  # noqa: E402

_PARTS = ("encoder", "denoiser", "decoder", "token_decoder")


def _config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({
        "steps": 1, "micro_batch_size": 2, "global_batch_size": 8, "precision": "fp32",
        "token_loss_fraction": 0.25, "data": {"source": "none", "sequence_length": 8},
        "token_encoder": {"name": "none"}, "checkpoint": {"every_steps": 1},
        "model": {"latent_width": 6, "width": 16, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
                  "denoiser_layers": 1, "token_decoder_layers": 1, "token_decoder_width": 16,
                  "token_decoder_heads": 2},
        "diffusion": {"decoder_noise_std": 1.0}} | changes)


def _model(token_ids: torch.Tensor | None = None) -> LatentDiffusionLM:
    torch.manual_seed(0)
    model = LatentDiffusionLM(_config(), 10, token_ids, 40)
    # The denoiser's zero start would hide gradients that should be there.
    for layer in model.denoiser.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return model


def _batch(num: int = 4) -> tuple[torch.Tensor, torch.Tensor, StepNoise, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 40, (num, 8), generator=generator)
    hidden = torch.randn(num, 8, 10, generator=generator)
    noise = draw_noise(_config(), 0, 0, range(num), "cpu")
    return tokens, hidden, noise, noise.uniform_B


def _gradients(loss: str, gate: float) -> dict[str, torch.Tensor]:
    """Gradient of one loss for each part, all its parameters in a row."""
    model = _model()
    tokens, hidden, noise, u_B = _batch()
    getattr(model(tokens, hidden, noise, gate, u_B), loss).backward()
    return {part: torch.cat([torch.zeros(1) if p.grad is None else p.grad.flatten()
                             for p in getattr(model, part).parameters()]) for part in _PARTS}


@pytest.mark.parametrize(("loss", "reached"), [
    ("hidden", {"encoder", "decoder"}), ("diffusion", {"encoder", "denoiser"}), ("token", {"token_decoder"})])
def test_each_loss_trains_exactly_the_parts_that_the_method_names(loss: str, reached: set[str]) -> None:
    gradients = _gradients(loss, gate=0.5)
    assert {part for part in _PARTS if gradients[part].any()} == reached


@pytest.mark.parametrize("gate", [0.0, 0.001, 0.3])
def test_encoder_gets_the_gated_share_of_the_diffusion_gradient_and_the_denoiser_all(gate: float) -> None:
    full, gated = _gradients("diffusion", 1.0), _gradients("diffusion", gate)
    assert torch.allclose(gated["encoder"], gate * full["encoder"], rtol=1e-4, atol=1e-6)
    assert torch.allclose(gated["denoiser"], full["denoiser"], rtol=1e-4, atol=1e-6)


def test_diffusion_gradient_reaches_the_encoder_through_target_and_input() -> None:
    model = _model()
    z = model.encoder(torch.randn(4, 8, 10)).detach().requires_grad_()
    noise = draw_noise(_config(), 0, 0, range(4), "cpu")
    model.diffusion_loss(z, noise.latent_BKD, noise.uniform_B, noise.self_conditioned_B).sum().backward()
    through_both = z.grad.clone()
    with torch.no_grad():
        alpha2 = 1 / (1 + 9 * torch.tan(torch.pi * noise.uniform_B / 2) ** 2)
        z_u = alpha2.sqrt()[:, None, None] * z + (1 - alpha2).sqrt()[:, None, None] * noise.latent_BKD
        estimate = model.denoiser(z_u, noise.uniform_B, torch.zeros_like(z))
        estimate[~noise.self_conditioned_B] = 0
        error = z - model.denoiser(z_u, noise.uniform_B, estimate)
    through_target = 2 * error / (8 * 6)
    assert not torch.allclose(through_both, through_target, atol=1e-4)
    # With z_u blind to z (u = 1, no signal) only the target is left.
    z.grad = None
    blind = torch.ones(4)
    alone = torch.zeros(4, dtype=torch.bool)
    model.diffusion_loss(z, noise.latent_BKD, blind, alone).sum().backward()
    with torch.no_grad():
        error = z - model.denoiser(noise.latent_BKD, blind, torch.zeros_like(z))
    assert torch.allclose(z.grad, 2 * error / (8 * 6), atol=1e-5)


def test_losses_are_the_means_that_the_method_defines() -> None:
    model = _model()
    tokens, hidden, noise, u_B = _batch()
    losses = model(tokens, hidden, noise, 0.5, u_B)
    z = model.encoder(hidden)
    hhat = model.decoder(z + noise.decoder_BKD)
    assert losses.hidden.item() == pytest.approx(((hhat - hidden) ** 2).mean().item(), rel=1e-5)
    log_p = torch.log_softmax(model.token_decoder(hhat), -1)
    picked = [-log_p[b, p, tokens[b, p]].item() for b in range(4) for p in noise.positions_BP[b].tolist()]
    assert len(picked) == 4 * 2
    assert losses.token.item() == pytest.approx(sum(picked) / 8, rel=1e-5)
    assert losses.diffusion.item() == pytest.approx(losses.diffusion_B.mean().item())
    total = losses.hidden + losses.token + losses.diffusion
    assert losses.total.item() == pytest.approx(total.item())
    assert not losses.diffusion_B.requires_grad


def test_ids_without_a_head_row_do_not_count_in_the_loss_and_come_back_as_known_ids() -> None:
    seen = torch.tensor([3, 5, 8, 30])
    model = _model(seen)
    assert model.targets(torch.tensor([[3, 4, 8], [31, 30, 0]])).tolist() == [[0, -100, 2], [-100, 3, -100]]
    hhat, every = torch.randn(1, 8, 10), torch.arange(8)[None]
    known = torch.full((1, 8), 5)
    half = torch.tensor([[5, 4, 5, 4, 5, 4, 5, 4]])
    only_known = model.token_loss(hhat, known, torch.arange(0, 8, 2)[None])
    assert model.token_loss(hhat, half, every).item() == pytest.approx(only_known.item(), rel=1e-5)
    assert model.token_loss(hhat, torch.full((1, 8), 4), every).item() == 0.0
    assert set(decode(model, torch.randn(3, 8, 6)).flatten().tolist()) <= set(seen.tolist())


def test_hidden_states_are_normalised_and_cut() -> None:
    model = _model()
    model.set_statistics(torch.full((10,), 5.0), torch.full((10,), 2.0))
    assert model.normalise(torch.tensor([5.0, 7.0, 1.0, 500.0, -500.0]).expand(10, 5).T).T[0].tolist() == [
        0.0, 1.0, -2.0, 8.0, -8.0]


def test_statistics_keep_their_precision_in_a_bfloat16_model() -> None:
    model = _model()
    model.set_statistics(torch.full((10,), 100.123), torch.full((10,), 0.0123))
    model = model.bfloat16()
    assert model.encoder.perceiver.input.weight.dtype == torch.bfloat16
    assert torch.equal(model.hidden_mean, torch.full((10,), 100.123))
    tokens, hidden, noise, u_B = _batch()
    assert all(loss.dtype == torch.float32 for loss in model(tokens, hidden + 100, noise, 1.0, u_B))


@pytest.mark.parametrize("splits", [[range(8)], [range(4), range(4, 8)], [[i] for i in range(8)]])
def test_noise_does_not_depend_on_how_the_batch_is_split(splits: list) -> None:
    whole = draw_noise(_config(), 5, 17, range(8), "cpu")
    parts = [draw_noise(_config(), 5, 17, split, "cpu") for split in splits]
    for name in StepNoise._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_noise_differs_between_steps_samples_and_seeds_even_when_their_sums_agree() -> None:
    drawn = [draw_noise(_config(), seed, step, [index], "cpu").latent_BKD
             for seed, step, index in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (12, 3, 4), (1, 23, 4))]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[i + 1:])


def test_noise_has_the_distribution_that_the_method_asks_for() -> None:
    config = _config(global_batch_size=400, micro_batch_size=400)
    noise = draw_noise(config, 0, 0, range(400), "cpu")
    assert sorted((noise.uniform_B * 400).floor().int().tolist()) == list(range(400))
    for normal in (noise.latent_BKD, noise.decoder_BKD):
        assert normal.mean().item() == pytest.approx(0, abs=0.03)
        assert normal.std().item() == pytest.approx(1, abs=0.03)
    assert (noise.latent_BKD * noise.decoder_BKD).mean().abs() < 0.03
    assert noise.self_conditioned_B.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert noise.positions_BP.shape == (400, 2)
    assert (noise.positions_BP[:, 0] != noise.positions_BP[:, 1]).all()
    assert torch.bincount(noise.positions_BP.flatten(), minlength=8).min() > 60


class _Embedding:
    """Stands in for a token encoder: each id has a fixed random vector."""

    def hidden_states(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return torch.randn(40, 10, generator=torch.Generator().manual_seed(7))[tokens_BL]


def test_evaluation_repeats_and_does_not_depend_on_its_batch_size() -> None:
    model = _model().eval()
    heldout = np.random.default_rng(0).integers(0, 40, (10, 8)).astype(np.uint32)
    one, same, other = (evaluate(model, _Embedding(), heldout, seed, batch_size)
                        for seed, batch_size in ((0, 4), (0, 10), (1, 4)))
    assert one == pytest.approx(same, rel=1e-4)
    assert one["diffusion_loss"] != other["diffusion_loss"]
    tokens = torch.from_numpy(heldout.astype(np.int64))
    with torch.no_grad():
        z = model.encoder(_Embedding().hidden_states(tokens))
        right = (model.token_decoder(model.decoder(z)).argmax(-1) == tokens).float().mean()
    assert one["reconstruction_accuracy"] == pytest.approx(right.item(), abs=1e-6)
    assert one["latent_variance"] == pytest.approx(z.var(0, unbiased=False).mean().item(), rel=1e-4)
    best_constant = ((z - z.mean(0)) ** 2).mean().item()
    assert one["diffusion_loss_trivial"] == pytest.approx(best_constant, rel=1e-4)


def test_overfit_of_a_few_sequences_recovers_every_token() -> None:
    config, model = _config(token_loss_fraction=1.0), _model()
    tokens = torch.randint(0, 40, (8, 8), generator=torch.Generator().manual_seed(3))
    hidden = _Embedding().hidden_states(tokens)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(300):
        noise = draw_noise(config, 0, step, range(8), "cpu")
        losses = model(tokens, hidden, noise, 0.001, noise.uniform_B)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    with torch.no_grad():
        assert (decode(model, model.encoder(model.normalise(hidden))) == tokens).float().mean() > 0.99
    assert losses.hidden < 0.6
