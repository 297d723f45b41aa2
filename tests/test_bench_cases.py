"""Which cases a command line asks for."""

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_cases import Grid  # noqa: E402


def sizes(grid, *lengths):
    return [(case.model.length, case.steps, case.batch, case.mode) for case in grid.cases("smoke", lengths)]


def test_every_combination_of_what_is_typed_those_of_one_length_together():
    grid = Grid(steps=(10, 4), batches=(1, 64), modes=("bf16",))
    assert sizes(grid, 128, 64) == [
        (64, 10, 1, "bf16"), (64, 10, 64, "bf16"), (64, 4, 1, "bf16"), (64, 4, 64, "bf16"),
        (128, 10, 1, "bf16"), (128, 10, 64, "bf16"), (128, 4, 1, "bf16"), (128, 4, 64, "bf16")]


def test_a_sweep_varies_one_axis_around_the_first_values_and_repeats_nothing():
    grid = Grid(steps=(10,), batches=(1,), modes=("bf16",), sweeps=("steps", "batch"))
    assert sizes(grid, 64) == [
        (64, 10, 1, "bf16"), (64, 1, 1, "bf16"), (64, 2, 1, "bf16"), (64, 4, 1, "bf16"), (64, 50, 1, "bf16"),
        (64, 10, 2, "bf16"), (64, 10, 4, "bf16"), (64, 10, 8, "bf16"), (64, 10, 16, "bf16"),
        (64, 10, 32, "bf16"), (64, 10, 64, "bf16"), (64, 10, 128, "bf16"), (64, 10, 256, "bf16")]


def test_modes_of_one_size_stand_beside_each_other():
    grid = Grid(steps=(10,), batches=(1, 2), modes=("fp32", "bf16"))
    assert sizes(grid, 64) == [(64, 10, 1, "fp32"), (64, 10, 1, "bf16"), (64, 10, 2, "fp32"),
                               (64, 10, 2, "bf16")]
    assert str(grid.cases("smoke", [64])[1]) == "smoke, 10 steps, 64 tokens, batch 1, bf16"
