"""The fast path behind the words of a generator: batches, programs, settings, and what it says."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import HIDDEN_SIZE, VOCABULARY, tiny_config, tiny_model  # noqa: E402

from trainer.contract import ConfigError  # noqa: E402
from trainer.fast import generator as fast_path  # noqa: E402
from trainer.fast import weights  # noqa: E402
from trainer.fast.generator import FastGenerator, fast_generator  # noqa: E402
from trainer.fast.persistent import program as persistent  # noqa: E402
from trainer.frontier import with_settings  # noqa: E402
from trainer.generate import Generator, Prompt, decode  # noqa: E402
from trainer.sample import quickened  # noqa: E402


class _Letters:
    """Stands in for a tokenizer: id 1 is a, 2 is b, ..."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(96 + i) for i in ids if i or not skip_special_tokens)


def _pair(model: dict | None = None, **sampling) -> tuple[Generator, FastGenerator, list[str]]:
    """The reference, the fast path, and what that says."""
    config = tiny_config(model, sampling={"steps": 2} | sampling)
    reference, said = Generator(config, tiny_model(config).eval(), None, VOCABULARY, 9, _Letters()), []
    return reference, fast_generator(reference, said.append), said


@pytest.mark.parametrize("solver", ["ddim", "ancestral"])
@pytest.mark.parametrize("num", [1, 4, 7])
def test_tokens_and_texts_are_those_of_the_reference_whatever_the_batches(solver, num) -> None:
    reference, fast, _ = _pair(solver=solver, batch_size=3)
    tokens = fast.tokens(num, seed=5)
    assert tokens.shape == (num, 8) and torch.equal(tokens, reference.tokens(num, seed=5))
    assert fast.texts(num, seed=5) == reference.texts(num, seed=5)
    assert torch.equal(_pair(solver=solver, batch_size=8)[1].tokens(9, seed=5)[:num], tokens)


def test_samples_of_another_seed_are_others() -> None:
    _, fast, _ = _pair()
    assert not torch.equal(fast.tokens(4, seed=0), fast.tokens(4, seed=1))


def test_prompts_stand_first_and_are_heard() -> None:
    reference, fast, _ = _pair({"prompt": True}, batch_size=2)
    hidden = torch.randn(1, 3, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    prompt = Prompt(torch.tensor([[4, 5, 6]]), hidden, torch.tensor([3]))
    assert torch.equal(fast.tokens(5, 0, prompt), reference.tokens(5, 0, prompt))
    assert (fast.tokens(5, 0, prompt)[:, :3] == torch.tensor([4, 5, 6])).all()
    assert torch.equal(fast.tokens(5, 0), reference.tokens(5, 0))


def test_a_program_is_made_once_for_each_size_and_another_for_other_settings(monkeypatch) -> None:
    reference, fast, _ = _pair(batch_size=3)
    made, plain = [], fast_path.way_of
    monkeypatch.setattr(fast_path, "way_of",
                        lambda *arguments: (made.append(arguments[2]), plain(*arguments))[1])
    for num in (1, 1, 3, 7, 2, 1):  # 7 are three batches of 3
        fast.tokens(num, seed=0)
    assert made == [1, 3, 2]
    changed = (with_settings(generator, (1, 4), (0.5,), 3) for generator in (fast, reference))
    for own, expected in zip(*changed, strict=True):
        assert own.fast is fast.fast
        assert torch.equal(own.tokens(3, seed=0), expected.tokens(3, seed=0))
    assert made == [1, 3, 2, 3, 3]


def test_latents_are_those_behind_the_tokens() -> None:
    reference, fast, _ = _pair()
    latents = fast.latents(3, seed=0)
    assert latents.shape == (3, 8, 6) and latents.dtype == torch.float32
    assert torch.equal(decode(reference.model, latents, VOCABULARY), fast.tokens(3, seed=0))


def test_it_says_once_what_this_device_allows() -> None:
    _, fast, said = _pair()
    fast.tokens(5, seed=0)
    assert said == ["fast path: fp32, operations of torch; no CUDA graphs here"]
    assert fast.dtype == torch.float32


def test_fp8_is_refused_where_torch_does_not_multiply_so(monkeypatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED")

    reference = _pair()[0]
    weights.multiplies_fp8.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_scaled_mm", refuses)
        with pytest.raises(ConfigError, match="torch multiplies no matrices in fp8"):
            fast_generator(reference, mode="fp8")
    weights.multiplies_fp8.cache_clear()
    assert fast_generator(reference, lambda words: None, mode="fp8").dtype == torch.float8_e4m3fn


def test_4_bits_without_tensor_cores_for_them_are_called_emulated_and_take_no_kernels(monkeypatch) -> None:
    reference, said = _pair({"width": 32})[0], []
    monkeypatch.setattr(persistent, "why_not_here", lambda device: None)
    monkeypatch.setattr(persistent, "why_not", lambda *sizes: None)
    fast = fast_generator(reference, said.append, mode="fp4")
    assert said == ["fast path: fp4 emulated in bf16 (its error, not its speed), operations of torch; "
                    "no CUDA graphs here"]
    assert fast.dtype == torch.float4_e2m1fn_x2 and fast.way(1) == "operations of torch"


def test_it_names_the_kernels_of_one_text_at_a_time_where_there_are_some(monkeypatch) -> None:
    monkeypatch.setattr(persistent, "why_not_here", lambda device: None)
    monkeypatch.setattr(persistent, "why_not", lambda config, size, batch, has_prompt:
                        None if batch == 1 and not has_prompt else "one text at a time")
    reference, said = _pair()[0], []
    fast = fast_generator(reference, said.append, mode="bf16")
    assert said == ["fast path: bf16, persistent kernels for one text at a time, else operations of torch; "
                    "no CUDA graphs here"]
    assert fast.way(1) == "persistent kernels"
    assert fast.way(2) == fast.way(1, has_prompt=True) == "operations of torch"


def test_what_fails_is_left_out_alone_and_the_last_way_is_not_tried_twice(monkeypatch) -> None:
    fast = fast_generator(_pair()[0], lambda words: None, mode="bf16")
    assert fast.way(1) == "operations of torch" and not fast.fast.step_back(fast.way(1))
    monkeypatch.setattr(persistent, "why_not_here", lambda device: None)
    monkeypatch.setattr(persistent, "why_not", lambda *sizes: None)
    assert fast.way(1) == "persistent kernels" and fast.fast.step_back(fast.way(1))
    assert fast.way(1) == "operations of torch"


def test_a_generator_that_mends_its_estimates_stays_as_it_is() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mending(Generator):
        pass

    mending, said = Mending(**vars(_pair()[0])), []
    assert fast_generator(mending, said.append) is mending
    assert said == ["what is filled in between given texts has no fast path: the plain one is taken"]


def test_sampling_without_a_gpu_stays_on_the_plain_path_however_many_texts() -> None:
    reference, _, _ = _pair()
    assert quickened(reference, 10_000) is reference
