"""Weights of the fast path: products in fp8 against e4m3 rounded by hand, joined maps, folded norms."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from trainer.attention import GatedMlp  # noqa: E402
from trainer.fast.weights import Fp8Map, behind_norm, joined, laid_out  # noqa: E402


def _e4m3(value: float) -> float:
    """The nearest number with three bits behind the leading one, an exponent from -6 on, at most 448."""
    exponent = max(math.frexp(abs(value))[1] - 1, -6) if value else -6
    step = 2.0 ** (exponent - 3)
    return max(-448.0, min(448.0, round(value / step) * step))  # to even, as floats round


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    scales = [max(map(abs, row)) / 448 or 1.0 for row in rows]
    return [[_e4m3(value / scale) * scale for value in row] for row, scale in zip(rows, scales, strict=True)]


def _map(num_inputs: int, num_outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
    made.weight[0] *= 1000  # each row has a scale of its own
    return made


def test_a_map_in_fp8_multiplies_rows_and_weights_rounded_to_e4m3() -> None:
    linear, generator = _map(32, 16), torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 32, generator=generator).bfloat16()
    x[0, 1] *= 100
    found = Fp8Map(laid_out(linear, "bf16"))(x)
    weight = _rounded(linear.weight.bfloat16().double().tolist())
    rows = _rounded(x.double().flatten(0, 1).tolist())
    expected = torch.tensor([[sum(a * b for a, b in zip(row, column, strict=True)) for column in weight]
                             for row in rows]) + linear.bias.bfloat16().double()
    assert found.dtype == torch.bfloat16 and found.shape == (2, 3, 16)
    size = expected.abs().amax(dim=1, keepdim=True)
    assert ((found.flatten(0, 1).double() - expected).abs() < 0.01 * size).all()
    assert (expected - x.flatten(0, 1).double() @ linear.weight.double().T).abs().max() > 0.01 * size.min()


def test_rows_of_zeros_stay_zeros_in_fp8() -> None:
    linear = _map(16, 16)
    linear.weight[3], linear.bias[:] = 0, 0
    x = torch.ones(2, 16).bfloat16()
    x[1] = 0
    found = Fp8Map(laid_out(linear, "bf16"))(x)
    assert torch.isfinite(found).all() and (found[1] == 0).all() and (found[:, 3] == 0).all()


def test_only_maps_whose_sides_divide_by_16_are_in_fp8() -> None:
    parts = laid_out(nn.ModuleList([_map(16, 32), _map(20, 16), _map(16, 20)]), "fp8")
    assert [type(part) for part in parts] == [Fp8Map, nn.Linear, nn.Linear]
    assert parts[1].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp8"])
def test_a_gated_mlp_of_two_products_is_the_one_of_three(mode) -> None:
    torch.manual_seed(0)
    mlp = GatedMlp(16).requires_grad_(False)
    x = torch.randn(5, 16)
    found = laid_out(mlp, mode)(x if mode == "fp32" else x.bfloat16())
    most = {"fp32": 1e-6, "bf16": 1e-2, "fp8": 1e-1}[mode]
    assert (found - mlp(x)).norm() / mlp(x).norm() < most


def test_maps_are_joined_one_after_the_other_and_norms_are_folded_into_what_reads_them() -> None:
    torch.manual_seed(0)
    first, second, norm = _map(8, 3), _map(8, 5), nn.LayerNorm(8).requires_grad_(False)
    norm.weight.normal_(), norm.bias.normal_()
    x = torch.randn(4, 8)
    assert torch.allclose(joined([first, second])(x), torch.cat([first(x), second(x)], dim=1), atol=1e-4)
    bare = nn.functional.layer_norm(x, (8,))
    assert torch.allclose(behind_norm(first, norm)(bare), first(norm(x)), rtol=1e-4, atol=1e-3)
