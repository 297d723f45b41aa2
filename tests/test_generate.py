"""The way from noise to latents, tokens and text; what guidance weighs."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import VOCABULARY, tiny_config, tiny_model  # noqa: E402

from trainer.generate import Generator, Guidance, guided, sample_latents, to_text  # noqa: E402

END = 9


class _Letters:
    """Stands in for a tokenizer: id 1 is a, 2 is b, ..."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(96 + i) for i in ids if i or not skip_special_tokens)


def _generator(num_tokens: int = VOCABULARY, **sampling) -> Generator:
    config = tiny_config(sampling={"steps": 3} | sampling)
    return Generator(config, tiny_model(config).eval(), None, num_tokens, END, _Letters())


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "sde"])
def test_samples_have_the_shape_of_latents_and_repeat_with_their_seed(solver) -> None:
    generator = _generator(solver=solver)
    one, same, other = (sample_latents(generator.model, range(3), seed, generator.config.sampling)
                        for seed in (0, 0, 1))
    assert one.shape == (3, 8, 6) and one.dtype == torch.float32
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "sde"])
def test_fewer_samples_are_the_first_of_more_whatever_the_batch(solver) -> None:
    eight = _generator(solver=solver).tokens(8, seed=3)
    assert eight.shape == (8, 8) and len(eight.unique(dim=0)) > 1
    for batch_size in (1, 3, 8):
        assert torch.equal(_generator(solver=solver, batch_size=batch_size).tokens(4, seed=3), eight[:4])


def test_rows_that_stand_for_no_token_are_never_chosen() -> None:
    generator = _generator()
    with torch.no_grad():
        generator.model.token_decoder.head.bias[-3:] = 1e4  # padded rows, whatever the text
    assert (generator.tokens(2, seed=0) >= VOCABULARY - 3).all()
    masked = dataclasses.replace(generator, num_tokens=VOCABULARY - 3)
    assert (masked.tokens(2, seed=0) < VOCABULARY - 3).all()


def test_text_ends_at_the_first_end_of_text() -> None:
    tokens = torch.tensor([[1, 2, 9, 3], [3, 2, 1, 1], [9, 1, 1, 1]])
    assert to_text(_Letters(), tokens, END) == ["ab", "cbaa", ""]
    generator = _generator()
    assert generator.texts(3, seed=1) == to_text(_Letters(), generator.tokens(3, seed=1), END)


def _first_and_later(weight: float) -> tuple[torch.Tensor, ...]:
    """What the denoiser says without an earlier estimate, with one, and under guidance."""
    model = tiny_model(tiny_config()).eval()
    generator = torch.Generator().manual_seed(1)
    z, estimate = (torch.randn(2, 8, 6, generator=generator) for _ in range(2))
    u_B = torch.tensor([0.3, 0.7])
    with torch.no_grad():
        return (model.denoiser(z, u_B, torch.zeros_like(z)), model.denoiser(z, u_B, estimate),
                guided(model.denoiser, Guidance(weight, 1.0), None)(z, u_B, estimate))


def test_guidance_weighs_the_estimates_with_and_without_self_conditioning() -> None:
    without, having, _ = _first_and_later(1.0)
    assert not torch.allclose(without, having, atol=1e-2)
    for weight in (0.0, 1.0, 0.5, 2.5):
        assert torch.allclose(_first_and_later(weight)[2], without + weight * (having - without), atol=1e-5)


def test_guidance_of_what_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt_guidance is 2, but model.prompt is off: set it to 1"):
        tiny_config(sampling={"prompt_guidance": 2.0})
    with pytest.raises(ValueError, match="guidance is 0, but model.self_conditioning is off"):
        tiny_config({"self_conditioning": False}, sampling={"self_conditioning_guidance": 0.0})
