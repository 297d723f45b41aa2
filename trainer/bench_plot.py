"""The picture of a benchmark: speed and share of the limit against whatever was varied."""

import importlib.util
from pathlib import Path
from typing import Any

from trainer.bench_result import CaseResult, Report
from trainer.contract import ConfigError

_AXES = {"batch": "batch", "length": "tokens of a text", "steps": "denoiser steps"}
_REFERENCE = "float32 reference"


def require_plots(option: str | None = "--plot") -> None:
    """Raises ConfigError where there is nothing to draw with: before anything is measured.

    Args:
        option: That asks for it, and may be left out; None: nothing else is wanted.
    """
    if importlib.util.find_spec("matplotlib") is None:
        instead = "" if option is None else f", or leave {option} out"
        raise ConfigError("matplotlib is not installed", place=option,
                          fix=f"make evaluation-tools{instead}")


def plot(report: Report, path: Path) -> None:
    """Draw it into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure_of(report)).print_png(path)


def figure_of(report: Report) -> Any:
    """A row for each axis along which cases differ: speed, and share of the limit."""
    from matplotlib.figure import Figure

    varied = [axis for axis in _AXES if len({_x(result, axis) for result in report.cases if result.fast}) > 1]
    rows = varied or ["batch"]
    figure = Figure(figsize=(14, 4 * len(rows)), layout="constrained")
    for (left, right), axis in zip(figure.subplots(len(rows), 2, squeeze=False), rows, strict=True):
        speeds, shares = (_lines(report, axis, share=share) for share in (False, True))
        colours = {label: f"C{number}" for number, label in enumerate(speeds)}
        _draw(left, axis, speeds, colours, "tokens/s")
        _draw(right, axis, shares, colours, "% of the limit")
        left.set_yscale("log")
        right.set_ylim(0, max([105, *(1.05 * y for points in shares.values() for _, y in points)]))
        if speeds:
            right.legend(*left.get_legend_handles_labels(), fontsize=7, loc="upper left",
                         bbox_to_anchor=(1.01, 1.0))
    figure.suptitle(f"{report.device.name}, {report.source}, torch {report.software.torch}")
    return figure


def _draw(axes: Any, axis: str, lines: dict[str, list[tuple[int, float]]], colours: dict[str, str],
          y: str) -> None:
    for label, points in lines.items():
        style = "x:" if label.endswith(_REFERENCE) else "o-"
        axes.plot([x for x, _ in points], [y for _, y in points], style, label=label, color=colours[label])
    axes.set_xscale("log", base=2)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set(xlabel=_AXES[axis], ylabel=y)


def _lines(report: Report, axis: str, *, share: bool) -> dict[str, list[tuple[int, float]]]:
    """One for each model, mode, and whatever is not on the axis; none of one point beside longer ones."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in report.cases:
        if result.fast is None or result.fraction_of_limit is None:
            continue
        y = 100 * result.fraction_of_limit if share else result.fast.tokens_per_s
        lines.setdefault(_label(result, axis), []).append((_x(result, axis), y))
        if not share and result.reference is not None:
            lines.setdefault(_label(result, axis, _REFERENCE), []).append(
                (_x(result, axis), result.reference.tokens_per_s))
    longer = {label: sorted(set(points)) for label, points in lines.items() if len(set(points)) > 1}
    return longer or lines


def _x(result: CaseResult, axis: str) -> int:
    case = result.case
    return {"batch": case.batch, "length": case.model.length, "steps": case.steps}[axis]


def _label(result: CaseResult, axis: str, path: str | None = None) -> str:
    case = result.case
    sizes = {"steps": f"{case.steps} steps", "length": f"{case.model.length} tokens",
             "batch": f"batch {case.batch}"}
    return ", ".join([case.model.name, *(words for name, words in sizes.items() if name != axis),
                      path or case.mode])
