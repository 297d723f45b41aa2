"""What the method's description asks of an implementation: sizes, gradients, and that it can learn.

Its other checks stand beside what they judge: gamma, alpha and the adaptive sampler in test_diffusion,
solvers on Gaussian latents in test_generate, signs of collapse in test_health.
"""

from pathlib import Path

import pytest
import yaml

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, LAYOUTS, VOCABULARY, name_of, tiny_config, tiny_model  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.diffusion import encoder_gate  # noqa: E402
from trainer.generate import decode  # noqa: E402
from trainer.health import LatentHealth  # noqa: E402
from trainer.model import LatentDiffusionLM, draw_noise  # noqa: E402

ROOT = Path(__file__).parents[1]


def _millions(profile: str, hidden_size: int, vocabulary: int) -> dict[str, float]:
    """Parameters of each part of a profile, in millions, counted without memory for them."""
    return _millions_of(TrainConfig.model_validate({
        "profile": profile, "steps": 1, "data": {"source": "none"}, "checkpoint": {"every_steps": 1}}),
        hidden_size, vocabulary)


def _millions_of(config: TrainConfig, hidden_size: int, vocabulary: int) -> dict[str, float]:
    with torch.device("meta"):
        model = LatentDiffusionLM(config, hidden_size, None, vocabulary)
    counts = {name: sum(parameter.numel() for parameter in part.parameters())
              for name, part in model.parts().items()}
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    return {name: count / 1e6 for name, count in counts.items()}


def test_the_checkpoint_that_people_can_try_stays_below_50_mb() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "manual-and-bible.yaml").read_text())
    counts = _millions_of(TrainConfig.model_validate(recipe["train"]), 384, 14_506)  # ids in its text
    generation = 2 * (sum(counts.values()) - counts["latent_encoder"])  # MB in bf16
    assert generation < 50 - 0.12 - 0.79  # ids; tokenizer and picture


def test_paper_scale_has_the_sizes_that_readers_report() -> None:
    counts = _millions("paper-gpt2", 768, 50_257)
    assert counts["latent_encoder"] == pytest.approx(50, rel=0.06)
    assert counts["latent_decoder"] == pytest.approx(50, rel=0.06)
    assert counts["token_decoder"] == pytest.approx(66, rel=0.03)
    assert counts["denoiser"] == pytest.approx(132, rel=0.01)
    assert sum(counts.values()) == pytest.approx(300, rel=0.03)


@pytest.mark.parametrize(("profile", "width", "denoiser", "decoders", "total"), [
    ("seed-35b-a3b", 2048, 206, 912, 1390), ("seed-27b", 5120, 1285, 3789, 6750)])
def test_seed_profiles_have_the_published_sizes(profile: str, width: int, denoiser: float, decoders: float,
                                                total: float) -> None:
    counts = _millions(profile, width, 248_320)
    assert counts["denoiser"] == pytest.approx(denoiser, rel=2e-3)
    assert counts["latent_decoder"] + counts["token_decoder"] == pytest.approx(decoders, rel=5e-4)
    assert sum(counts.values()) == pytest.approx(total, rel=3e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_can_be_built_without_memory(layout: dict) -> None:
    with torch.device("meta"):
        model = LatentDiffusionLM(tiny_config(layout), HIDDEN_SIZE, None, VOCABULARY)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def _gradients(layout: dict, loss: str, gate: float, **diffusion: str | float) -> dict[str, torch.Tensor]:
    """Gradient of one loss for each part, all its parameters in a row."""
    config = tiny_config(layout, diffusion=diffusion)
    model, generator = tiny_model(config), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (4, 8), generator=generator)
    hidden = torch.randn(4, 8, HIDDEN_SIZE, generator=generator)
    noise = draw_noise(config, 0, 0, range(4), "cpu")
    torch.manual_seed(0)  # of dropout
    getattr(model(tokens, hidden, noise, gate, noise.uniform_B), loss).backward()
    return {name: torch.cat([torch.zeros(1) if p.grad is None else p.grad.flatten()
                             for p in part.parameters()]) for name, part in model.parts().items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
@pytest.mark.parametrize(("loss", "reached"), [
    ("hidden", {"latent_encoder", "latent_decoder"}), ("diffusion", {"latent_encoder", "denoiser"}),
    ("token", {"token_decoder"})])
def test_each_loss_trains_exactly_the_parts_that_the_method_names(loss: str, reached: set[str],
                                                                  layout: dict) -> None:
    gradients = _gradients(layout, loss, gate=0.5)
    assert {part for part, gradient in gradients.items() if gradient.any()} == reached


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_in_the_ablation_by_tokens_cross_entropy_alone_trains_the_way_to_them(layout: dict) -> None:
    token = _gradients(layout, "token", gate=0.5, decoder_loss="token")
    assert {part for part, gradient in token.items() if gradient.any()} == {
        "latent_encoder", "latent_decoder", "token_decoder"}
    without = {"decoder_loss": "token", "token_weight": 0.0, "diffusion_weight": 0.0}
    total = _gradients(layout, "total", gate=0.5, **without)
    assert not any(gradient.any() for gradient in total.values())  # L_h is measured, no more


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
@pytest.mark.parametrize("gate", [0.0, 0.001, 0.3])
def test_encoder_gets_the_gated_share_of_the_diffusion_gradient_and_the_denoiser_all(gate: float,
                                                                                     layout: dict) -> None:
    full, gated = _gradients(layout, "diffusion", 1.0), _gradients(layout, "diffusion", gate)
    encoder, denoiser = gated["latent_encoder"], gated["denoiser"]
    assert torch.allclose(encoder, gate * full["latent_encoder"], rtol=1e-4, atol=1e-6)
    assert torch.allclose(denoiser, full["denoiser"], rtol=1e-4, atol=1e-6)


def test_64_sequences_are_learned_by_heart_under_the_papers_decoder_noise() -> None:
    """The slow one: 15 s. Random embeddings of the tokens stand in for the frozen encoder."""
    steps, learning_rate, vocabulary = 400, 5e-3, 32
    config = tiny_config({"latent_width": 256, "width": 64, "token_decoder_width": 64},
                         global_batch_size=64, micro_batch_size=64, token_loss_fraction=1.0,
                         diffusion={"decoder_noise_std": 3.0, "encoder_warmup_steps": steps})
    torch.manual_seed(0)
    model = LatentDiffusionLM(config, 32, None, vocabulary)
    tokens = torch.randint(0, vocabulary, (64, 8))
    hidden = torch.randn(vocabulary, 32)[tokens]
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.98))
    tail = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 20, (steps - step) / 120)
        noise = draw_noise(config, 0, step, range(64), "cpu")
        losses = model(tokens, hidden, noise, encoder_gate(step, steps, 0.001), noise.uniform_B)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        tail = [*tail[-19:], torch.stack(losses[1:4]).detach()]
    hidden_loss, _, diffusion_loss = torch.stack(tail).mean(0).tolist()
    with torch.no_grad():
        z = model.encoder(hidden)
        accuracy = (decode(model, z) == tokens).float().mean().item()
    health = LatentHealth(8, 256, "cpu")
    health.add(z)
    found = health.summary()
    assert hidden_loss < 0.1
    assert accuracy > 0.99
    assert diffusion_loss < 0.5 * found["latent_variance"]
    assert found["latent_variance"] > 0.5 and found["latent_cosine"] < 0.5
