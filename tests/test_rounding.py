"""What a checkpoint holds in fewer bits is the nearest such number, by every way of rounding."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainer.rounding import BY_TORCH, Rounding, rounding_on  # noqa: E402

WAYS = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")])]


def awkward_numbers(count: int = 5000) -> np.ndarray:
    """Of every size, denormal ones too, of both signs, and halfway between two in 16 and in 24 bits."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 0x7F000000, count, dtype=np.uint32)
    halfway_16, halfway_24 = bits & 0xFFFF0000 | 0x8000, bits & 0xFFFFFF00 | 0x80
    small = random.integers(0, 0x00800000, count, dtype=np.uint32)
    found = np.concatenate([bits, halfway_16, halfway_24, small, [0, 1, 0x7F800000]]).astype(np.uint32)
    return np.concatenate([found, found | 0x80000000]).astype(np.uint32).view(np.float32)


def nearest(values: np.ndarray, kept_bits: int, *, ties_to_even: bool) -> np.ndarray:
    """Of the two numbers of that many bits around each value the one that lies closer, in float64."""
    unit = np.uint32(1 << (32 - kept_bits))
    bits = values.view(np.uint32)
    toward_zero = bits & ~(unit - np.uint32(1))
    away = toward_zero + unit
    with np.errstate(invalid="ignore"):
        exact = values.astype(np.float64)
        to_lower = np.abs(exact - toward_zero.view(np.float32))
        to_upper = np.abs(away.view(np.float32).astype(np.float64) - exact)
    is_odd = (toward_zero & unit) != 0
    goes_up = (to_upper < to_lower) | ((to_upper == to_lower) & (is_odd if ties_to_even else True))
    return np.where(goes_up, away, toward_zero).astype(np.uint32).view(np.float32)


def same_bits(found: "torch.Tensor", expected: np.ndarray) -> bool:
    return found.float().cpu().numpy().tobytes() == expected.tobytes()


@pytest.fixture(params=WAYS)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rounding(device: str) -> Rounding:
    found = rounding_on(torch.device(device))
    assert (found is BY_TORCH) is (device == "cpu"), "a GPU has its kernels"
    return found


def test_a_momentum_becomes_the_nearest_in_bfloat16_in_the_copy_and_in_place(
        rounding: Rounding, device: str) -> None:
    values = awkward_numbers()
    live = torch.from_numpy(values.copy()).to(device)

    copy = rounding.to_bfloat16(live)

    expected = nearest(values, 16, ties_to_even=True)
    assert copy.dtype == torch.bfloat16
    assert same_bits(copy, expected) and same_bits(live, expected)


def test_a_variance_becomes_the_nearest_in_24_bits_in_place(rounding: Rounding, device: str) -> None:
    values = np.abs(awkward_numbers())
    live = torch.from_numpy(values.copy()).to(device)

    kept = rounding.to_24_bits(live)

    assert kept is live and same_bits(live, nearest(values, 24, ties_to_even=False))


def test_an_average_comes_to_lie_at_a_distance_that_bfloat16_can_tell(
        rounding: Rounding, device: str) -> None:
    random = np.random.default_rng(1)
    weights = random.standard_normal(5000).astype(np.float32)
    averages = weights + 1e-3 * random.standard_normal(5000).astype(np.float32)
    live = torch.from_numpy(averages.copy()).to(device)

    distance = rounding.to_distance(live, torch.from_numpy(weights).to(device))

    expected = nearest(averages - weights, 16, ties_to_even=True)
    assert distance.dtype == torch.bfloat16
    assert same_bits(distance, expected) and same_bits(live, weights + expected)


def test_a_stretch_of_any_length_is_rounded_and_its_neighbours_are_not(
        rounding: Rounding, device: str) -> None:
    for count in (1, 2047, 2049):
        live = torch.full((count + 2,), 1.0000001, device=device)
        rounding.to_24_bits(live[1:-1])
        rounding.to_bfloat16(live[1:-1])
        rounding.to_distance(live[1:-1], torch.zeros(count, device=device))
        ends = torch.full((2,), 1.0000001, device=device)
        assert torch.equal(live[[0, -1]], ends) and bool((live[1:-1] == 1).all())
