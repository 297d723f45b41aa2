"""Norms of the trained parts by kernels, on a GPU, against float64 by hand; times beside torch's are printed.

Run with `pytest -m gpu -s tests/test_gpu_norms.py`.
"""

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from trainer import norms  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")
Norm = Callable[..., Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator(GPU).manual_seed(sum(shape)), device=GPU).bfloat16()


def heads_by_hand(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * gain


def heads_by_torch(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain)


def rows_by_hand(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * factor + offset


def rows_by_torch(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    if factor.ndim == 1:
        return F.layer_norm(x, x.shape[-1:], factor, offset)
    return F.layer_norm(x, x.shape[-1:]) * factor + offset


def there_and_back(norm: Norm, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    found = norm(*inputs)
    return [found.detach(), *torch.autograd.grad(found, inputs, upstream.to(found.dtype))]


def check(ours: Norm, by_hand: Norm, by_torch: Norm, inputs: list[Tensor], upstream: Tensor) -> None:
    """Both ways: off by a rounding to bfloat16, the same bits twice; prints how long they take."""
    assert norms.suits(*inputs[:2])
    inputs = [part.detach().requires_grad_() for part in inputs]
    found = there_and_back(ours, inputs, upstream)
    assert all(map(torch.equal, found, there_and_back(ours, inputs, upstream)))
    exact = [part.detach().double().requires_grad_() for part in inputs]
    for mine, theirs in zip(found, there_and_back(by_hand, exact, upstream), strict=True):
        assert mine.dtype == torch.bfloat16 and mine.shape == theirs.shape and mine.is_contiguous()
        assert (mine.double() - theirs).norm() < 3e-3 * theirs.norm()
    for name, norm in (("kernels", ours), ("torch", by_torch)):
        with torch.no_grad():
            there_us = time_us(lambda norm=norm: norm(*inputs))
        both_us = time_us(lambda norm=norm: there_and_back(norm, inputs, upstream))
        print(f"\n{tuple(upstream.shape)} by {name}: {there_us:.1f}, {both_us - there_us:.1f} us", end="")


def time_us(way: Callable[[], object], num: int = 20) -> float:
    """Of one call among several."""
    way()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num):
        way()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * begin.elapsed_time(end) / num


# As qwen3.6's and qwen3.5-0.8b's at micro-batch 32, seed-35b-a3b's and seed-27b's; sizes of no recipe.
@pytest.mark.parametrize(("batch", "length", "num_heads", "width"), [
    (32, 1024, 12, 64), (32, 1024, 8, 64), (64, 64, 8, 256), (64, 64, 8, 640), (3, 7, 3, 80), (1, 1, 1, 16)])
def test_heads_are_normed_and_learn_as_in_float64(batch: int, length: int, num_heads: int,
                                                  width: int) -> None:
    product = drawn(batch, length, 3 * num_heads * width)
    x = product.chunk(3, dim=-1)[1].unflatten(-1, (num_heads, -1))
    check(norms.rms_normed, heads_by_hand, heads_by_torch, [x, drawn(width)], drawn(*x.shape))
    upstream = drawn(batch, num_heads, length, width).transpose(1, 2)
    check(norms.rms_normed, heads_by_hand, heads_by_torch, [x, drawn(width)], upstream)


@pytest.mark.parametrize("is_modulated", [True, False])
@pytest.mark.parametrize(("batch", "length", "width"), [
    (32, 1024, 768), (32, 1024, 512), (64, 64, 2048), (64, 64, 5120), (3, 7, 80), (1, 1, 16)])
def test_rows_are_normed_and_learn_as_in_float64(batch: int, length: int, width: int,
                                                 is_modulated: bool) -> None:
    x, told = drawn(batch, length, width) + 0.5, drawn(batch, 1, 6 * width).chunk(6, dim=-1)
    others = [1 + told[1], told[0]] if is_modulated else [drawn(width), drawn(width) / 2]
    check(norms.layer_normed, rows_by_hand, rows_by_torch, [x, *others], drawn(*x.shape))


def odd(size: float) -> Tensor:
    """Rows of that size, one of zeros, and two that hold no number."""
    x = drawn(5, 4, 64).sigmoid() * size
    x[1], x[2, 0, 5], x[3, 1, 6] = 0, float("nan"), float("inf")
    return x


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e15, 3e38])
def test_odd_heads_are_normed_as_by_torch(size: float) -> None:
    x, gain = odd(size), drawn(64)
    found, wanted = norms.rms_normed(x, gain), heads_by_torch(x, gain)
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e15])
def test_odd_rows_are_normed_as_in_float64(size: float) -> None:
    x, factor, offset = odd(size), drawn(64), drawn(65)[1:]
    wanted = rows_by_hand(*(part.double() for part in (x, factor, offset)))
    found = norms.layer_normed(x, factor, offset).double()
    torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-5, equal_nan=True)
