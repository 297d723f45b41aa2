"""Solvers and the way from latents to text."""

import pytest

torch = pytest.importorskip("torch")

from trainer.config import TrainConfig  # noqa: E402
from trainer.diffusion import alpha_sigma, sampling_grid  # noqa: E402
from trainer.generate import integrate, sample_latents, to_text  # noqa: E402
from trainer.model import LatentDiffusionLM  # noqa: E402


def _std_of_gaussian_samples(solver: str, steps: int) -> float:
    """Std of samples when the data are standard normal and the denoiser is the best possible one."""
    def best(z, u_B, _estimate):
        return alpha_sigma(u_B, 3.0)[0][:, None] * z  # E[z0 | z_u] of unit Gaussians

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2_000, 20, generator=generator)
    return integrate(best, noise, sampling_grid(steps), 3.0, solver, generator).std().item()


@pytest.mark.parametrize(("solver", "steps", "std"), [
    ("ddim", 16, 0.88), ("ddim", 64, 0.97), ("ddim", 256, 0.99),
    ("ancestral", 16, 0.80), ("ancestral", 64, 0.93), ("ancestral", 256, 0.98)])
def test_solvers_converge_to_the_spread_of_gaussian_data(solver: str, steps: int, std: float) -> None:
    assert _std_of_gaussian_samples(solver, steps) == pytest.approx(std, abs=0.012)


def test_each_pass_sees_the_estimate_of_the_one_before() -> None:
    seen = []

    def denoise(z, _u_B, estimate):
        seen.append(estimate.mean().item())
        return torch.full_like(z, float(len(seen)))

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, generator=generator)
    last = integrate(denoise, noise, sampling_grid(4), 3.0, "ddim", generator)
    assert seen == [0.0, 1.0, 2.0, 3.0]
    assert (last == 4.0).all()


def test_samples_have_the_shape_of_latents_and_repeat_with_their_seed() -> None:
    config = TrainConfig.model_validate({
        "steps": 1, "micro_batch_size": 1, "data": {"source": "x", "sequence_length": 8},
        "token_encoder": {"name": "x"}, "checkpoint": {"every_steps": 1},
        "model": {"latent_width": 4, "width": 8, "num_heads": 2, "num_latents": 6, "encoder_layers": 1,
                  "decoder_layers": 1, "denoiser_layers": 1, "token_decoder_layers": 1,
                  "token_decoder_width": 8, "token_decoder_heads": 2}})
    model = LatentDiffusionLM(config, 10, None, 20)
    torch.nn.init.normal_(model.denoiser.output.weight)
    one, same, other = (sample_latents(model, 3, 4, torch.Generator().manual_seed(seed), "ancestral")
                        for seed in (0, 0, 1))
    assert one.shape == (3, 6, 4) and one.dtype == torch.float32
    assert torch.equal(one, same) and not torch.equal(one, other)


class _Letters:
    """Stands in for a tokenizer: id 1 is a, 2 is b, ..."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(96 + i) for i in ids if i or not skip_special_tokens)


def test_text_ends_at_the_first_end_of_text() -> None:
    tokens = torch.tensor([[1, 2, 9, 3], [3, 2, 1, 1], [9, 1, 1, 1]])
    assert to_text(_Letters(), tokens, 9) == ["ab", "cbaa", ""]
