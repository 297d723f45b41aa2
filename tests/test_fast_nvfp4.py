"""Maps in 4 bits: codes and scales by hand from tables of their formats, places from cuBLAS's manual."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from trainer.bench_floor import BYTES_OF_WEIGHT  # noqa: E402
from trainer.fast import nvfp4  # noqa: E402
from trainer.fast.nvfp4 import Nvfp4Map, multiplies_nvfp4, tiled, unscaled_product  # noqa: E402
from trainer.fast.weights import laid_out  # noqa: E402
from trainer.quantise import Nvfp4, encode_nvfp4, unscaled_nvfp4  # noqa: E402

# By code. OCP Microscaling Formats 1.0, table 5; e4m3: OCP 8-bit floating point, table 2, without its NaN.
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
E4M3 = [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7)
                                             for e in range(1, 16) for m in range(8)][:-1]


def _nearest(value: float, table: list[float]) -> float:
    """Ties go to the even code, as IEEE 754 rounds; beyond the table's end is its end."""
    return table[min(range(len(table)), key=lambda code: (abs(table[code] - value), code % 2))]


def _rounded(row: list[float]) -> list[float]:
    """What is left of a row: 6 and 448 are the largest of both formats."""
    largest = max(map(abs, row)) / (6 * 448) or 1.0
    found = []
    for start in range(0, len(row), 16):
        block = [value / largest for value in row[start:start + 16]]
        scale = _nearest(max(map(abs, block)) / 6, E4M3)
        sizes = [_nearest(abs(value) / scale, E2M1[:8]) * scale if scale else 0.0 for value in block]
        found += [math.copysign(size, value) * largest for size, value in zip(sizes, block, strict=True)]
    return found


def _coded(block: list[float]) -> list[int]:
    """Codes of a block of 16 whose scale is 1, in a row whose scale is 1."""
    assert max(map(abs, block)) == 6
    coded = encode_nvfp4(torch.tensor([[2688.0, *[0.0] * 15, *block]]))
    assert coded.row_scales.item() == 1 and coded.block_scales.float().tolist() == [[448, 1]]
    return [half for pair in coded.codes[0, 8:].tolist() for half in (pair & 15, pair >> 4)]


def _map(num_inputs: int, num_outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
    made.weight[0] *= 1000  # each row has a scale of its own
    made.weight[1, :16] *= 100  # and each block
    return made


def _inputs() -> torch.Tensor:
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0, 1] *= 100
    x[1, 1, 16:32] *= 0.01
    return x


def test_all_sixteen_values_are_read_and_written_as_their_codes() -> None:
    codes = torch.tensor([[code | code + 1 << 4 for code in range(0, 16, 2)]], dtype=torch.uint8)
    scales = torch.ones(1, 1, dtype=torch.float8_e4m3fn)
    found = unscaled_nvfp4(Nvfp4(codes, scales, torch.ones(1, 1)))[0]
    assert found.tolist() == E2M1 and found.dtype == torch.bfloat16
    assert _coded(E2M1) == [*range(8), 0, *range(9, 16)]  # a zero has no sign


def test_ties_go_to_even_codes_and_all_else_to_the_nearest() -> None:
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    even = [0, 2, 2, 4, 4, 6, 6]
    assert _coded([*ties, 6, *(-tie for tie in ties), -6]) == [*even, 7, *(8 + code for code in even), 15]
    assert _coded([*(tie * 1.001 for tie in ties), 6, *(tie * 0.999 for tie in ties), 0]) == [
        1, 2, 3, 4, 5, 6, 7, 7, 0, 1, 2, 3, 4, 5, 6, 0]


def test_what_a_scale_that_was_rounded_down_leaves_too_large_is_six() -> None:
    coded = encode_nvfp4(torch.tensor([[2688.0, *[0.0] * 15, 6.3, -6.3, *[0.0] * 14]]))
    assert coded.block_scales.float().tolist() == [[448, 1]]  # not 1.05
    assert unscaled_nvfp4(coded)[0, 16:18].tolist() == [6, -6]


def test_rows_are_rounded_as_by_hand_and_what_was_rounded_stays() -> None:
    rows = torch.cat([_map(64, 32).weight, torch.zeros(1, 64), 1e-30 * torch.ones(1, 64)])
    coded = encode_nvfp4(rows)
    found = unscaled_nvfp4(coded).double() * coded.row_scales
    expected = torch.tensor([_rounded(row) for row in rows.double().tolist()])
    assert torch.allclose(found, expected.double(), rtol=1e-6, atol=0)
    again = encode_nvfp4(found)
    assert torch.allclose(unscaled_nvfp4(again).double() * again.row_scales, found, rtol=1e-6, atol=0)


def test_a_weight_takes_four_and_a_half_bits() -> None:
    coded = encode_nvfp4(_map(64, 32).weight)
    assert coded.codes.nbytes + coded.block_scales.nbytes == 64 * 32 * BYTES_OF_WEIGHT["fp4"]


