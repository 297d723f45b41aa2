"""The picture of a benchmark: speed and share of the limit against batch and length."""

import importlib.util
from pathlib import Path
from typing import Any

from trainer.bench_result import CaseResult, Report
from trainer.contract import ConfigError


def require_plots() -> None:
    """Raises ConfigError where there is nothing to draw with: before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed", place="--plot",
                          fix="make evaluation-tools, or leave --plot out")


def plot(report: Report, path: Path) -> None:
    """Draw it into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    for row, (axis, name) in enumerate((("batch", "batch"), ("length", "tokens of a text"))):
        _draw(panels[row][0], report, axis, name, share=False)
        _draw(panels[row][1], report, axis, name, share=True)
    figure.suptitle(f"{report.device.name}, {report.source}, torch {report.software.torch}")
    FigureCanvasAgg(figure).print_png(path)


def _draw(axes: Any, report: Report, axis: str, name: str, *, share: bool) -> None:
    """One line for each model, number of steps and mode, and whatever is not on the axis."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in report.cases:
        if result.fast is None or result.fraction_of_limit is None:
            continue
        y = 100 * result.fraction_of_limit if share else result.fast.tokens_per_s
        lines.setdefault(_label(result, axis), []).append((_x(result, axis), y))
        if not share and result.reference is not None:
            lines.setdefault(_label(result, axis, "float32 reference"), []).append(
                (_x(result, axis), result.reference.tokens_per_s))
    for label, points in lines.items():
        points.sort()
        style = "x:" if "reference" in label else "o-"
        axes.plot([x for x, _ in points], [y for _, y in points], style, label=label)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [str(x) for x in ticks])
    axes.set(xlabel=name, ylabel="% of the limit" if share else "tokens/s")
    if share:
        axes.set_ylim(0, max([105, *(1.05 * y for points in lines.values() for _, y in points)]))
    else:
        axes.set_yscale("log")
    if lines:
        axes.legend(fontsize=7)


def _x(result: CaseResult, axis: str) -> int:
    return result.case.batch if axis == "batch" else result.case.model.length


def _label(result: CaseResult, axis: str, path: str | None = None) -> str:
    case = result.case
    other = f"{case.model.length} tokens" if axis == "batch" else f"batch {case.batch}"
    return f"{case.model.name}, {case.steps} steps, {other}, {path or case.mode}"
