"""Counted noise: Philox against its published numbers, and that what comes of it is normal."""

import math

import pytest

torch = pytest.importorskip("torch")

from trainer.fast.noise import normals, philox, sample_keys  # noqa: E402

# Known answers of philox4x32-10 that its authors publish with Random123: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1")]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_words_are_those_that_the_authors_publish(counter, key, words) -> None:
    tensors = [[torch.tensor([word]) for word in _words(text)] for text in (counter, key)]
    assert [int(word) for word in philox(*map(tuple, tensors))] == _words(words)


def test_counters_and_keys_broadcast_to_the_words_of_each_pair() -> None:
    counters, keys = torch.arange(5)[None], torch.tensor([[3], [2**32 - 1]])
    zeros = torch.zeros_like(counters)
    together = torch.stack(philox((counters, zeros, zeros, zeros), (keys, keys)))
    for row, key in enumerate(keys):
        for column in range(5):
            alone = philox((torch.tensor([column]), *[torch.tensor([0])] * 3), (key, key))
            assert torch.equal(together[:, row, column], torch.cat(alone))


def test_numbers_are_normal_by_their_moments_and_their_cumulative_shares() -> None:
    sorted_N = normals(sample_keys(0, range(4), "cpu"), 0, (500, 200)).flatten().double().sort().values
    num = len(sorted_N)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / num)  # at most, of the mean of the power
        assert abs(float((sorted_N**power).mean()) - moment) < 4 * spread
    shares = torch.special.ndtr(sorted_N) - (torch.arange(num) + 0.5) / num
    assert shares.abs().max() < 1.95 / math.sqrt(num)  # Kolmogorov and Smirnov: 0.001 by chance


def test_numbers_of_samples_draws_and_places_have_nothing_to_do_with_each_other() -> None:
    keys = sample_keys(7, range(3), "cpu")
    draws = torch.stack([normals(keys, draw, (20_000,)) for draw in (0, 1, 2)])
    rows = draws.flatten(0, 1).double()
    lagged = torch.cat([rows, rows.roll(1, 1), rows.roll(2, 1)])
    for powers in (lagged, lagged**2):
        apart = torch.corrcoef(powers) - torch.eye(len(lagged))
        assert apart.abs().max() < 4.5 / math.sqrt(rows.shape[1])


def test_a_draw_may_be_a_number_on_the_device_and_a_shape_need_not_divide_by_four() -> None:
    keys = sample_keys(1, [5], "cpu")
    assert torch.equal(normals(keys, 3, (5, 2)), normals(keys, torch.tensor(3), (5, 2)))
    assert torch.equal(normals(keys, 3, (5, 2)).flatten(), normals(keys, 3, (12,))[0, :10])


def test_keys_are_two_words_of_each_seed_and_index() -> None:
    keys = torch.cat([sample_keys(seed, range(100), "cpu") for seed in (0, 1, 2**40)])
    assert keys.shape == (300, 2) and keys.dtype == torch.int64
    assert len(keys.unique(dim=0)) == 300
    assert keys.min() >= 0 and keys.max() < 2**32 and keys.max() > 2**31


def test_numbers_of_a_seed_are_the_same_on_every_machine() -> None:
    """Digits worked out by hand from the words: 5 of float32's 7, as logarithm and cosine round."""
    from hashlib import blake2b

    key = blake2b(repr(("sample", 0, 0)).encode(), digest_size=8).digest()
    words = philox(*(tuple(torch.tensor([word]) for word in part) for part in (
        (1, 0, 2, 0), (int.from_bytes(key[:4], "big"), int.from_bytes(key[4:], "big")))))
    first, second = (int(word) for word in words[2:])
    radius = math.sqrt(-2 * math.log((first + 0.5) / 2**32))
    expected = [radius * turn(2 * math.pi * second / 2**32) for turn in (math.cos, math.sin)]
    found = normals(sample_keys(0, [0], "cpu"), 2, (8,))[0, 6:].tolist()
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
