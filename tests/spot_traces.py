"""Traces of spot availability, and what runs on them truly cost: a replay of its own, no code of forecasts.

The data lies beside the checkout (shared/data/README.md there): AWS, V100 and K80, 2022 and 2023.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from launcher.policy import Action, Moment, Policy, Setting

DATA = Path(__file__).resolve().parents[2] / "shared/data/spot-availability.jsonl.gz"
_EPOCH = datetime(2023, 2, 1)


@dataclass(frozen=True)
class Window:
    """Some days of one zone.

    Attributes:
        start_h: Hours since some moment that all windows of a source share.
        is_up: One boolean a tick.
    """

    source: str
    zone: str
    start_h: float
    tick_h: float
    is_up: tuple[bool, ...]

    @property
    def end_h(self) -> float:
        return self.start_h + self.tick_h * len(self.is_up)

    def before(self, date_h: float) -> "Window":
        """What of it lies before a date."""
        ticks = max(0, int((date_h - self.start_h) / self.tick_h + 1e-9))
        return Window(self.source, self.zone, self.start_h, self.tick_h, self.is_up[:ticks])


def read_windows(path: Path = DATA) -> Iterator[Window]:
    """All windows of a file; raises as `open` and `json` do."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            tick_h = row["tick_seconds"] / 3600
            # Numbers are ticks: windows of one zone that overlap agree with each other by that.
            start_h = (row["start"] * tick_h if isinstance(row["start"], int) else
                       (datetime.fromisoformat(row["start"]) - _EPOCH).total_seconds() / 3600)
            is_up = [part[-1] == "u" for part in row["up"].split(",") for _ in range(int(part[:-1]))]
            yield Window(row["source"], row["zone"], start_h, tick_h, tuple(is_up))


def by_zone(windows: Sequence[Window]) -> dict[tuple[str, str], list[Window]]:
    """Windows of each zone of each source, by their start."""
    found = defaultdict(list)
    for window in sorted(windows, key=lambda one: (one.source, one.zone, one.start_h)):
        found[window.source, window.zone].append(window)
    return dict(found)


def counted(window: Window) -> tuple[int, float, int, float]:
    """Losses, hours with a machine, returns, hours without one."""
    ups = window.is_up
    losses = sum(now and not then for now, then in zip(ups, ups[1:], strict=False))
    returns = sum(then and not now for now, then in zip(ups, ups[1:], strict=False))
    return losses, sum(ups) * window.tick_h, returns, (len(ups) - sum(ups)) * window.tick_h


@dataclass
class Run:
    """One run on its way through a window."""

    left_h: float
    held: int = Action.WAIT
    place: int = 0
    starting_h: float = 0.0
    usd: float = 0.0
    ended_h: float | None = None

    def act(self, action: int, place: int, now_h: float, setting: Setting) -> None:
        """Hold something for one tick, and pay for what was used of it."""
        moves = action == Action.SPOT and place != self.place
        if action != Action.WAIT and (action != self.held or moves):
            self.starting_h = setting.overhead_h
        self.held, self.place = action, place
        if action == Action.WAIT:
            return
        price = setting.spot_usd_per_hour if action == Action.SPOT else setting.on_demand_usd_per_hour
        used_h = min(setting.tick_h, self.starting_h + self.left_h)
        self.usd += used_h * price
        self.left_h -= max(0.0, used_h - self.starting_h)
        self.starting_h = max(0.0, self.starting_h - used_h)
        if self.left_h < 1e-9:
            self.ended_h = now_h + used_h


def true_costs(policy: Policy, setting: Setting, windows: Sequence[Window]
               ) -> list[tuple[float, float | None]]:
    """Dollars by the deadline, and when it ended, of a run that begins with each window.

    None: not by the deadline.
    """
    return true_costs_among(policy, setting, [(window,) for window in windows])


def true_costs_among(policy: Policy, setting: Setting, groups: Sequence[Sequence[Window]]
                     ) -> list[tuple[float, float | None]]:
    """The same of runs that may be in any of some zones, whose windows begin at one time."""
    runs = [Run(setting.work_h) for _ in groups]
    course = policy.begin(setting, len(runs), len(groups[0]))
    for tick in range(round(setting.deadline_h / setting.tick_h)):
        is_up = np.array([[window.is_up[tick] for window in group] for group in groups])
        for run, ups in zip(runs, is_up, strict=True):
            if run.held == Action.SPOT and not ups[run.place]:
                run.held = Action.WAIT
        course.see(is_up)
        now_h = tick * setting.tick_h
        for run, action, place in zip(runs, *course.choose(_moment(setting, now_h, runs, is_up)),
                                      strict=True):
            if run.ended_h is None:
                run.act(int(action), int(place), now_h, setting)
    return [(run.usd, run.ended_h) for run in runs]


def _moment(setting: Setting, now_h: float, runs: Sequence[Run], is_up: np.ndarray) -> Moment:
    return Moment(
        elapsed_h=now_h, work_left_h=np.array([run.left_h for run in runs]),
        held=np.array([int(run.held) for run in runs]), place=np.array([run.place for run in runs]),
        overhead_left_h=np.array([run.starting_h for run in runs]), is_up=is_up,
        spot_usd_per_hour=np.full(is_up.shape, setting.spot_usd_per_hour), move_usd=np.zeros(is_up.shape))
