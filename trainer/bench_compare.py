"""A benchmark beside an earlier one: what is slower or faster than the noise of both. Pure."""

from typing import NamedTuple

from trainer.bench_result import CaseResult, Report


class Change(NamedTuple):
    """One case in both results.

    Attributes:
        ratio: Median speed now by the one before.
        kind: `slower` or `faster` where p10 to p90 of the two do not touch; else `same`.
    """

    case: str
    ratio: float
    kind: str


class Comparison(NamedTuple):
    """All cases that both have measured.

    Attributes:
        why_not: Why the two say nothing about each other; empty: they do.
        missing: Cases of the earlier result that this one has not measured.
    """

    why_not: str
    changes: tuple[Change, ...]
    missing: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        """Cases that have become slower."""
        return [change for change in self.changes if change.kind == "slower"]


def compare(now: Report, before: Report) -> Comparison:
    """Compare medians case by case; only a difference outside the band of both counts."""
    if now.device.name != before.device.name:
        return Comparison(f"measured on {before.device.name}, this is {now.device.name}", (), ())
    measured = {str(result.case): result for result in now.cases if result.fast}
    earlier = {str(result.case): result for result in before.cases if result.fast}
    changes = tuple(_change(name, measured[name], earlier[name]) for name in earlier if name in measured)
    why_not = "" if changes else "no case is in both"
    return Comparison(why_not, changes, tuple(name for name in earlier if name not in measured))


def _change(name: str, now: CaseResult, before: CaseResult) -> Change:
    assert now.fast is not None and before.fast is not None
    kind = "same"
    if now.fast.seconds_p10 > before.fast.seconds_p90:
        kind = "slower"
    elif now.fast.seconds_p90 < before.fast.seconds_p10:
        kind = "faster"
    return Change(name, before.fast.seconds_median / now.fast.seconds_median, kind)


def in_words(comparison: Comparison) -> list[str]:
    """Lines for the screen: regressions first, then what is faster, then what is missing."""
    if comparison.why_not:
        return [f"cannot be compared with the earlier result: {comparison.why_not}"]
    slower = [f"SLOWER: {change.case}: {change.ratio:.2f} times as fast as before"
              for change in comparison.regressions]
    faster = [f"faster: {change.case}: {change.ratio:.2f} times as fast as before"
              for change in comparison.changes if change.kind == "faster"]
    same = sum(change.kind == "same" for change in comparison.changes)
    missing = [f"not measured this time: {name}" for name in comparison.missing]
    return [*slower, *faster,
            f"as fast as before, within p10 to p90: {same} of {len(comparison.changes)} cases", *missing]
