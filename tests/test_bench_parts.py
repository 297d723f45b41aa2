"""Where the time of a generation goes."""

import pytest

torch = pytest.importorskip("torch")

from tests.tiny_ldlm import VOCABULARY, tiny_config, tiny_model  # noqa: E402
from trainer.bench_parts import Parts, attention_s, head_s, parts_of  # noqa: E402
from trainer.bench_paths import Eager, FastPaths  # noqa: E402
from trainer.bench_published import published_tokens_per_s  # noqa: E402
from trainer.generate import Generator  # noqa: E402


def test_parts_by_hand() -> None:
    """10 steps take 1.0 s, one takes 0.28 s: a pass is 0.08 s, all are 0.8 s, 0.2 s are left."""
    found = parts_of(whole_s=1.0, one_step_s=0.28, steps=10, attention_s=0.3, head_s=0.15)
    assert found.model_dump() == pytest.approx(
        {"denoiser": 0.8, "attention": 0.3, "decoders": 0.05, "head": 0.15})


def test_noise_makes_no_part_negative() -> None:
    assert parts_of(1.0, 1.1, 4, 0.0, 0.2) == Parts(denoiser=0, attention=0, decoders=0.8, head=0.2)
    assert parts_of(1.0, 0.1, 2, 0.0, 0.2) == Parts(denoiser=1, attention=0, decoders=0, head=0.2)


def test_attention_and_head_are_timed_alone() -> None:
    config = tiny_config(sampling={"batch_size": 1})
    generator = Generator(config, tiny_model(config).eval(), None, VOCABULARY, end_of_text_id=3)
    assert attention_s(generator, 2, 3, "fp32") > 0
    assert head_s(FastPaths(generator).at(generator, "fp32"), generator, 2, "fp32") > 0
    assert head_s(Eager(generator), generator, 2, "fp32") == 0


def test_only_the_card_and_sizes_that_were_measured_have_a_published_figure() -> None:
    from trainer.bench_cases import Case, Model

    case = Case(model=Model(name="seed-27b", length=64), steps=4, batch=1, mode="bf16")
    assert published_tokens_per_s(case, "NVIDIA H200") == 1559
    assert published_tokens_per_s(case, "NVIDIA GeForce RTX 5090") is None
    assert published_tokens_per_s(case.model_copy(update={"batch": 2}), "NVIDIA H200") is None
    longer = case.model_copy(update={"model": Model(name="seed-27b", length=128)})
    assert published_tokens_per_s(longer, "NVIDIA H200") is None
