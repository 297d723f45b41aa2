"""How a simulation reads."""

from collections.abc import Sequence

from launcher import console
from launcher.simulate import Score


def show_scores(scores: Sequence[Score], notes: Sequence[str]) -> None:
    """A table per setting, and what was left out."""
    for setting in dict.fromkeys(score.setting for score in scores):
        console.answer(f"{setting.work_h:g} h of work in {setting.deadline_h:g} h, each start "
                       f"{setting.overhead_h:g} h; ${setting.spot_usd_per_hour:.2f}/h spot, "
                       f"${setting.on_demand_usd_per_hour:.2f}/h on demand", "title")
        console.answer()
        rows = [_row(score) for score in scores if score.setting == setting]
        console.answer_table(["policy", "mean", "p95", "of the clairvoyant", "missed", "windows"], rows,
                             right=(1, 2, 3, 4, 5))
        console.answer()
    console.answer_notes(notes)
    console.answer(_last_line(scores))


def _row(score: Score) -> list[str]:
    name = score.policy
    if score.checkpoint_minutes is not None:
        name += f", saves every {score.checkpoint_minutes:g} min"
    return [name, f"${score.mean_usd:.2f}", f"${score.p95_usd:.2f}",
            f"{score.ratio_to_clairvoyant:.3f}", str(score.missed), str(score.num_windows)]


def _last_line(scores: Sequence[Score]) -> str:
    """The cheapest policy that was always in time."""
    safe = [score for score in scores if not score.missed and score.policy != "clairvoyant"]
    if not safe:
        return "no policy was in time in every window"
    best = min(safe, key=lambda score: score.mean_usd)
    return f"cheapest without a missed deadline: {best.policy}, ${best.mean_usd:.2f} on average (replayed)"
