"""The fast path as CUDA graphs on a GPU, against the reference in float32.

Run with `pytest -m gpu -s tests/test_gpu_fast.py`; it prints the errors that it measures.
"""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import tiny_config  # noqa: E402

from trainer.fast import generator as fast_path  # noqa: E402
from trainer.fast.generator import FastGenerator, fast_generator  # noqa: E402
from trainer.fast.graph import CapturedProgram  # noqa: E402
from trainer.fast.noise import normals, normals_by_torch, sample_keys  # noqa: E402
from trainer.fast.nvfp4 import multiplies_nvfp4  # noqa: E402
from trainer.fast.program import FastModel  # noqa: E402
from trainer.fast.weights import Mode  # noqa: E402
from trainer.generate import Generator, decode, sample_latents  # noqa: E402
from trainer.model import LatentDiffusionLM  # noqa: E402
from trainer.sample import quickened  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

WIDTH, HIDDEN, ROWS = 256, 320, 5_000
SIZES = {"latent_width": WIDTH, "width": WIDTH, "num_heads": 4, "decoder_layers": 2, "denoiser_layers": 3,
         "token_decoder_layers": 2, "token_decoder_width": WIDTH, "token_decoder_heads": 4}
SIZES_OF = {None: (1, 64), "default": (64,)}  # compiling takes its time
LAYOUTS = {"bottleneck": {},
           "seed": {"perceiver_block": "split", "denoiser_block": "plain", "self_conditioning": False},
           "prompt": {"prompt": True, "token_decoder_mlp": "plain", "denoiser_positions": "rotary"}}


