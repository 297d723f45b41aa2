"""The full replay, as tables for recipes/LOG.md: `python -m tests.replay_table FILE.jsonl.gz`.

Held out: regimes are fitted on the earlier half of the windows (by date, of each tick size) and scored on the
later half. The other tables use the regimes of the program, which were fitted on the same windows.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.policies_known import GREEDY, KNOWN, UNIFORM_PROGRESS
from launcher.policy import Policy, Setting
from launcher.policy_ours import OURS, Ours
from launcher.simulate import Saves, score_all
from launcher.traces import Trace, one_by_one, read_traces, stack, together
from tests.fit_regimes import fit

SETTINGS = [Setting(20, deadline_h, overhead_h, 0.97, 3.06)
            for deadline_h, overhead_h in ((26, 0.2), (40, 0.2), (21, 0.2), (26, 0.02))]
DEARER = [Setting(20, 26, 0.2, share * 3.06, 3.06) for share in (0.5, 0.8)]


def halves(traces: Sequence[Trace]) -> tuple[list[Trace], list[Trace]]:
    """Earlier and later windows of each tick size; starts are dates, or numbers that grow with time."""
    earlier, later = [], []
    for tick_s in sorted({trace.tick_s for trace in traces}):
        mine = [trace for trace in traces if trace.tick_s == tick_s]
        when = [(int(trace.start), "") if trace.start.isdigit() else (0, trace.start) for trace in mine]
        middle = sorted(set(when))[len(set(when)) // 2]
        earlier += [trace for trace, start in zip(mine, when, strict=True) if start < middle]
        later += [trace for trace, start in zip(mine, when, strict=True) if start >= middle]
    return earlier, later


def table(title: str, policies: Sequence[Policy], settings: Sequence[Setting],
          groups: Sequence[Sequence[Trace]], **options) -> None:
    """Print rows of one kind of replay."""
    print(f"\n{title}\n\n| work, deadline, start | spot | policy | windows | mean | p95 | ratio | missed |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in settings:
        windows, _ = stack(groups, setting)
        for score in score_all(policies, setting, windows, **options):
            saves = f", saves every {score.checkpoint_minutes:g} min" if score.checkpoint_minutes else ""
            print(f"| {setting.work_h:g} h, {setting.deadline_h:g} h, {setting.overhead_h:g} h | "
                  f"${setting.spot_usd_per_hour:.2f} | {score.policy}{saves} | {score.num_windows} | "
                  f"${score.mean_usd:.2f} | ${score.p95_usd:.2f} | {score.ratio_to_clairvoyant:.3f} | "
                  f"{score.missed} |", flush=True)


def main(path: str) -> None:
    """Print all tables."""
    traces, _ = read_traces(Path(path))
    earlier, later = halves(traces)
    held_out = [GREEDY, UNIFORM_PROGRESS, Ours(fit(earlier))]
    table(f"Held out: fitted on {len(earlier)} earlier windows, scored on {len(later)} later ones", held_out,
          SETTINGS + DEARER, one_by_one(later))
    six = [group for group in together(later) if len(group) == 6]
    table("Held out, six zones open at once", held_out, [*SETTINGS[:3], *DEARER], six, adds_one_place=True)
    table("All windows", [*KNOWN, OURS], SETTINGS, one_by_one(traces))
    saves = [Saves(minutes / 60, 1 / 3600) for minutes in (5, 15, 30, 60)]
    table("All windows, intervals of saving, 1 s of stall each", [OURS], SETTINGS[:1], one_by_one(traces),
          saves=saves)


if __name__ == "__main__":
    main(*sys.argv[1:])
