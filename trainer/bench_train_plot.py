"""The picture of a benchmark of training: where each case's step goes, beside its floor and its reference."""

import itertools
from pathlib import Path
from typing import Any

from trainer.bench_train_result import TrainCaseResult, TrainReport

_LEAST_NAMED = 0.04  # of the longest bar: a name needs room


def plot(report: TrainReport, path: Path) -> None:
    """Draw it into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure_of(report)).print_png(path)


def figure_of(report: TrainReport) -> Any:
    """Milliseconds of a step for each case that was timed: floor, parts, and the reference as a whole."""
    from matplotlib.figure import Figure

    timed = [result for result in report.cases if result.fast]
    figure = Figure(figsize=(12, 1 + 2.4 * max(1, len(timed))), layout="constrained")
    rows = figure.subplots(max(1, len(timed)), 1, squeeze=False)[:, 0]
    for axes, result in zip(rows, timed, strict=False):
        _draw(axes, result)
    figure.suptitle(f"{report.device.name}, random weights, torch {report.software.torch}")
    return figure


def _draw(axes: Any, result: TrainCaseResult) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    bars = _bars(result)
    parts_of_all = dict.fromkeys(itertools.chain(*bars.values()))
    colours = dict(zip(parts_of_all, colormaps["tab20"].colors, strict=False))
    longest = max(sum(parts.values()) for parts in bars.values())
    for label, parts in bars.items():
        begin = 0.0
        for part, seconds in parts.items():
            drawn = axes.barh(label, 1e3 * seconds, left=1e3 * begin, label=f"_{label} {part}",
                              color=colours[part], edgecolor="white")
            if seconds > _LEAST_NAMED * longest:
                axes.bar_label(drawn, [part.replace("_", "\n")], label_type="center", fontsize=6)
            begin += seconds
    named = [Patch(color=colour, label=part.replace("_", " ")) for part, colour in colours.items()]
    axes.legend(handles=named, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.invert_yaxis()
    axes.set(xlabel="ms of a step")
    axes.set_title(f"{result.case}: {_speed(result)}", fontsize=9)


def _speed(result: TrainCaseResult) -> str:
    assert result.fast is not None
    share = result.share_of_matrix_rate or 0
    each = " of each rank" if result.case.ranks_are_real else ""
    return f"{result.fast.tokens_per_s:,.0f} tokens/s{each}, {share:.0%} of the matrix rate"


def _bars(result: TrainCaseResult) -> dict[str, dict[str, float]]:
    """Seconds by bar, each made of parts."""
    assert result.fast is not None
    bars = {"floor": {part: work.floor_s for part, work in (result.work or {}).items()},
            "measured": result.parts_s or {"encoder": result.fast.seconds_median}}
    if result.reference:
        bars["reference"] = {"in all": result.reference.seconds_median}
    return bars
