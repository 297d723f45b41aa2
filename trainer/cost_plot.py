"""The picture of a run's bill: spending against plan and cap, categories, attempts. No torch.

    python -m trainer.cost_plot FIGURES.json OUT.png

The launcher makes the figures (`launcher/report_png.py`); matplotlib is in this environment only.
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.contract import ConfigError, LdlmError

_USEFUL, _LOST, _OTHER = "#2e8b57", "#c8453b", "#7f8fa6"
_COLOURS = {"useful": _USEFUL, "recomputed": _LOST, "crashed or stopped": _LOST}


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw a bill into a PNG.

    Args:
        figures: `report` as `ldlm cost --json` prints it, `spent` as pairs of a moment and dollars,
            `cap_usd`, `now`, `top_usd` up to which spending is drawn, `labels` of the categories,
            their `total`.
        path: Of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    spending, categories, attempts = figure.subplots(1, 3)
    report = figures["report"]
    _draw_spending(spending, figures)
    _draw_categories(categories, report, figures["labels"])
    _draw_attempts(attempts, report, figures["now"])
    simulated = " (simulated price)" if report["price_is_simulated"] else ""
    figure.suptitle(f"{report['run_id']}: {figures['total']}{simulated}")
    FigureCanvasAgg(figure).print_png(path)


def _draw_spending(axes: Any, figures: dict[str, Any]) -> None:
    times = [datetime.fromisoformat(at) for at, _ in figures["spent"]]
    axes.plot(times, [float(usd) for _, usd in figures["spent"]], color=_USEFUL, label="spent")
    planned, cap = figures["report"]["planned_usd"], figures["cap_usd"]
    if planned:
        low, mid, high = map(float, planned)
        axes.axhspan(low, high, color=_OTHER, alpha=0.2, label="planned, p10 to p90")
        axes.axhline(mid, color=_OTHER, linestyle="--")
    top = float(figures["top_usd"])
    if cap is not None:
        far = f" ${float(cap):,.2f}, above this frame" if float(cap) > top else ""
        axes.axhline(float(cap), color=_LOST, label=f"cap{far}")
    axes.set(title="Dollars over time (UTC)", ylim=(0, top))
    axes.tick_params(axis="x", rotation=30)
    axes.legend(fontsize=8)


def _draw_categories(axes: Any, report: dict[str, Any], labels: Sequence[str]) -> None:
    names = list(report["usd_by_category"])[::-1]
    dollars = [float(report["usd_by_category"][name]) for name in names]
    bars = axes.barh(names, dollars, color=[_COLOURS.get(name, _OTHER) for name in names])
    axes.bar_label(bars, labels=labels[::-1], fontsize=8, padding=2)
    axes.set(title="Where it went")
    axes.margins(x=0.25)


def _draw_attempts(axes: Any, report: dict[str, Any], now: str) -> None:
    from matplotlib.dates import date2num

    for cost in report["attempts"]:
        begins, ends = (date2num(datetime.fromisoformat(at)) for at in (
            cost["began_at"], cost["ended_at"] or now))
        seconds = cost["seconds_by_category"]
        left, total_s = begins, sum(seconds.values()) or 1.0
        for name, part_s in seconds.items():
            width = (ends - begins) * part_s / total_s
            axes.barh(cost["attempt"], width, left=left, color=_COLOURS.get(name, _OTHER))
            left += width
        axes.annotate(cost["end"], (ends, cost["attempt"]), xytext=(3, -3), textcoords="offset points",
                      fontsize=8)
    axes.xaxis_date()
    axes.tick_params(axis="x", rotation=30)
    axes.set(title="Attempts: useful green, lost red", yticks=[one["attempt"] for one in report["attempts"]])
    axes.invert_yaxis()
    axes.margins(x=0.2)


def main(arguments: Sequence[str]) -> int:
    """Read figures, draw. Returns the exit code."""
    source, out = map(Path, arguments)
    try:
        if importlib.util.find_spec("matplotlib") is None:
            raise ConfigError("matplotlib is not installed", place="the trainer's environment",
                              fix="make evaluation-tools (once, about 400 MB); --html needs nothing")
        plot(json.loads(source.read_text(encoding="utf-8")), out)
    except LdlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {out}: cannot be written: {error.strerror}\n"
              "  fix: name a file in a folder that there is, and that is yours", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
