"""A benchmark beside an earlier one: what is slower or faster than the noise of both. Pure."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from trainer.bench_device import Device
from trainer.bench_output import Found
from trainer.bench_table import folded
from trainer.bench_timing import Spread

# Less says nothing: two runs with the same kernels lay 3.3 % apart, each within 2 % of itself
# (recipes/measured).
_LEAST_CHANGE = 0.05


class Result(Protocol):
    """A whole benchmark, of generation or of training."""

    @property
    def device(self) -> Device: ...

    @property
    def cases(self) -> Sequence[Found]: ...


class Change(NamedTuple):
    """One case in both results.

    Attributes:
        ratio: Median speed now by the one before.
        kind: `same` where each median lies within p10 to p90 of the other, or they are less than 5 % apart;
            else `slower` or `faster`.
    """

    case: str
    ratio: float
    kind: str


class Comparison(NamedTuple):
    """All cases that both have measured.

    Attributes:
        why_not: Why the two say nothing about each other; empty: they do.
        lost: Cases that were measured then, were asked for now, and could not be measured; with the reason.
        missing: Other cases of the earlier result that this one has not measured.
    """

    why_not: str
    changes: tuple[Change, ...] = ()
    lost: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def slower(self) -> list[Change]:
        """Cases that have become slower."""
        return [change for change in self.changes if change.kind == "slower"]

    @property
    def is_good(self) -> bool:
        """True where something could be compared, and nothing is slower or lost."""
        return not (self.why_not or self.slower or self.lost)


def compare(now: Result, before: Result) -> Comparison:
    """Compare medians case by case; a difference that the noise of both explains does not count.

    Were it enough that the two bands touch, a noisy result would hide anything: generations of which four in
    five have become twice as slow would be as fast as before.
    """
    if now.device.name != before.device.name:
        return Comparison(f"measured on {before.device.name}, this is {now.device.name}")
    asked = {str(result.case): result for result in now.cases}
    earlier = {str(result.case): result for result in before.cases if result.fast}
    changes = tuple(_change(name, asked[name], earlier[name]) for name in earlier
                    if name in asked and asked[name].fast)
    lost = tuple(f"{name}: {asked[name].left_out}" for name in earlier
                 if name in asked and not asked[name].fast)
    why_not = "" if changes or lost else _nothing_in_both(asked, earlier)
    return Comparison(why_not, changes, lost, tuple(name for name in earlier if name not in asked))


def _nothing_in_both(now: Collection[str], before: Collection[str]) -> str:
    """With a case of each: it may be a folder's name alone that differs."""
    here, there = (next(iter(cases), "nothing") for cases in (now, before))
    return f"no case is in both: here {here}; there {there}"


def _change(name: str, now: Found, before: Found) -> Change:
    assert now.fast is not None and before.fast is not None
    ratio = before.fast.seconds_median / now.fast.seconds_median
    is_noise = _holds(now.fast, before.fast) and _holds(before.fast, now.fast)
    if is_noise or max(ratio, 1 / ratio) <= 1 + _LEAST_CHANGE:
        return Change(name, ratio, "same")
    return Change(name, ratio, "slower" if ratio < 1 else "faster")


def _holds(band: Spread, other: Spread) -> bool:
    return band.seconds_p10 <= other.seconds_median <= band.seconds_p90


def in_words(comparison: Comparison) -> list[str]:
    """Lines for the screen: regressions first, then what is faster, then what is missing."""
    if comparison.why_not:
        return folded(f"cannot be compared with the earlier result: {comparison.why_not}")
    slower = [f"SLOWER: {change.case}: {change.ratio:.2f} times as fast as before"
              for change in comparison.slower]
    lost = [f"LOST: {words}" for words in comparison.lost]
    faster = [f"faster: {change.case}: {change.ratio:.2f} times as fast as before"
              for change in comparison.changes if change.kind == "faster"]
    changes = comparison.changes
    same = sum(change.kind == "same" for change in changes)
    missing = [f"not measured this time: {name}" for name in comparison.missing]
    band = f"within p10 to p90 or {_LEAST_CHANGE:.0%}"
    same_as_before = f"as fast as before, {band}: {same} of {len(changes)} cases"
    return [line for words in (*slower, *lost, *faster, same_as_before, *missing) for line in folded(words)]
