"""The kernels between a library's products, on a GPU, against torch in float32 or on whole numbers.

Run with `pytest -m gpu -s tests/test_gpu_fused.py`; it prints the errors that it measures.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from trainer.attention import AttentionShape, MultiHead, mix_by_torch  # noqa: E402
from trainer.fast.fused import gelu_in_fp8, map_gelu, mixer_for  # noqa: E402
from trainer.fast.head import argmax_rows  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cuda").manual_seed(sum(shape)), device="cuda")


def _error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("batch", "num_queries", "num_read", "width", "num_heads"), [
    (3, 64, 64, 2048, 8), (2, 64, 128, 512, 4), (1, 70, 33, 128, 2), (2, 5, 100, 256, 1)])
def test_heads_read_as_in_float32(batch: int, num_queries: int, num_read: int, width: int,
                                  num_heads: int) -> None:
    heads = MultiHead(AttentionShape(width, num_heads)).requires_grad_(False).to("cuda")
    for norm in (heads.query_norm, heads.key_norm):
        norm.weight.normal_(1, 0.2)
    query = _drawn(batch, num_queries, 3 * width).bfloat16()[..., width:2 * width]
    key, value = _drawn(batch, num_read, 2 * width).bfloat16().chunk(2, dim=-1)
    wanted = heads.mix(query.float(), key.float(), value.float())
    mixer = mixer_for(heads.bfloat16(), query.device)
    assert mixer is not mix_by_torch
    error = _error(mixer(heads, query, key, value, None, None), wanted)
    print(f"{num_queries} x {num_read}, {num_heads} heads of {width // num_heads}: {error:.5f}")
    assert error < 1e-2


def test_a_map_with_its_gelu_is_off_by_a_rounding_of_bfloat16() -> None:
    x, weight, bias = _drawn(300, 256).bfloat16(), (_drawn(512, 256) / 16).bfloat16(), _drawn(512).bfloat16()
    wanted = F.gelu(F.linear(x.double(), weight.double(), bias.double())).float()
    error = _error(map_gelu(x, weight, bias), wanted)
    print(f"map and GELU: {error:.5f}")
    assert error < 5e-3


HAS_E4M3 = pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9),
                              reason="no e4m3")


@HAS_E4M3
@pytest.mark.parametrize("width", [300, 8192, 20_480])
def test_gelu_in_e4m3_is_what_torch_rounds_it_to(width: int) -> None:
    x = 3 * _drawn(130, width).bfloat16()
    x[1] = 0
    wanted = F.gelu(x.float()).bfloat16().float()
    codes, scale = gelu_in_fp8(x)
    by_torch = wanted.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 448
    torch.testing.assert_close(scale, by_torch, rtol=1e-2, atol=0)
    assert _error(codes.float() * scale, wanted) < 0.03
    rounded = (wanted / by_torch).to(torch.float8_e4m3fn)
    assert (codes.view(torch.uint8) == rounded.view(torch.uint8)).float().mean() > 0.95


@HAS_E4M3
def test_what_is_no_number_stays_none_in_e4m3() -> None:
    x = _drawn(3, 300).bfloat16()
    x[0, 7], x[1, 8] = float("nan"), float("inf")
    codes, _ = gelu_in_fp8(x)
    wanted = torch.zeros_like(x, dtype=torch.bool)
    wanted[0, 7] = wanted[1, 8] = True
    assert torch.equal(codes.float().isnan(), wanted)


@pytest.mark.parametrize(("positions", "rows"), [(65, 300), (700, 20_000), (1_500, 4_096)])
def test_the_best_row_of_many_positions_is_the_first_of_the_largest(positions: int, rows: int) -> None:
    chance = torch.Generator("cuda").manual_seed(0)
    features, weight = (torch.randint(-3, 4, (num, 64), device="cuda", generator=chance).bfloat16()
                        for num in (positions, rows))
    bias = torch.randint(-3, 4, (rows,), device="cuda", generator=chance).float()
    features[3] = float("nan")
    # Whole numbers: products and sums are exact, and equal logits are many.
    logits = features.double() @ weight.double().T + bias
    columns = torch.arange(rows, device="cuda").expand_as(logits)
    wanted = columns.masked_fill(logits < logits.amax(dim=1, keepdim=True), rows).amin(dim=1)
    wanted[3] = 0
    assert torch.equal(argmax_rows(features, weight, bias, None), wanted)
