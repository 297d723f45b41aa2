"""The picture of a simulation: what each policy costs, and how far it is from the clairvoyant.

    python -m trainer.policy_plot SCORES.json PICTURE.png
    python -m trainer.policy_plot                            whether it can be drawn here
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.contract import FIX


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw rows of `ldlm simulate --json` into a PNG: a panel of dollars, one of ratios.

    Args:
        rows: At least one.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["policy"] for row in rows))
    settings = list(dict.fromkeys(_words(row["setting"]) for row in rows))
    figure = Figure(figsize=(12, 2.2 + 0.32 * len(names) * max(1, len(settings))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(settings)
    for number, setting in enumerate(settings):
        mine = {row["policy"]: row for row in rows if _words(row["setting"]) == setting}
        places = [index + number * height for index, name in enumerate(names) if name in mine]
        shown = [mine[name] for name in names if name in mine]
        _bars(left, places, shown, height, setting)
        right.barh(places, [row["ratio_to_clairvoyant"] for row in shown], height=height * 0.9)
        for place, row in zip(places, shown, strict=True):
            missed = f", {row['missed']} of {row['num_windows']} missed" if row["missed"] else ""
            right.text(row["ratio_to_clairvoyant"], place, f" {row['ratio_to_clairvoyant']:.3f}{missed}",
                       va="center", fontsize=8)
    left.set_yticks([index + 0.4 - height / 2 for index in range(len(names))], names)
    left.invert_yaxis()
    left.set_xlabel("dollars: mean, and p95 as a line")
    right.set_xlabel("ratio to the clairvoyant, mean over windows")
    right.axvline(1.0, color="0.3", linewidth=1)
    right.margins(x=0.3)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center")
    most = max(row["num_windows"] for row in rows)
    figure.suptitle(f"Replayed on {most:,} windows of recorded availability")
    FigureCanvasAgg(figure).print_png(path)


def _bars(axes: Any, places: Sequence[float], rows: Sequence[dict[str, Any]], height: float,
          label: str) -> None:
    means = [row["mean_usd"] for row in rows]
    over = [max(0.0, row["p95_usd"] - row["mean_usd"]) for row in rows]
    axes.barh(places, means, xerr=[[0.0] * len(over), over], height=height * 0.9, label=label,
              error_kw={"linewidth": 1, "ecolor": "0.3"})


def _words(setting: dict[str, float]) -> str:
    words = (f"{setting['work_h']:g} h in {setting['deadline_h']:g} h, {setting['overhead_h']:g} h a start, "
             f"spot {setting['spot_usd']:.2f} $/h, on demand {setting['on_demand_usd']:.2f} $/h")
    return words.replace("$", r"\$")  # else matplotlib takes what lies between two for a formula


def main(arguments: Sequence[str]) -> int:
    """Draw, or without arguments only look; 1 where nothing here can draw."""
    if importlib.util.find_spec("matplotlib") is None:
        print("error: --plot: matplotlib is not in the trainer's environment, and nothing was replayed"
              f"{FIX}make evaluation-tools (once, about 400 MB), or leave --plot out", file=sys.stderr)
        return 1
    if arguments:
        plot(json.loads(Path(arguments[0]).read_text()), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
