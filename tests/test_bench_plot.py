"""The picture of a benchmark: a row for each axis that was varied, a line for more than a point."""

from datetime import UTC, datetime

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from matplotlib.axes import Axes  # noqa: E402

from trainer.bench_cases import Case, Model  # noqa: E402
from trainer.bench_device import Device, Software  # noqa: E402
from trainer.bench_floor import Rates  # noqa: E402
from trainer.bench_plot import figure_of  # noqa: E402
from trainer.bench_result import CaseResult, Report  # noqa: E402
from trainer.bench_timing import summary  # noqa: E402


def result(length: int, steps: int, batch: int, share: float = 0.5) -> CaseResult:
    case = Case(model=Model(name="seed", length=length), steps=steps, batch=batch, mode="bf16")
    return CaseResult(case=case, fast=summary([0.5], length * batch),
                      reference=summary([2.0], length * batch), fraction_of_limit=share)


def report_of(*cases: CaseResult) -> Report:
    return Report(
        at=datetime(2026, 11, 29, tzinfo=UTC), source="random weights", seed=0, price_usd_per_hour=None,
        device=Device(name="CPU", is_rtx5090=False, memory_gib=None, before=None, warnings=()),
        software=Software(python="3", torch="2", triton=None, cuda=None, sm=None, built_for=(), git_sha=None),
        rates=Rates(read_bytes_per_s=1, flops_per_s={}, read_how=""), cases=cases)


def drawn(*cases: CaseResult) -> list[Axes]:
    return figure_of(report_of(*cases)).axes


def panels(*cases: CaseResult) -> list[tuple[str, str, dict[str, list[tuple[float, float]]]]]:
    """Of each: names of both axes, and points by the names of their lines."""
    return [(axes.get_xlabel(), axes.get_ylabel(), {
        line.get_label(): [*zip(line.get_xdata(), line.get_ydata(), strict=True)] for line in axes.lines})
        for axes in drawn(*cases)]


def test_lines_of_what_was_varied_and_no_dots_beside_them() -> None:
    found = panels(result(64, 10, 1), result(64, 10, 4), result(64, 2, 1, 0.25))
    assert found == [
        ("batch", "tokens/s", {"seed, 10 steps, 64 tokens, bf16": [(1, 128), (4, 512)],
                               "seed, 10 steps, 64 tokens, float32 reference": [(1, 32), (4, 128)]}),
        ("batch", "% of the limit", {"seed, 10 steps, 64 tokens, bf16": [(1, 50), (4, 50)]}),
        ("denoiser steps", "tokens/s", {"seed, 64 tokens, batch 1, bf16": [(2, 128), (10, 128)],
                                        "seed, 64 tokens, batch 1, float32 reference": [(2, 32), (10, 32)]}),
        ("denoiser steps", "% of the limit", {"seed, 64 tokens, batch 1, bf16": [(2, 25), (10, 50)]})]


def test_one_case_is_a_point() -> None:
    (_, _, speeds), (_, _, shares) = panels(result(64, 10, 1, 1.43))
    assert speeds["seed, 10 steps, 64 tokens, bf16"] == [(1, 128)]
    assert shares == {"seed, 10 steps, 64 tokens, bf16": [(1, pytest.approx(143))]}


def test_what_is_above_the_limit_is_on_the_picture() -> None:
    assert drawn(result(64, 10, 1, 1.43))[1].get_ylim()[1] > 143
