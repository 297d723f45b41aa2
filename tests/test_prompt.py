"""The denoiser's view of a prompt: nothing at first, never past its end, and it can be learned."""

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, VOCABULARY, tiny_config, tiny_model  # noqa: E402

from trainer.config import SamplingConfig, TrainConfig  # noqa: E402
from trainer.generate import sample_latents, with_prompt  # noqa: E402
from trainer.model import LatentDiffusionLM, draw_noise  # noqa: E402
from trainer.prompt import PromptContext, longest_prompt  # noqa: E402

_BLOCKS = ["adaln", "plain"]


def _built(block: str, prompt: bool) -> LatentDiffusionLM:
    torch.manual_seed(0)
    return LatentDiffusionLM(tiny_config({"denoiser_block": block, "prompt": prompt}), HIDDEN_SIZE, None,
                             VOCABULARY)


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(3, 8, 6, generator=generator), torch.tensor([0.1, 0.5, 0.9]),
            torch.randn(3, 8, 6, generator=generator))


def _prompt(lengths: tuple[int, ...] = (0, 2, 4)) -> PromptContext:
    hidden = torch.randn(3, 4, HIDDEN_SIZE, generator=torch.Generator().manual_seed(3))
    return PromptContext(hidden, torch.tensor(lengths))


@pytest.mark.parametrize("block", _BLOCKS)
def test_prompt_adds_weights_of_its_own_and_changes_no_other(block: str) -> None:
    without, having = (_built(block, prompt).state_dict() for prompt in (False, True))
    assert set(without) < set(having)
    assert all("prompt" in name for name in set(having) - set(without))
    assert not any("prompt" in name for name in without)
    assert all(torch.equal(tensor, having[name]) for name, tensor in without.items())


@pytest.mark.parametrize("block", _BLOCKS)
def test_prompt_has_no_effect_before_training_but_its_gate_hears_of_it(block: str) -> None:
    model = tiny_model(tiny_config({"denoiser_block": block, "prompt": True}))
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith("prompt.gate")]
    assert len(gates) == 1
    torch.nn.init.zeros_(gates[0])
    with_it = model.denoiser(*_inputs(), _prompt())
    assert torch.equal(with_it, model.denoiser(*_inputs()))
    with_it.square().sum().backward()
    assert gates[0].grad.any()


@pytest.mark.parametrize("block", _BLOCKS)
def test_each_sample_reads_its_own_prompt_up_to_its_end(block: str) -> None:
    denoiser = tiny_model(tiny_config({"denoiser_block": block, "prompt": True})).denoiser
    prompt, without = _prompt(), denoiser(*_inputs())
    read = denoiser(*_inputs(), prompt)
    assert torch.equal(read[0], without[0])  # its prompt has length 0
    assert not torch.allclose(read[1:], without[1:], atol=1e-3)
    for sample, length in enumerate((0, 2, 4)):
        behind, inside = prompt.hidden_BPD.clone(), prompt.hidden_BPD.clone()
        behind[sample, length:] = float("nan")
        assert torch.equal(denoiser(*_inputs(), prompt._replace(hidden_BPD=behind)), read)
        if length:
            inside[sample, length - 1] += 1
            moved = denoiser(*_inputs(), prompt._replace(hidden_BPD=inside)) - read
            assert (moved.abs().amax((1, 2)) > 1e-5).tolist() == [other == sample for other in range(3)]


def test_order_of_a_prompt_matters() -> None:
    denoiser = tiny_model(tiny_config({"prompt": True})).denoiser
    prompt = _prompt((4, 4, 4))
    flipped = prompt._replace(hidden_BPD=prompt.hidden_BPD.flip(1))
    assert not torch.allclose(denoiser(*_inputs(), prompt), denoiser(*_inputs(), flipped), atol=1e-4)


def _drawn(config: TrainConfig, num: int) -> torch.Tensor:
    return draw_noise(config, 0, 0, range(num), "cpu").prompt_length_B


def test_lengths_are_even_up_to_the_longest_and_some_samples_have_none() -> None:
    config = tiny_config({"prompt": True}, global_batch_size=2_000, diffusion={"prompt_dropout": 0.2},
                         micro_batch_size=2_000)
    shares = torch.bincount(_drawn(config, 2_000)) / 2_000
    assert longest_prompt(config) == 4
    assert shares.tolist() == pytest.approx([0.2] * 5, abs=0.04)
    assert not _drawn(tiny_config(global_batch_size=8), 8).any()


def test_drawing_a_prompt_leaves_all_other_noise_alone() -> None:
    on, off = (draw_noise(tiny_config({"prompt": prompt}), 0, 3, range(8), "cpu") for prompt in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(on[:-1], off[:-1], strict=True))


def test_states_of_a_prompt_are_those_of_the_text_or_its_own() -> None:
    """A causal encoder's first states do not depend on what follows; another's are passed in."""
    config = tiny_config({"prompt": True})
    model, generator = tiny_model(config), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (8, 8), generator=generator)
    hidden = torch.randn(8, 8, HIDDEN_SIZE, generator=generator)
    noise = draw_noise(config, 0, 0, range(8), "cpu")
    own, same, other = (model(tokens, hidden, noise, 0.5, noise.uniform_B, states).diffusion
                        for states in (None, hidden[:, :4], hidden[:, 4:]))
    assert torch.equal(own, same) and not torch.equal(own, other)
    model.set_statistics(torch.full((HIDDEN_SIZE,), 3.0), torch.full((HIDDEN_SIZE,), 2.0))
    context = model.prompt_context(hidden[:, :4], noise.prompt_length_B)
    assert torch.allclose(context.hidden_BPD, (hidden[:, :4] - 3) / 2)


def test_a_prompt_that_the_model_cannot_read_is_refused_with_its_length() -> None:
    lengths = torch.tensor([1])
    with pytest.raises(ValueError, match="5 tokens.*at most 4"):
        tiny_model(tiny_config({"prompt": True})).prompt_context(torch.zeros(1, 5, HIDDEN_SIZE), lengths)
    with pytest.raises(ValueError, match="1 tokens.*at most 0"):
        tiny_model(tiny_config()).prompt_context(torch.zeros(1, 1, HIDDEN_SIZE), lengths)


def _sampled(model: LatentDiffusionLM, prompt: PromptContext | None, guidance: float) -> torch.Tensor:
    sampling = SamplingConfig(steps=1, prompt_guidance=guidance)
    return sample_latents(model, range(3), 0, sampling, prompt=prompt)


def test_guidance_weighs_the_estimates_with_and_without_the_prompt() -> None:
    model = tiny_model(tiny_config({"prompt": True})).eval()
    without, having = _sampled(model, None, 1.0), _sampled(model, _prompt(), 1.0)
    assert torch.equal(_sampled(model, _prompt(), 0.0), without)
    assert torch.allclose(_sampled(model, _prompt(), 2.5), without + 2.5 * (having - without), atol=1e-5)
    assert torch.equal(having[0], without[0]) and not torch.allclose(having[1], without[1], atol=1e-3)


def test_prompt_tokens_stand_first_in_what_is_generated() -> None:
    generated = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    prompt = torch.tensor([[11, 12, 13], [21, 22, 23]])
    assert with_prompt(generated, prompt, torch.tensor([2, 0])).tolist() == [[11, 12, 3, 4], [5, 6, 7, 8]]
