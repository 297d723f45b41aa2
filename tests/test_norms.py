"""When norms are kernels, and what is made of what they give. The kernels: tests/test_gpu_norms.py."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch._subclasses import FakeTensorMode  # noqa: E402

from trainer import norms  # noqa: E402
from trainer.attention import AttentionShape, TransformerBlock  # noqa: E402
from trainer.denoiser import _DiTBlock  # noqa: E402

Gradients = tuple[torch.Tensor, ...]


@pytest.mark.parametrize(("device", "dtype", "gain", "shape", "suits"), [
    ("cuda", torch.bfloat16, torch.bfloat16, (5, 8, 64), True),
    ("cuda", torch.bfloat16, torch.bfloat16, (5, 5120), True),
    ("cuda", torch.bfloat16, torch.float32, (5, 8, 64), False),
    ("cuda", torch.bfloat16, torch.bfloat16, (5, 8193), False),
    ("cuda", torch.bfloat16, torch.bfloat16, (0, 8, 64), False),
    ("cuda", torch.float32, torch.float32, (5, 8, 64), False),
    ("cpu", torch.bfloat16, torch.bfloat16, (5, 8, 64), False)])
def test_kernels_are_for_bfloat16_on_a_gpu_and_not_for_what_torch_compiles(
        monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, gain: torch.dtype,
        shape: tuple[int, ...], suits: bool) -> None:
    monkeypatch.setattr(norms, "has_triton", lambda device: True)
    with FakeTensorMode():
        x, gain = (torch.empty(shape, dtype=kind, device=device) for kind in (dtype, gain))
    assert norms.suits(x, gain) is suits
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not norms.suits(x, gain)


def _heads(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 2.0**-23).sqrt() * gain


def _rows(x: torch.Tensor, factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * factor + offset


def _backwards(upstream: torch.Tensor, way: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Gradients:
    return torch.autograd.functional.vjp(way, inputs, upstream)[1]


@pytest.mark.parametrize("kind", [TransformerBlock, _DiTBlock])
def test_blocks_learn_by_the_kernels_what_they_learn_by_torch(
        monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    block, calls = kind(AttentionShape(64, 4)).double(), []
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, time = (torch.randn(2, length, 64, dtype=torch.float64, requires_grad=True)
               for length in (5, 1))
    inputs, unused = ([x, time], [None, None]) if kind is _DiTBlock else ([x], [])

    def learnt() -> list[torch.Tensor]:
        read = block(*inputs, *unused)
        return [read.detach(), *torch.autograd.grad(read.square().sum(), [*inputs, *block.parameters()])]

    def counted(name: str, way: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *given: calls.append(name) or way(*given)

    wanted = learnt()
    monkeypatch.setitem(sys.modules, "trainer.head_norm_kernels", SimpleNamespace(
        normed_heads=counted("heads", _heads),
        gradients=counted("heads back", lambda upstream, *given: _backwards(upstream, _heads, *given))))
    monkeypatch.setitem(sys.modules, "trainer.layer_norm_kernels", SimpleNamespace(
        normed_rows=counted("rows", _rows),
        gradients=counted("rows back", lambda upstream, x, factor: _backwards(
            upstream, _rows, x, factor, torch.zeros_like(factor)))))
    monkeypatch.setattr(norms, "suits", lambda x, gain: True)
    for mine, theirs in zip(learnt(), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert sorted(calls) == 2 * ["heads"] + 2 * ["heads back"] + 2 * ["rows"] + 2 * ["rows back"]
