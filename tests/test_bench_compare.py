"""Two results beside each other: only what lies outside the noise of both counts."""

from datetime import UTC, datetime

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_cases import Case, Model  # noqa: E402
from trainer.bench_compare import compare, in_words  # noqa: E402
from trainer.bench_device import Device, Software  # noqa: E402
from trainer.bench_floor import Rates  # noqa: E402
from trainer.bench_result import CaseResult, Report  # noqa: E402
from trainer.bench_timing import Timed, summary  # noqa: E402


def result(steps: int, p10: float, median: float, p90: float) -> CaseResult:
    case = Case(model=Model(name="seed-27b", length=64), steps=steps, batch=1, mode="bf16")
    return CaseResult(case=case, fast=Timed(num_generations=50, seconds_p10=p10, seconds_median=median,
                                            seconds_p90=p90, tokens_per_s=64 / median))


def report(*results: CaseResult, device: str = "NVIDIA H200") -> Report:
    return Report(
        at=datetime(2026, 11, 29, tzinfo=UTC), source="random weights", seed=0,
        device=Device(name=device, is_rtx5090=False, memory_gib=140, before=None, warnings=()),
        software=Software(python="3.12", torch="2.11", triton=None, cuda="13.0", sm="sm_90",
                          built_for=("sm_90",), git_sha=None),
        rates=Rates(read_bytes_per_s=4e12, flops_per_s={"bf16": 8e14}, read_how=""),
        price_usd_per_hour=None, cases=results)


def test_medians_within_the_bands_of_both_are_the_same_and_others_are_not():
    before = report(result(1, 1.0, 1.1, 1.3), result(2, 1.0, 1.1, 1.2), result(4, 1.0, 1.1, 1.2),
                    result(50, 1.0, 1.1, 1.2))
    now = report(result(1, 1.1, 1.3, 1.4), result(2, 1.21, 1.375, 1.5), result(4, 0.8, 0.88, 0.99))
    assert not compare(now, before).is_good
    found = compare(now, before)
    assert [(change.kind, round(change.ratio, 3)) for change in found.changes] == [
        ("same", 0.846), ("slower", 0.8), ("faster", 1.25)]
    assert in_words(found) == [
        "SLOWER: seed-27b, 2 steps, 64 tokens, batch 1, bf16: 0.80 times as fast as", "  before",
        "faster: seed-27b, 4 steps, 64 tokens, batch 1, bf16: 1.25 times as fast as", "  before",
        "as fast as before, within p10 to p90 or 5%: 1 of 3 cases",
        "not measured this time: seed-27b, 50 steps, 64 tokens, batch 1, bf16"]


@pytest.mark.parametrize(("quick", "slow"), [
    ((0.99, 1.0, 1.01), (1.0, 2.0, 2.1)),  # four in five generations of now have become twice as slow
    ((1.0, 1.0, 2.0), (1.9, 1.9, 1.9)),  # somebody disturbed the earlier ones now and then
    ((1.0, 1.1, 1.2), (1.2, 1.3, 1.4))])  # bands touch, medians lie in neither's
def test_noise_of_one_result_hides_no_difference(quick: tuple[float, ...], slow: tuple[float, ...]):
    for now, before, kind in ((slow, quick, "slower"), (quick, slow, "faster")):
        assert [change.kind for change in compare(report(result(1, *now)), report(result(1, *before))).changes
                ] == [kind]


def test_another_device_says_nothing():
    found = compare(report(result(1, 1, 1, 1)), report(result(1, 1, 1, 1), device="NVIDIA H100"))
    assert in_words(found) == [
        "cannot be compared with the earlier result: measured on NVIDIA H100, this is",
        "  NVIDIA H200"]


def test_no_case_in_common_says_nothing():
    found = compare(report(result(1, 1, 1, 1)), report(result(2, 1, 1, 1)))
    assert not found.is_good and found.why_not == (
        "no case is in both: here seed-27b, 1 steps, 64 tokens, batch 1, bf16; "
        "there seed-27b, 2 steps, 64 tokens, batch 1, bf16")
    assert compare(report(result(1, 1, 1, 1)), report()).why_not.endswith("; there nothing")


def test_runs_of_the_same_code_that_are_further_apart_than_each_is_from_itself_are_the_same():
    """Seconds of two runs of an afternoon on one H200, 3.3 % apart: recipes/measured."""
    one, other = report(result(10, 2.469, 2.473, 2.507)), report(result(10, 2.546, 2.555, 2.580))
    for now, before in ((one, other), (other, one)):
        assert [change.kind for change in compare(now, before).changes] == ["same"]
        assert compare(now, before).is_good
    faster = report(result(10, 2.40, 2.42, 2.45))
    assert [change.kind for change in compare(other, faster).changes] == ["slower"]


def test_a_case_that_can_no_longer_be_measured_is_lost_and_one_that_was_not_asked_for_is_missing():
    before = report(result(1, 1, 1, 1), result(2, 1, 1, 1), result(4, 1, 1, 1))
    without = CaseResult(case=result(2, 1, 1, 1).case, left_out="does not fit into memory")
    found = compare(report(result(1, 1, 1, 1), without), before)
    assert not found.is_good
    assert in_words(found) == [
        "LOST: seed-27b, 2 steps, 64 tokens, batch 1, bf16: does not fit into memory",
        "as fast as before, within p10 to p90 or 5%: 1 of 1 cases",
        "not measured this time: seed-27b, 4 steps, 64 tokens, batch 1, bf16"]
    assert not compare(report(without), before).why_not


def test_percentiles_of_ten_seconds_by_hand():
    """0 to 10 s evenly: the inclusive p10 is 1 s, p90 9 s; 100 tokens in the median of 5 s."""
    assert summary([float(second) for second in range(11)], 100) == Timed(
        num_generations=11, seconds_p10=1, seconds_median=5, seconds_p90=9, tokens_per_s=20)
    assert summary([2.0], 64) == Timed(num_generations=1, seconds_p10=2, seconds_median=2, seconds_p90=2,
                                       tokens_per_s=32)
