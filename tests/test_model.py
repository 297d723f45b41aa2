"""Losses, the gradients they may send, and the randomness of a step."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from tiny_ldlm import LAYOUTS, name_of, tiny_config, tiny_model  # noqa: E402

from trainer.diffusion import TimestepSampler  # noqa: E402
from trainer.generate import decode  # noqa: E402
from trainer.model import LatentDiffusionLM, Losses, StepNoise, draw_noise  # noqa: E402

_PARTS = ("latent_encoder", "latent_decoder", "token_decoder", "denoiser")


def _model(token_ids: torch.Tensor | None = None) -> LatentDiffusionLM:
    return tiny_model(tiny_config(), token_ids)


def _batch(num: int = 4) -> tuple[torch.Tensor, torch.Tensor, StepNoise, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 40, (num, 8), generator=generator)
    hidden = torch.randn(num, 8, 10, generator=generator)
    noise = draw_noise(tiny_config(), 0, 0, range(num), "cpu")
    return tokens, hidden, noise, noise.uniform_B


def test_diffusion_gradient_reaches_the_encoder_through_target_and_input() -> None:
    model = _model()
    z = model.encoder(torch.randn(4, 8, 10)).detach().requires_grad_()
    noise = draw_noise(tiny_config(), 0, 0, range(4), "cpu")
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
    whole = draw_noise(tiny_config(), 5, 17, range(8), "cpu")
    parts = [draw_noise(tiny_config(), 5, 17, split, "cpu") for split in splits]
    for name in StepNoise._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_noise_differs_between_steps_samples_and_seeds_even_when_their_sums_agree() -> None:
    drawn = [draw_noise(tiny_config(), seed, step, [index], "cpu").latent_BKD
             for seed, step, index in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0), (12, 3, 4), (1, 23, 4))]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[i + 1:])


def test_noise_has_the_distribution_that_the_method_asks_for() -> None:
    config = tiny_config(global_batch_size=400, micro_batch_size=400)
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

    num_tokens = 40

    def hidden_states(self, tokens_BL: torch.Tensor) -> torch.Tensor:
        return torch.randn(40, 10, generator=torch.Generator().manual_seed(7))[tokens_BL]


def test_evaluation_repeats_and_does_not_depend_on_its_batch_size() -> None:
    from trainer.evaluate import evaluate

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


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 0.0)])
def test_total_is_the_weighted_sum(weights: tuple[float, ...]) -> None:
    names = ("hidden", "token", "diffusion")
    changes = {f"{name}_weight": weight for name, weight in zip(names, weights, strict=True)}
    tokens, hidden, noise, u_B = _batch()
    losses = tiny_model(tiny_config(diffusion=changes))(tokens, hidden, noise, 0.5, u_B)
    expected = sum(weight * getattr(losses, name).item() for name, weight in zip(names, weights, strict=True))
    assert losses.total.item() == pytest.approx(expected)


def _losses_and_gradients(layout: dict, **changes: object) -> tuple[Losses, list[torch.Tensor]]:
    config = tiny_config(layout, **changes)
    model, (tokens, hidden, _, _) = tiny_model(config), _batch()
    noise = draw_noise(config, 0, 0, range(4), "cpu")
    torch.manual_seed(3)  # of dropout
    losses = model(tokens, hidden, noise, 0.5, noise.uniform_B)
    losses.total.backward()
    return losses, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_activation_checkpointing_changes_no_loss_and_no_gradient(layout: dict) -> None:
    kept, kept_gradients = _losses_and_gradients(layout)
    again, again_gradients = _losses_and_gradients(layout, activation_checkpointing=True)
    assert torch.equal(torch.stack(kept[:4]), torch.stack(again[:4]))
    for one, other in zip(kept_gradients, again_gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_on_a_gpu_bfloat16_gives_the_losses_of_a_cpu_in_float32(layout: dict) -> None:
    if "dropout" in layout:
        pytest.skip("its mask is another on each device")
    config, (tokens, hidden, _, _) = tiny_config(layout), _batch()
    noise, model = draw_noise(config, 0, 0, range(4), "cpu"), tiny_model(config)
    expected = torch.stack(model(tokens, hidden, noise, 0.5, noise.uniform_B)[:4])
    on_gpu = tiny_model(config).cuda().bfloat16()
    noise = StepNoise(*(part.cuda() for part in noise))
    losses = on_gpu(tokens.cuda(), hidden.cuda(), noise, 0.5, noise.uniform_B)
    losses.total.backward()
    assert torch.stack(losses[:4]).tolist() == pytest.approx(expected.tolist(), rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in on_gpu.parameters())


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_forward_and_backward_never_read_the_device(layout: dict) -> None:
    """Tensors without data cannot be read: whatever makes the host wait for a device fails on them."""
    config, (tokens, hidden, _, _) = tiny_config(layout), _batch()
    drawn, model = draw_noise(config, 0, 0, range(4), "cpu"), tiny_model(config).to("meta")
    noise = StepNoise(*(part.to("meta") for part in drawn))._replace(
        self_conditioned_B=drawn.self_conditioned_B)  # which `draw_noise` leaves on the CPU
    assert noise.self_conditioned_B.any()
    losses = model(tokens.to("meta"), hidden.to("meta"), noise, 0.5, noise.uniform_B)
    losses.total.backward()
    assert losses.diffusion_B.is_meta


@pytest.mark.gpu
def test_on_a_gpu_no_micro_batch_makes_the_host_wait() -> None:
    config, (tokens, hidden, _, _) = tiny_config({"prompt": True}), _batch()
    model, sampler = tiny_model(config).cuda(), TimestepSampler(10, 0.999, 50, "cuda")
    tokens, hidden = tokens.cuda(), hidden.cuda()
    for step in range(3):  # what libraries do once is done in the first step
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            noise = draw_noise(config, 0, step, range(4), "cuda")
            u_B = sampler.sample(noise.uniform_B)
            losses = model(tokens, hidden, noise, 0.5, u_B)
            losses.total.backward()
            sampler.update(*sampler.bin_sums(u_B, losses.diffusion_B), step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("is_training", [True, False])
def test_activation_checkpointing_keeps_less_wherever_there_is_a_way_back(is_training: bool) -> None:
    # In evaluation mode too: pulls at the encoder are measured there, on as many sequences.
    def kept_elements(**changes: object) -> int:
        model, (tokens, hidden, noise, u_B) = tiny_model(tiny_config(**changes)), _batch()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.train(is_training)(tokens, hidden, noise, 0.5, u_B)
        return sum(sizes)

    assert kept_elements(activation_checkpointing=True) < 0.5 * kept_elements()


def test_without_self_conditioning_the_denoiser_runs_once() -> None:
    tokens, hidden, noise, u_B = _batch()
    model, calls = tiny_model(tiny_config({"self_conditioning": False})), []
    model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    model(tokens, hidden, noise._replace(self_conditioned_B=torch.ones(4, dtype=torch.bool)), 0.5, u_B)
    assert len(calls) == 1


@pytest.mark.parametrize(("where", "lost"), [
    ("hidden states", {"hidden", "token", "diffusion"}), ("decoder noise", {"hidden", "token"}),
    ("diffusion noise", {"diffusion"}), ("vocabulary head", {"token"}), ("denoiser", {"diffusion"})])
def test_what_is_not_a_number_shows_in_the_part_that_it_comes_from(where: str, lost: set[str]) -> None:
    model, (tokens, hidden, noise, u_B), nan = _model(), _batch(), float("nan")
    with torch.no_grad():
        {"hidden states": hidden, "decoder noise": noise.decoder_BKD, "diffusion noise": noise.latent_BKD,
         "vocabulary head": model.token_decoder.head.weight,
         "denoiser": model.denoiser.time[0].weight}[where][1] = nan
    losses = model(tokens, hidden, noise, 0.5, u_B)
    losses.total.backward()
    assert {name for name in ("hidden", "token", "diffusion") if getattr(losses, name).isnan()} == lost
    assert losses.total.isnan()


def test_parts_are_all_that_is_trained() -> None:
    model = _model()
    parts = model.parts()
    assert tuple(parts) == _PARTS
    assert sum(len(list(part.parameters())) for part in parts.values()) == len(list(model.parameters()))
