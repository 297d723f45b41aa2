"""The picture of an evaluation: perplexity over entropy and over speed, reconstruction, speed."""

import statistics
from pathlib import Path
from typing import Any

from trainer.measure_screen import batches_of
from trainer.quality import MAUVE_FEW_TEXTS, Judge


def plot(result: dict[str, Any], judge: Judge, path: Path) -> None:
    """Draw what `trainer.measure` found into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.4), layout="constrained")
    (entropies, qualities), (panel, speeds) = figure.subplots(2, 2)
    _draw_frontier(entropies, result, judge)
    _draw_speed_at_quality(qualities, result, judge)
    _draw_panel(panel, result)
    _draw_speed(speeds, result)
    figure.suptitle(f"{result['source']}, step {result['step']:,}, {result['device']}{_mauve(result, judge)}")
    FigureCanvasAgg(figure).print_png(path)


def _mauve(result: dict[str, Any], judge: Judge) -> str:
    """The best MAUVE and of how many texts, for the title; nothing if there were too few for any."""
    key, num = judge.key("mauve"), result["reference"].get("num_texts", 0)
    found = [point[key] for point in result["frontier"] if point.get(key) is not None]
    few = ": says little" if num < MAUVE_FEW_TEXTS else ""
    return f"; {key} up to {max(found):.2f} of {num:,} texts{few}" if found else ""


def _draw_frontier(axes: Any, result: dict[str, Any], judge: Judge) -> None:
    x, y = judge.key("entropy"), judge.key("generative_perplexity")
    points = [point for point in result["frontier"] if point[y] is not None]
    for temperature in sorted({point["setting"]["temperature"] for point in points}):
        line = [point for point in points if point["setting"]["temperature"] == temperature]
        axes.plot([point[x] for point in line], [point[y] for point in line], "o-",
                  label=f"temperature {temperature:g}")
        for point in line:
            axes.annotate(f"{point['setting']['steps']}", (point[x], point[y]), xytext=(4, 4),
                          textcoords="offset points", fontsize=8)
    for name, marker, beside in (("held-out text", "k*", result["reference"]),
                                 ("autoregressive", "rD", result.get("autoregressive", {}))):
        if beside.get(y) is not None:
            axes.plot([beside[x]], [beside[y]], marker, markersize=9, label=name)
    axes.set(yscale="log", xlabel=f"{x}, nats", ylabel=y, title="Perplexity over entropy; labels: steps")
    if axes.lines:
        axes.legend(fontsize=8)


def _draw_speed_at_quality(axes: Any, result: dict[str, Any], judge: Judge) -> None:
    """Perplexity over tokens/s: a point for each number of steps, and what stands beside them."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    y, other = judge.key("generative_perplexity"), result.get("autoregressive", {})
    points = [point for point in result["frontier"] if point[y] is not None]
    for colour, batch in enumerate(batches_of(result)):
        x = f"tokens_per_s_batch_{batch}"
        for number, temperature in enumerate(sorted({one["setting"]["temperature"] for one in points})):
            line = [point for point in points if point["setting"]["temperature"] == temperature]
            axes.plot([point[x] for point in line], [point[y] for point in line], "o-", color=f"C{colour}",
                      label=None if number else f"batch {batch}")
            for point in line:
                axes.annotate(f"{point['setting']['steps']}", (point[x], point[y]), xytext=(4, 4),
                              textcoords="offset points", fontsize=8)
        if other.get(y) is not None:
            axes.plot([other[x]], [other[y]], "D", color=f"C{colour}", markersize=9,
                      label=f"autoregressive, batch {batch}")
    if result["reference"].get(y) is not None:
        axes.axhline(result["reference"][y], color="k", linewidth=0.8, linestyle=":", label="held-out text")
    axes.set(xscale="log", yscale="log", xlabel="tokens/s, decoding included", ylabel=y,
             title="Speed at a quality; labels: steps")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if axes.lines:
        axes.legend(fontsize=8)


def _draw_panel(axes: Any, result: dict[str, Any]) -> None:
    panel = result["panel"]
    shares = [100 * scores["accuracy"] for scores in panel.values()]
    bars = axes.bar([name.replace("_", "\n") for name in panel], shares)
    axes.bar_label(bars, fmt="%.1f", fontsize=8)
    axes.set(ylim=(0, 108), ylabel="tokens that come back, %", title="Held-out reconstruction")


def _draw_speed(axes: Any, result: dict[str, Any]) -> None:
    frontier = result["frontier"]
    steps = sorted({point["setting"]["steps"] for point in frontier})
    for key in [key for key in frontier[0] if key.startswith("tokens_per_s_batch_")]:
        # Temperature costs no time: its samplings are repetitions.
        speeds = [statistics.median(point[key] for point in frontier if point["setting"]["steps"] == num)
                  for num in steps]
        line, = axes.plot(steps, speeds, "o-", label=f"batch {key.rsplit('_', 1)[1]}")
        if key in result.get("autoregressive", {}):
            axes.axhline(result["autoregressive"][key], color=line.get_color(), linewidth=0.8, linestyle="--",
                         label=f"autoregressive, batch {key.rsplit('_', 1)[1]}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(num) for num in steps])
    axes.set(yscale="log", xlabel="denoiser steps", ylabel="tokens/s, decoding included",
             title="Speed")
    axes.legend(fontsize=8)
