"""The persistent kernels against the reference in float32, at the sizes they are for, on an H100 or H200.

Run with `pytest -m gpu -s tests/test_gpu_persistent.py`; it prints the errors that it measures.
"""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_cases import Model  # noqa: E402
from trainer.bench_models import profile_config, random_generator  # noqa: E402
from trainer.fast.generator import fast_generator  # noqa: E402
from trainer.fast.head import argmax_rows  # noqa: E402
from trainer.fast.noise import normals, normals_by_torch, sample_keys  # noqa: E402
from trainer.fast.persistent.program import PersistentProgram, why_not_here  # noqa: E402
from trainer.fast.weights import Mode  # noqa: E402
from trainer.generate import sample_latents  # noqa: E402

_REASON = why_not_here(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_REASON is not None, reason=_REASON or "it runs")]


@pytest.mark.parametrize(("mode", "most", "least_same"), [("bf16", 1e-2, 0.9), ("fp8", 0.1, 0.5)])
@pytest.mark.parametrize("preset", ["seed-35b-a3b", "seed-27b"])
def test_texts_of_the_kernels_are_those_of_float32_and_twice_the_same_bits(
        preset: str, mode: Mode, most: float, least_same: float) -> None:
    torch.set_float32_matmul_precision("highest")
    whole = random_generator(profile_config(Model(name=preset, length=64)), 1, torch.device("cuda"))
    for steps in (1, 3):
        sampling = whole.config.sampling.model_copy(update={"steps": steps, "batch_size": 1})
        generator = dataclasses.replace(whole, config=whole.config.model_copy(update={"sampling": sampling}))
        said: list[str] = []
        fast = fast_generator(generator, said.append, mode=mode)
        for seed in (1, 2):
            wanted = sample_latents(generator.model, range(1), seed, sampling)
            found = fast.latents(1, seed)
            error = float((found - wanted).norm() / wanted.norm())
            same = float((fast.tokens(1, seed) == generator.tokens(1, seed)).float().mean())
            print(f"{preset}, {mode}, {steps} steps, seed {seed}: error {error:.5f}, same tokens {same:.1%}")
            assert error < most and same > least_same
            assert torch.equal(fast.latents(1, seed), found)
        (captured,) = fast._programs.values()
        assert isinstance(captured._program, PersistentProgram)
        assert not any("warning" in line for line in said)


def test_the_head_kernel_finds_the_first_of_the_largest_logits() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    for positions, width, rows in ((1, 64, 17), (64, 2048, 4_999), (33, 96, 300), (100, 96, 300)):
        features, weight = (torch.randint(-3, 4, (num, width), device="cuda", generator=generator).bfloat16()
                            for num in (positions, rows))
        bias = torch.randint(-3, 4, (rows,), device="cuda", generator=generator).float()
        # Whole numbers: products and sums are exact, and equal logits are many.
        logits = features.double() @ weight.double().T + bias
        wanted = torch.tensor([row.tolist().index(max(row.tolist())) for row in logits], device="cuda")
        assert torch.equal(argmax_rows(features, weight, bias, None), wanted)
        fewer = argmax_rows(features, weight, bias, rows - 3)
        assert torch.equal(fewer, logits[:, :rows - 3].max(dim=1, keepdim=True).values.eq(
            logits[:, :rows - 3]).int().argmax(dim=1))
        features[-1] = float("nan")
        assert argmax_rows(features, weight, bias, None).tolist() == [*wanted[:-1].tolist(), 0]


def test_the_noise_kernel_draws_the_numbers_of_torch() -> None:
    keys = sample_keys(5, [0, 1, 2**20], "cuda")
    for draw, shape in ((0, (64, 48)), (3, (7, 5))):
        torch.testing.assert_close(normals(keys, draw, shape), normals_by_torch(keys, draw, shape),
                                   rtol=1e-5, atol=2e-6)
