"""When heads are normed by kernels, and what is made of them. The kernels: tests/test_gpu_trained.py."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from trainer import head_norm  # noqa: E402
from trainer.attention import AttentionShape, SelfAttention  # noqa: E402


@pytest.mark.parametrize(("device", "dtype", "width", "suits"), [
    ("cuda", torch.bfloat16, 64, True), ("cuda", torch.bfloat16, 640, True),
    ("cuda", torch.bfloat16, 2048, False), ("cuda", torch.float32, 64, False),
    ("cpu", torch.bfloat16, 64, False)])
def test_kernels_are_for_bfloat16_on_a_gpu_and_not_for_what_torch_compiles(
        monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, width: int, suits: bool) -> None:
    monkeypatch.setattr(head_norm, "has_triton", lambda device: True)
    with FakeTensorMode():
        x = torch.empty(2, 5, 8, width, dtype=dtype, device=device)
    assert head_norm.suits(x) is suits
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not head_norm.suits(x)


def _normed(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    length = (x.double().square().mean(-1, keepdim=True) + 2.0**-23).sqrt()
    return (x.double() / length * gain.double()).to(x.dtype)


def _gradients(upstream: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """By differences, one channel at a time."""
    x, gain, upstream = x.double(), gain.double(), upstream.double()
    for_x, for_gain = torch.empty_like(x), torch.empty_like(gain)
    for channel in range(x.shape[-1]):
        step = torch.zeros(x.shape[-1], dtype=torch.float64)
        step[channel] = 1e-5
        change = upstream * (_normed(x + step, gain) - _normed(x - step, gain))
        for_x[..., channel] = change.sum(-1) / 2e-5
        for_gain[channel] = (upstream * (_normed(x, gain + step) - _normed(x, gain - step))).sum() / 2e-5
    return for_x.float(), for_gain.float()


def test_attention_learns_by_the_kernels_what_it_learns_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(AttentionShape(64, 4)), torch.randn(2, 5, 64, requires_grad=True)
    torch.nn.init.normal_(layer.query_norm.weight)

    def learnt() -> list[torch.Tensor]:
        read = layer(x)
        return [read.detach(), *torch.autograd.grad(read.square().sum(), [x, *layer.parameters()])]

    def counted(way: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *inputs: calls.append(way) or way(*inputs)

    wanted, calls = learnt(), []
    kernels = SimpleNamespace(normed_heads=counted(_normed), gradients=counted(_gradients))
    monkeypatch.setitem(sys.modules, "trainer.head_norm_kernels", kernels)
    monkeypatch.setattr(head_norm, "suits", lambda x: True)
    for mine, theirs in zip(learnt(), wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5)
    assert calls == 2 * [_normed] + 2 * [_gradients]
