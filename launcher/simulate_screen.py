"""How a simulation reads."""

from collections.abc import Sequence

from launcher import console
from launcher.price_history import Period
from launcher.simulate import CLAIRVOYANT, Score

_MOST_PERIODS = 3  # of one price that a caption names


def show_scores(scores: Sequence[Score], notes: Sequence[str]) -> None:
    """A table per setting, and what was left out."""
    for setting, periods in {score.setting: score.periods for score in scores}.items():
        held = f", prices of {_periods(periods)}" if periods else ""
        console.answer_text(f"{setting.work_h:g} h of work in {setting.deadline_h:g} h, each start "
                            f"{setting.overhead_h:g} h; ${setting.spot_usd_per_hour:.2f}/h spot, "
                            f"${setting.on_demand_usd_per_hour:.2f}/h on demand{held}", "title")
        console.answer()
        rows = [_row(score) for score in scores if score.setting == setting]
        console.answer_table(["policy", "mean", "p95", "of the clairvoyant", "missed", "windows"], rows,
                             right=(1, 2, 3, 4, 5))
        console.answer()
    console.answer_notes(notes)
    console.answer_text(_last_line(scores))


def _periods(periods: Sequence[Period]) -> str:
    """The first of them, and how many more there are."""
    told, num_more = ", ".join(one.words for one in periods[:_MOST_PERIODS]), len(periods[_MOST_PERIODS:])
    return told + (f" and {num_more} more period{'s' if num_more > 1 else ''}" if num_more else "")


def _row(score: Score) -> list[str]:
    return [_name(score), f"${score.mean_usd:.2f}", f"${score.p95_usd:.2f}",
            f"{score.ratio_to_clairvoyant:.3f}", str(score.missed), str(score.num_windows)]


def _name(score: Score) -> str:
    if score.checkpoint_minutes is None:
        return score.policy
    return f"{score.policy}, saves every {score.checkpoint_minutes:g} min"


def _last_line(scores: Sequence[Score]) -> str:
    """The policy that was always in time and cheapest over the windows of all prices together."""
    by_name: dict[str, list[Score]] = {}
    for score in scores:
        by_name.setdefault(_name(score), []).append(score)
    safe = {name: _mean_usd(same) for name, same in by_name.items()
            if name != CLAIRVOYANT and not any(score.missed for score in same)}
    num_prices = len({score.setting for score in scores})
    average = f"on average{f' over {num_prices} prices' if num_prices > 1 else ''} (replayed)"
    if list(by_name) == [CLAIRVOYANT]:
        return f"a clairvoyant would have paid ${_mean_usd(scores):.2f} {average}"
    if not safe:
        return "no policy was in time in every window"
    best = min(safe, key=safe.__getitem__)
    return f"cheapest without a missed deadline: {best}, ${safe[best]:.2f} {average}"


def _mean_usd(scores: Sequence[Score]) -> float:
    """Of a window."""
    return sum(score.mean_usd * score.num_windows for score in scores) / sum(
        score.num_windows for score in scores)
