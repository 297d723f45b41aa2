"""What makes the trained parts fast, on a GPU: `pytest -m gpu -s tests/test_gpu_trained.py`."""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from trainer import head_norm, wide_heads  # noqa: E402
from trainer.bench_models import shape_of  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import GivenStates  # noqa: E402
from trainer.bench_train_job import as_first_rank, build_step, end_step, take_step  # noqa: E402
from trainer.bench_train_result import MOST_ERROR  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")


def test_wide_heads_read_and_learn_as_by_exact_attention() -> None:
    """As seed-27b's: 8 heads of 640 channels, 64 positions."""
    generator = torch.Generator(GPU).manual_seed(0)
    inputs = [torch.randn(4, 64, 8, 640, generator=generator, device=GPU).bfloat16().transpose(1, 2)
              .requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    assert wide_heads.suits(*inputs[:2])
    found, wanted = wide_heads.attended(*inputs), F.scaled_dot_product_attention(*exact)
    weight = torch.randn(found.shape, generator=generator, device=GPU).bfloat16()
    pairs = zip([found, *torch.autograd.grad(found, inputs, weight)],
                [wanted, *torch.autograd.grad(wanted, exact, weight.double())], strict=True)
    assert all((mine.double() - theirs).norm() < 1e-2 * theirs.norm() for mine, theirs in pairs)


def time_s(way: Callable[[], object], num: int = 20) -> float:
    """Seconds on the GPU of one call among several."""
    way()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num):
        way()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / num


def by_torch(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], gain)


def by_hand(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * gain


# As qwen3.6's, at micro-batch 32, as seed-35b-a3b's and seed-27b's; sizes of no recipe.
@pytest.mark.parametrize(("batch", "length", "num_heads", "width"), [
    (32, 1024, 12, 64), (64, 64, 8, 256), (64, 64, 8, 640), (3, 7, 3, 80), (1, 1, 1, 16), (0, 5, 2, 64)])
def test_heads_are_normed_and_learn_as_in_float64_and_twice_to_the_same_bits(
        batch: int, length: int, num_heads: int, width: int) -> None:
    chance = torch.Generator(GPU).manual_seed(0)
    product = torch.randn(batch, length, 3 * num_heads * width, generator=chance, device=GPU).bfloat16()
    gain = torch.randn(width, generator=chance, device=GPU).bfloat16().requires_grad_()
    x = product.chunk(3, dim=-1)[1].unflatten(-1, (num_heads, -1)).requires_grad_()
    upstream = torch.randn(x.shape, generator=chance, device=GPU).bfloat16()

    def both(norm, x: torch.Tensor, gain: torch.Tensor) -> list[torch.Tensor]:
        found = norm(x, gain)
        return [found.detach(), *torch.autograd.grad(found, (x, gain), upstream.to(x.dtype))]

    assert head_norm.suits(x)
    found = both(head_norm.normed, x, gain)
    assert all(map(torch.equal, found, both(head_norm.normed, x, gain)))
    wanted = both(by_hand, *(part.detach().double().requires_grad_() for part in (x, gain)))
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == theirs.shape
        assert (mine.double() - theirs).norm() <= 3e-3 * theirs.norm()
    for name, norm in (("kernels", head_norm.normed), ("torch", by_torch)):
        with torch.no_grad():
            there_s = time_s(lambda norm=norm: norm(x, gain))
        print(f"\n{tuple(x.shape)} by {name}: {1e6 * there_s:.1f} us, and back "
              f"{1e6 * (time_s(lambda norm=norm: both(norm, x, gain)) - there_s):.1f} us", end="")


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e15, 3e38])
def test_rows_of_any_size_of_zeros_and_of_no_numbers_are_normed_as_by_torch(size: float) -> None:
    chance = torch.Generator(GPU).manual_seed(0)
    x, gain = (torch.rand(*shape, generator=chance, device=GPU).bfloat16() for shape in ((5, 4, 64), (64,)))
    x *= size
    x[1], x[2, 0, 5], x[3, 1, 6] = 0, float("nan"), float("inf")
    found, wanted = head_norm.normed(x, gain), by_torch(x, gain)
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0, equal_nan=True)


def losses(told: TrainCase, states: GivenStates, num_steps: int) -> torch.Tensor:
    """(steps, losses) of one run from its start."""
    job, taken = build_step(told, states, 0, GPU), []
    for step in range(num_steps):
        take_step(job, step)
        taken.append(torch.stack(list(job.losses.values())))
    end_step(job)
    return torch.stack(taken).double().cpu()


@pytest.mark.parametrize("profile", ["qwen3.5-2b", "seed-35b-a3b"])
def test_compiled_blocks_train_as_plain_ones_and_twice_to_the_same_bits(profile: str) -> None:
    plain = TrainCase(profile=profile, scope="trainables", length=64, micro_batch=4, num_micro_batches=2,
                      weights="bf16")
    counters.clear()
    with as_first_rank(1):
        config = config_of(plain)
        states = GivenStates(shape_of(config), config, GPU)
        wanted = losses(plain, states, 50)
        compiled = plain.model_copy(update={"compiles": True})
        found = losses(compiled, states, 50)
        assert torch.equal(losses(compiled, states, 50), found)
    graphs = counters["stats"]["unique_graphs"]
    error = float(((found - wanted) / wanted).abs().max())
    print(f"\n{profile}: {graphs} graphs, greatest difference of a loss in 50 steps {error:.4f}")
    assert error < MOST_ERROR["bf16"] and graphs <= 4  # of blocks
