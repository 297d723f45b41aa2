"""Texts at several numbers of steps and temperatures: which they are, and how many passes they take."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import VOCABULARY, TableEncoder, Words, tiny_config, tiny_model  # noqa: E402

from trainer import frontier  # noqa: E402
from trainer.completions import complete  # noqa: E402
from trainer.frontier import sample_frontier, setting_of  # noqa: E402
from trainer.generate import Generator, decode, sample_latents  # noqa: E402


def test_every_pair_of_steps_and_temperature_is_sampled_with_the_same_seed() -> None:
    model = tiny_model(tiny_config()).eval()
    generator = Generator(tiny_config(), model, None, VOCABULARY, end_of_text_id=3, tokenizer=Words())
    said: list[str] = []
    found = sample_frontier(generator, [1, 3], [0.5, 1.0], num=5, batch=2, seed=4, say=said.append)
    assert [(one["setting"]["steps"], one["setting"]["temperature"]) for one in found] == [
        (1, 0.5), (1, 1.0), (3, 0.5), (3, 1.0)]
    assert len(said) == 4
    for one in found:
        sampling = tiny_config().sampling.model_copy(update={
            "steps": one["setting"]["steps"], "temperature": one["setting"]["temperature"], "batch_size": 2})
        config = generator.config.model_copy(update={"sampling": sampling})
        own = dataclasses.replace(generator, config=config)
        assert one["tokens"] == own.tokens(5, 4).tolist()
        assert one["texts"] == own.texts(5, 4)
        assert one["dtype"] == "float32"  # on a CPU
        assert one["tokens_per_s_batch_1"] == pytest.approx(8 / one["seconds_batch_1"])
        assert one["tokens_per_s_batch_2"] > 0
        assert one["setting"]["denoiser_passes"] == one["setting"]["steps"]
    assert found[0]["tokens"] != found[2]["tokens"]


@pytest.mark.parametrize(("most_s", "num"), [(1e9, 50), (0.0, 3)])
def test_single_texts_are_timed_fifty_times_or_three_where_they_take_long(
        most_s: float, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        def __init__(self) -> None:
            self.asked: list[tuple[int, int]] = []

        def tokens(self, num: int, seed: int) -> torch.Tensor:
            self.asked.append((num, seed))
            return torch.zeros(num, 8, dtype=torch.int64)

    monkeypatch.setattr(frontier, "_MOST_S", most_s)
    source = Rows()
    found = frontier.timed_rows(source, 5, 2, seed=4, name="rows", say=lambda _: None)
    assert source.asked == [*((1, 4 + index) for index in range(1 + num)), (2, 4), (5, 4)]
    assert found["generations_batch_1"] == num and len(found["tokens"]) == 5


def test_a_guided_step_counts_as_two_passes() -> None:
    config = tiny_config(sampling={"self_conditioning_guidance": 2.0})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    found = sample_frontier(generator, [3], [1.0], num=1, batch=1, seed=0, say=lambda _: None)
    assert found[0]["setting"]["denoiser_passes"] == 6


@pytest.mark.parametrize(("sampling", "alone", "prompted"), [
    ({}, 3, 3), ({"prompt_guidance": 2.0}, 3, 6), ({"prompt_guidance": 0.0}, 3, 3),
    ({"prompt_guidance": 2.0, "self_conditioning_guidance": 1.5}, 6, 12)])
def test_passes_of_a_completion_are_those_that_the_denoiser_makes(sampling, alone, prompted) -> None:
    config = tiny_config({"prompt": True}, sampling={"steps": 3, **sampling})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 3, Words())
    passes = []
    generator.model.denoiser.register_forward_hook(lambda *_: passes.append(1))
    generator.tokens(1, seed=0)
    assert len(passes) == alone == setting_of(generator)["denoiser_passes"]
    passes.clear()
    complete(generator, TableEncoder(), torch.tensor([[1, 2]]), seed=0)
    assert len(passes) == prompted == setting_of(generator, has_prompt=True)["denoiser_passes"]


def test_under_autocast_latents_stay_in_float32_and_mean_the_same() -> None:
    config = tiny_config(sampling={"steps": 8})
    model = tiny_model(config).eval()
    plain = sample_latents(model, range(4), 0, config.sampling)
    with torch.autocast("cpu", torch.bfloat16):  # as on a GPU, where alone it is on
        quick = sample_latents(model, range(4), 0, config.sampling)
        same = decode(model, quick, VOCABULARY) == decode(model, plain, VOCABULARY)
    assert quick.dtype == torch.float32 and not torch.equal(quick, plain)
    assert (quick - plain).pow(2).mean() < 1e-3 * plain.pow(2).mean()
    assert same.double().mean() > 0.8
