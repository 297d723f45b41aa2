"""Forecasts fitted on traces before a date, beside what runs after it truly cost.

`python tests/calibration_table.py TRACES` prints one line a date and source; then how often a chance that was
told came true: to end by a deadline with spot machines alone, and to stay within a cap. Replayed on AWS, V100
and K80, 2022 and 2023.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from spot_traces import Window, by_zone, counted, read_windows, true_costs, true_costs_among

from launcher.availability import GUESS_LOSS_SPREAD, GUESS_WAIT_SPREAD, Availability, Seen, learned
from launcher.forecast_paths import Elsewhere, Job, Paths, paths_of
from launcher.policies_known import SPOT_ONLY
from launcher.policy import Policy, Setting
from launcher.policy_ours import FORECAST_OURS, OURS

SPOT_USD, ON_DEMAND_USD = 0.97, 3.06
# Hours of work, until the deadline, and of each start.
SETTINGS = ((20, 26, 0.2), (20, 40, 0.2), (20, 21, 0.2), (40, 50, 0.2), (10, 14, 0.2), (20, 26, 0.02))
# Hours since the first of February 2023, and since the beginning of the trace.
DATES = (("multi", 600.0), ("multi", 720.0), ("multi", 864.0), ("single", 96.0), ("single", 120.0),
         ("single", 144.0))
_LEAST_H = 20.0  # of a window before the date, or it says too little
_CENT = 0.01
# What a plan guesses of spot on Azure, before anything was seen there.
_GUESS = Availability(hours_to_loss=10.0, loss_spread=GUESS_LOSS_SPREAD, hours_to_machine=1.0,
                      wait_spread=GUESS_WAIT_SPREAD)


@dataclass(frozen=True)
class Told:
    """What was said of one run, and what came.

    Attributes:
        usd: 10th, 50th and 90th percentile.
        chances: (what was said, whether it came true), of deadlines or caps.
    """

    source: str
    setting: tuple[float, float, float]
    usd: tuple[float, float, float]
    true_usd: float
    chances: tuple[tuple[float, bool], ...]

    @property
    def is_inside(self) -> bool:
        """Between the ends, to the cent."""
        return self.usd[0] - _CENT <= self.true_usd <= self.usd[2] + _CENT


def fitted(windows: Sequence[Window], date_h: float) -> Availability | None:
    """From what windows of one zone show before a date; None: too little."""
    seen = [_seen(part) for window in windows
            if (part := window.before(date_h)).end_h - part.start_h >= _LEAST_H]
    return learned(_GUESS, tuple(seen)) if len(seen) > 1 else None


def _seen(window: Window) -> Seen:
    losses, up_h, returns, down_h = counted(window)
    return Seen(losses=losses, up_h=up_h, returns=returns, down_h=down_h)


def told(windows: Sequence[Window], date_h: float, settings: Sequence[tuple[float, float, float]] = SETTINGS
         ) -> Iterator[Told]:
    """Forecasts for all runs that begin with a window after a date."""
    for (source, _), of_zone in by_zone(windows).items():
        later, belief = [one for one in of_zone if one.start_h >= date_h], fitted(of_zone, date_h)
        if later and belief:
            for each in settings:
                yield from _of_zone(source, belief, later, each)


def _of_zone(source: str, belief: Availability, later: Sequence[Window], each: tuple[float, float, float]
             ) -> Iterator[Told]:
    tick_h = later[0].tick_h
    work_h, deadline_h, overhead_h = each
    deadline_h = round(deadline_h / tick_h) * tick_h
    setting = Setting(work_h, deadline_h, overhead_h, SPOT_USD, ON_DEMAND_USD, tick_h)
    paths, waits = forecast(belief, setting), forecast(belief, setting, on_demand=False)
    usd = usd_of(paths)
    low, mid, high = (float(np.quantile(usd, share)) for share in (0.1, 0.5, 0.9))
    in_time = float((waits.trained_after_h <= setting.deadline_h).mean())
    caps = [(cap, float((usd <= cap).mean())) for cap in
            (work_h * (SPOT_USD + share * (ON_DEMAND_USD - SPOT_USD)) for share in (0.1, 0.3, 0.5, 0.7, 0.9))]
    costs, ends = true_costs(OURS, as_decided(setting), later), true_costs(SPOT_ONLY, setting, later)
    for (true_usd, _), (_, ended_h) in zip(costs, ends, strict=True):
        is_in_time = ended_h is not None and ended_h <= setting.deadline_h + 1e-6
        yield Told(source, each, (low, mid, high), true_usd,
                   ((in_time, is_in_time), *((chance, true_usd <= cap) for cap, chance in caps)))


def told_among(windows: Sequence[Window], date_h: float, setting: Setting, num_zones: int) -> Iterator[Told]:
    """Forecasts for runs that may move after a date: between each zone and those that follow it."""
    zones = [(belief, {one.start_h: one for one in of_zone if one.start_h >= date_h})
             for of_zone in by_zone(windows).values() if (belief := fitted(of_zone, date_h))]
    for first in range(len(zones)):
        taken = [zones[(first + index) % len(zones)] for index in range(num_zones)]
        starts = sorted(set.intersection(*(set(later) for _, later in taken)))
        usd = usd_of(forecast(taken[0][0], setting, elsewhere=[belief for belief, _ in taken[1:]]))
        low, mid, high = (float(np.quantile(usd, share)) for share in (0.1, 0.5, 0.9))
        groups = [[later[start] for _, later in taken] for start in starts]
        for true_usd, _ in true_costs_among(OURS, as_decided(setting), groups):
            yield Told("multi", (setting.work_h, setting.deadline_h, setting.overhead_h), (low, mid, high),
                       true_usd, ())


def as_decided(setting: Setting) -> Setting:
    """With what a course keeps back of its time: one start."""
    kept_h = min(setting.overhead_h, (setting.deadline_h - setting.work_h - setting.overhead_h) / 2)
    ticks = round((setting.deadline_h - max(0.0, kept_h)) / setting.tick_h)
    return replace(setting, deadline_h=ticks * setting.tick_h)


def forecast(belief: Availability, setting: Setting, policy: Policy = FORECAST_OURS, *,
             on_demand: bool = True, elsewhere: Sequence[Availability] = ()) -> Paths:
    """Of a run whose speed is known."""
    ratio = setting.on_demand_usd_per_hour / setting.spot_usd_per_hour
    return paths_of(Job(
        training_h=setting.work_h, speed_factors=(1, 1), beside_h=0.0, first_h=setting.overhead_h,
        again_h=setting.overhead_h, bench_h=0.0, guess_factors=(1, 1), interval_h=0.0, save_h=0.0,
        availability=belief, deadline_h=setting.deadline_h,
        on_demand_price=ratio if on_demand else None,
        elsewhere=tuple(Elsewhere(each, 1.0, is_watched=True) for each in elsewhere)), policy)


def usd_of(paths: Paths) -> np.ndarray:
    """(N,) dollars at the prices of the replay."""
    return np.asarray(paths.held_h * SPOT_USD + paths.on_demand_h * (ON_DEMAND_USD - SPOT_USD))


def coverage(found: Sequence[Told]) -> tuple[float, float, float]:
    """Shares of runs inside the range, below it and above it."""
    inside = sum(one.is_inside for one in found)
    below = sum(one.true_usd < one.usd[0] - _CENT for one in found)
    return inside / len(found), below / len(found), 1 - (inside + below) / len(found)


def reliability(chances: Sequence[tuple[float, bool]], num_bins: int = 5
                ) -> Iterator[tuple[float, float, int]]:
    """By fifths of what was said: its mean, how often it came true, and of how many."""
    for index in range(num_bins):
        of_bin = [(said, came) for said, came in chances
                  if index <= said * num_bins < index + 1 or (said == 1.0 and index == num_bins - 1)]
        if of_bin:
            yield (sum(said for said, _ in of_bin) / len(of_bin),
                   sum(came for _, came in of_bin) / len(of_bin), len(of_bin))


def _print_among(windows: Sequence[Window]) -> None:
    print("\n| three zones, before, h | runs | median told, $ | true mean, $ | inside | below | above |")
    print("|---|---|---|---|---|---|---|")
    tick_h = windows[0].tick_h
    for date_h in (date_h for source, date_h in DATES if source == "multi"):
        found = list(itertools.chain.from_iterable(
            told_among(windows, date_h, Setting(work_h, round(deadline_h / tick_h) * tick_h, overhead_h,
                                                SPOT_USD, ON_DEMAND_USD, tick_h), 3)
            for work_h, deadline_h, overhead_h in SETTINGS))
        inside, below, above = coverage(found)
        median, true_usd = (np.mean(values) for values in
                            zip(*((one.usd[1], one.true_usd) for one in found), strict=True))
        print(f"| {date_h:g} | {len(found)} | {median:.2f} | {true_usd:.2f} | {inside:.1%} | {below:.1%} | "
              f"{above:.1%} |")


def main(path: Path) -> None:
    """Print the tables."""
    windows, everything = list(read_windows(path)), list[Told]()
    print("| source | fitted before, h | runs | inside p10 - p90 | below | above |")
    print("|---|---|---|---|---|---|")
    for source, date_h in DATES:
        found = list(told([one for one in windows if one.source == source], date_h))
        inside, below, above = coverage(found)
        print(f"| {source} | {date_h:g} | {len(found)} | {inside:.1%} | {below:.1%} | {above:.1%} |")
        everything += found
    _print_among([one for one in windows if one.source == "multi"])
    print("\n| work, deadline, start (h) | runs | inside |\n|---|---|---|")
    for setting in SETTINGS:
        of_setting = [one for one in everything if one.setting == setting]
        print(f"| {', '.join(f'{value:g}' for value in setting)} | {len(of_setting)} | "
              f"{coverage(of_setting)[0]:.1%} |")
    for name, which in (("ends by the deadline on spot alone", slice(0, 1)),
                        ("stays within a cap", slice(1, None))):
        print(f"\n| {name}: told | came true | of |\n|---|---|---|")
        said = list(itertools.chain.from_iterable(one.chances[which] for one in everything))
        for mean, came, number in reliability(said):
            print(f"| {mean:.0%} | {came:.0%} | {number} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
