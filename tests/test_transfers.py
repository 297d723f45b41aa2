"""What is said while large files move, and when they have."""

import pytest

from trainer.transfers import Progress, size_words


@pytest.mark.parametrize(("num_bytes", "shown"), [
    (0, "0.0 MiB"), (220_554_752, "210.3 MiB"), (2**30 - 1, "1024.0 MiB"), (2**30, "1.0 GiB"),
    (65 * 10**9, "60.5 GiB"),
])
def test_sizes_are_in_the_unit_that_shows_them(num_bytes, shown):
    assert size_words(num_bytes) == shown


@pytest.mark.parametrize(("total_bytes", "begins", "rate"), [
    (200 * 2**20, "weights: 50.0 of 200.0 MiB, ", " MiB/s, "),
    (80 * 2**30, "weights: 20.0 of 80.0 GiB, ", " GiB/s, "),
])
def test_progress_of_a_small_model_is_in_mib(total_bytes, begins, rate):
    progress = Progress("weights", total_bytes, say=lambda line: None)
    progress.add(total_bytes // 4)
    assert progress.line().startswith(begins)
    assert rate in progress.line()
    assert progress.line().endswith(" s left")
