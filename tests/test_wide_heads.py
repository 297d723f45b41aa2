"""Attention of wide heads by plain products, against torch's own."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from trainer import attention, wide_heads  # noqa: E402
from trainer.attention import AttentionShape, CrossAttention, SelfAttention  # noqa: E402


def parts(dtype: torch.dtype, queries: int = 5, read: int = 7) -> list[torch.Tensor]:
    """Queries, keys and values as a projection leaves them: heads between positions and channels."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, length, 3, 320, generator=generator).to(dtype).transpose(1, 2).requires_grad_()
            for length in (queries, read, read)]


def with_gradients(way, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    found = way(*inputs)
    weight = torch.linspace(-1, 1, found.numel()).view(found.shape).to(found.dtype)
    return [found.detach(), *torch.autograd.grad(found, inputs, weight)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_value_and_gradients_are_those_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    inputs = parts(dtype)
    assert wide_heads.suits(*inputs[:2])
    exact = with_gradients(F.scaled_dot_product_attention,
                           [part.detach().double().requires_grad_() for part in inputs])
    for mine, theirs in zip(with_gradients(wide_heads.attended, inputs), exact, strict=True):
        assert mine.dtype == dtype and mine.shape == theirs.shape
        assert (mine.double() - theirs).norm() < tolerance * theirs.norm()


def test_scores_that_bfloat16_would_blur_are_told_apart() -> None:
    """Aligned queries and keys score in the fifties, where bfloat16 knows steps of a quarter."""
    key = torch.zeros(1, 2, 512, dtype=torch.bfloat16)
    key[0, :, :400], key[0, 1, 400] = 1.0, 1.0
    query = (3 * torch.ones(1, 1, 512)).bfloat16().requires_grad_()
    value = torch.eye(2, 512).bfloat16()[None]
    read = wide_heads.attended(query, key, value)[0, 0, :2]
    exact = torch.tensor([0.0, 3 / 512**0.5]).softmax(0)
    assert read.tolist() == pytest.approx(exact.tolist(), rel=4e-3)


@pytest.mark.parametrize(("width", "read", "suits"), [(256, 7, False), (320, 321, False), (320, 320, True)])
def test_it_is_for_short_rows_and_wide_heads_only(width: int, read: int, suits: bool) -> None:
    query, key = torch.empty(2, 5, width, requires_grad=True), torch.empty(2, read, width)
    assert wide_heads.suits(query, key) is suits
    assert not wide_heads.suits(query.detach(), key)
    with torch.no_grad():
        assert not wide_heads.suits(query, key)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_the_trained_blocks_use_it_and_compute_the_same(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = kind(AttentionShape(640, 2))
    context = [torch.randn(3, 9, 640)] if kind is CrossAttention else []
    x = torch.randn(3, 8, 640)

    def gradients() -> list[torch.Tensor]:
        loss = layer(x, *context).square().mean()
        return [loss, *torch.autograd.grad(loss, list(layer.parameters()))]

    calls: list[torch.Size] = []
    attended = wide_heads.attended
    monkeypatch.setattr(wide_heads, "attended",
                        lambda *inputs: calls.append(inputs[0].shape) or attended(*inputs))
    found = gradients()
    assert calls == [(3, 2, 8, 320)]
    monkeypatch.setattr(attention.wide_heads, "suits", lambda query, key: False)
    for mine, theirs in zip(found, gradients(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)
    assert len(calls) == 1