def test_a_row_does_not_depend_on_others_and_keeps_what_is_no_number_to_itself() -> None:
    rows = _inputs().flatten(0, 1)
    rows[2, 5] = float("nan")
    whole = encode_nvfp4(rows)
    for number in (0, 1, 3, 4, 5):
        alone = encode_nvfp4(rows[number:number + 1])
        assert all(torch.equal(part[number], own[0]) for part, own in zip(whole, alone, strict=True))
    found = Nvfp4Map(laid_out(_map(64, 16), "bf16"))(rows)
    assert found.isnan().all(dim=1).tolist() == [False, False, True, False, False, False]
    assert not found[[0, 1, 3, 4, 5]].isnan().any()


def test_a_map_in_4_bits_multiplies_rows_and_weights_rounded_by_hand() -> None:
    linear, x = _map(64, 16), _inputs()
    found = Nvfp4Map(laid_out(linear, "bf16"))(x)
    weight = [_rounded(row) for row in linear.weight.bfloat16().double().tolist()]
    rows = [_rounded(row) for row in x.double().flatten(0, 1).tolist()]
    expected = torch.tensor([[sum(a * b for a, b in zip(row, column, strict=True)) for column in weight]
                             for row in rows]) + linear.bias.bfloat16().double()
    assert found.dtype == torch.bfloat16 and found.shape == (2, 3, 16)
    size = expected.abs().amax(dim=1, keepdim=True)
    assert ((found.flatten(0, 1).double() - expected).abs() < 0.01 * size).all()
    assert (expected - x.flatten(0, 1).double() @ linear.weight.double().T).abs().max() > 0.03 * size.min()


def _place(row: int, column: int, num_columns: int) -> int:
    """Where tensor cores look for a scale (cuBLAS, "1D Block Scaling Factors Layout")."""
    tile = row // 128 * -(-num_columns // 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


@pytest.mark.parametrize("shape", [(1, 1), (64, 4), (130, 6), (300, 9)])
def test_scales_lie_where_tensor_cores_look_for_them_and_zeros_lie_between(shape) -> None:
    scales = torch.randint(1, 100, shape, dtype=torch.uint8)
    found = tiled(scales.view(torch.float8_e4m3fn)).view(torch.uint8)
    expected = torch.zeros(-(-shape[0] // 128) * 128 * -(-shape[1] // 4) * 4, dtype=torch.uint8)
    for row in range(shape[0]):
        for column in range(shape[1]):
            expected[_place(row, column, shape[1])] = scales[row, column]
    assert torch.equal(found, expected)


def _tensor_cores(left, right, left_scales, right_scales, out_dtype):
    """What they make of bytes, one number after the other."""
    def numbers(codes, scales):
        values = scales.float().tolist()
        return torch.tensor([[E2M1[pair >> shift & 15] * values[_place(row, column // 8, len(pairs) // 8)]
                              for column, pair in enumerate(pairs) for shift in (0, 4)]
                             for row, pairs in enumerate(codes.view(torch.uint8).tolist())])

    return (numbers(left, left_scales) @ numbers(right.T, right_scales).T).to(out_dtype)


def test_tensor_cores_are_given_what_is_emulated_elsewhere(monkeypatch) -> None:
    x, linear = _inputs(), laid_out(_map(64, 144), "bf16")
    emulated = Nvfp4Map(linear)(x)
    monkeypatch.setattr(nvfp4, "_WEIGHTS_AT_A_TIME", 64 * 50)
    assert torch.equal(Nvfp4Map(linear)(x), emulated)
    monkeypatch.setattr(nvfp4, "multiplies_nvfp4", lambda device: True)
    monkeypatch.setattr(torch, "_scaled_mm", _tensor_cores)
    native = Nvfp4Map(linear)
    assert native.weight.dtype == torch.uint8 and native.weight.shape == (144, 32)
    assert torch.allclose(native(x).float(), emulated.float(), rtol=0.01, atol=1e-3)


def test_torch_takes_the_sizes_that_tensor_cores_are_given(monkeypatch) -> None:
    monkeypatch.setattr(nvfp4, "multiplies_nvfp4", lambda device: True)
    linear = nn.Linear(96, 48, device="meta", dtype=torch.bfloat16)
    found = Nvfp4Map(linear)(torch.empty(2, 3, 96, device="meta", dtype=torch.bfloat16))
    assert found.shape == (2, 3, 48) and found.dtype == torch.bfloat16
    coded = encode_nvfp4(linear.weight)
    with pytest.raises(RuntimeError, match="scale_b should have 1024 elements, got 288"):
        unscaled_product(coded, coded.codes, coded.block_scales)


def test_only_maps_whose_inputs_divide_by_32_and_outputs_by_16_are_in_4_bits() -> None:
    parts = laid_out(nn.ModuleList([_map(32, 16), _map(48, 16), _map(32, 20)]), "fp4")
    assert [type(part) for part in parts] == [Nvfp4Map, nn.Linear, nn.Linear]
    assert parts[1].weight.dtype == torch.bfloat16
    assert not multiplies_nvfp4(torch.device("cpu"))