@pytest.fixture(autouse=True)
def _exact_float32():
    """The reference is exact float32, whatever was set before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def _generator(layout: str, **sampling) -> Generator:
    """Random weights that keep the size of what they read."""
    config = tiny_config(SIZES | LAYOUTS[layout], data={"sequence_length": 64},
                         sampling={"steps": 4, "batch_size": 64} | sampling)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LatentDiffusionLM(config, HIDDEN, None, ROWS).eval()
        for name, parameter in model.denoiser.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name == "output.weight" or name.endswith("gate"):
                torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return Generator(config, model.requires_grad_(False), None, ROWS, 9)


def _fast(generator: Generator, compile_mode: str | None = None) -> tuple[FastGenerator, list[str]]:
    said: list[str] = []
    return fast_generator(generator, said.append, compile_mode), said


def _prompt(generator: Generator, num: int, seed: int = 0):
    if not generator.config.model.prompt:
        return None
    hidden = torch.randn(num, 5, HIDDEN, device="cuda", generator=torch.Generator("cuda").manual_seed(seed))
    return generator.model.prompt_context(hidden, torch.arange(num, device="cuda") % 6)


@pytest.mark.parametrize("compile_mode", [None, "default"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_graph_gives_the_latents_of_the_reference(layout: str, compile_mode: str | None) -> None:
    generator = _generator(layout)
    fast, said = _fast(generator, compile_mode)
    for num in SIZES_OF[compile_mode]:
        context = _prompt(generator, num)
        latents = sample_latents(generator.model, range(num), 3, generator.config.sampling, None, context)
        tokens = decode(generator.model, latents, ROWS)
        found = fast.generated(range(num), 3, context)
        error = float((found.latents_BKD - latents).norm() / latents.norm())
        same = float((found.tokens_BL == tokens).float().mean())
        print(f"{layout}, compile {compile_mode}, batch {num}: error {error:.5f}, same tokens {same:.4f}")
        assert error < 1e-2 and same > 0.9
    assert all(isinstance(program, CapturedProgram) for program in fast._programs.values())
    way = "operations of torch" if compile_mode is None else "compiled"
    assert said == [f"fast path: bf16, {way}; one CUDA graph for each batch size"]


ABILITY = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


@pytest.mark.skipif(ABILITY < (9, 0), reason="needs products in fp8 with a scale for each row")
@pytest.mark.parametrize(("mode", "least", "most"), [("fp8", 1e-2, 2e-1), ("fp4", 1e-1, 7e-1)])
@pytest.mark.parametrize("compile_mode", [None, "default"])
def test_fp8_is_off_by_no_more_than_a_fifth_and_fp4_by_no_more_than_the_benchmark_allows(
        compile_mode: str | None, mode: Mode, least: float, most: float) -> None:
    generator, said = _generator("seed"), []
    fast = fast_generator(generator, said.append, compile_mode, mode=mode)
    for num in SIZES_OF[compile_mode]:
        latents = sample_latents(generator.model, range(num), 3, generator.config.sampling)
        found = fast.generated(range(num), 3)
        error = float((found.latents_BKD - latents).norm() / latents.norm())
        same = float((found.tokens_BL == decode(generator.model, latents, ROWS)).float().mean())
        print(f"{mode}, compile {compile_mode}, batch {num}: error {error:.5f}, same tokens {same:.4f}")
        assert least < error < most
    assert len(said) == 1 and mode in said[0]


@pytest.mark.skipif(ABILITY < (10, 0), reason="needs products in fp4")
def test_tensor_cores_multiply_in_fp4() -> None:
    assert multiplies_nvfp4(torch.device("cuda"))


@pytest.mark.parametrize("solver", ["ddim", "ancestral", "sde"])
def test_in_float32_the_graph_gives_the_very_tokens(solver: str) -> None:
    generator = _generator("bottleneck", solver=solver, self_conditioning_guidance=1.5)
    fast = FastGenerator(**vars(generator), fast=FastModel(generator, "fp32", None))
    latents = sample_latents(generator.model, range(5), 3, generator.config.sampling)
    found = fast.generated(range(5), 3)
    assert (found.latents_BKD - latents).norm() / latents.norm() < 1e-4
    assert (found.tokens_BL == decode(generator.model, latents, ROWS)).float().mean() > 0.99


def test_a_graph_gives_the_same_bits_for_a_seed_and_others_for_another() -> None:
    generator = _generator("seed", solver="ancestral")
    fast, _ = _fast(generator)
    first = [part.clone() for part in fast.generated(range(3), 0)]
    other = [part.clone() for part in fast.generated(range(3), 1)]
    again = fast.generated(range(3), 0)
    assert all(torch.equal(one, same) for one, same in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    assert len(fast._programs) == 1


def test_a_graph_hears_another_prompt() -> None:
    generator = _generator("prompt")
    fast, _ = _fast(generator)
    latents = {}
    for seed in (0, 1):
        context = _prompt(generator, 6, seed)
        latents[seed] = fast.generated(range(6), 0, context).latents_BKD.clone()
        expected = sample_latents(generator.model, range(6), 0, generator.config.sampling, None, context)
        assert (latents[seed] - expected).norm() / expected.norm() < 1e-2
    assert not torch.equal(latents[0], latents[1])


def test_a_sample_does_not_depend_on_its_batch_but_for_rounding() -> None:
    generator = _generator("seed")
    fast, _ = _fast(generator)
    many = fast.generated(range(64), 0).latents_BKD.clone()
    for first in (0, 40):
        alone = fast.generated(range(first, first + 1), 0).latents_BKD[0]
        assert (alone - many[first]).norm() / alone.norm() < 1e-2


def test_many_texts_are_sampled_by_the_fast_path_and_few_are_not(capsys) -> None:
    generator = _generator("seed", batch_size=2)
    assert quickened(generator, 8) is generator
    fast = quickened(generator, 9)
    assert isinstance(fast, FastGenerator) and fast.dtype == torch.bfloat16
    assert (fast.tokens(9, seed=0) == generator.tokens(9, seed=0)).float().mean() > 0.9
    said = "fast path: bf16, operations of torch; one CUDA graph for each batch size\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("made", [normals, normals_by_torch])
def test_noise_is_that_of_the_cpu(made) -> None:
    for draw in (0, 3):
        here, there = (function(sample_keys(5, range(4), device), draw, (64, 30))
                       for function, device in ((normals, "cpu"), (made, "cuda")))
        assert torch.allclose(here, there.cpu(), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(monkeypatch) -> None:
    generator = _generator("seed", steps=1)
    fast, said = _fast(generator)
    expected = fast.generated(range(2), 0).tokens_BL.clone()

    def waiting(*arguments):
        program = plain(*arguments)

        def generate(keys_B2, prompt):
            keys_B2.sum().item()
            return program(keys_B2, prompt)

        return generate

    plain = fast_path.program_of
    monkeypatch.setattr(fast_path, "program_of", waiting)
    again = dataclasses.replace(fast)
    assert torch.equal(again.tokens(2, seed=0), expected)
    *_, warning = said
    assert len(said) > 1
    assert warning.startswith("warning: no CUDA graph of bf16, operations of torch, at batch 2: ")
    assert torch.randn(3, device="cuda").isfinite().all()  # torch draws on
