"""Draws what the runs of tests/learning/arms.py have learned, and prints their scores as a table.

    python tests/learning/curves.py OUT [--picture learning.png]

Lines are means over seeds, bands reach from the lowest seed to the highest; the table has mean and deviation
of the last evaluation that every seed of every arm has reached.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

# Names of the rows, as people read them.
SCORES = {"eval/reconstruction_accuracy": "reconstruction",
          "eval/reconstruction_accuracy_noisy": "under noise",
          "eval/hidden_loss": "L_h", "eval/token_loss": "L_w", "eval/diffusion_loss": "L_diff",
          "eval/diffusion_loss_trivial": "trivial L_diff", "eval/latent_rank": "rank of z"}
_DRAWN = ("eval/hidden_loss", "eval/token_loss", "eval/diffusion_loss", "eval/reconstruction_accuracy")

# arm -> score -> step -> a value of each seed
Curves = dict[str, dict[str, dict[int, list[float]]]]


def read_curves(folder: Path) -> Curves:
    """Evaluations of every run in a folder."""
    curves: Curves = {}
    for path in sorted(folder.glob("*-seed-*.jsonl")):
        arm = curves.setdefault(path.stem.rpartition("-seed-")[0], {name: {} for name in SCORES})
        for line in path.read_text().splitlines():
            row = json.loads(line)
            for name in SCORES:
                if name in row:
                    arm[name].setdefault(int(row["step"]), []).append(float(row[name]))
    return curves


def last_common_step(curves: Curves) -> int:
    """The latest step that every arm has evaluated with all its seeds."""
    found = [arm[_DRAWN[0]] for arm in curves.values()]
    wholes = [{step for step, values in steps.items() if len(values) == max(map(len, steps.values()))}
              for steps in found]
    return max(set.intersection(*wholes))


def table(curves: Curves, step: int) -> str:
    """Scores of every arm at a step, as markdown."""
    lines = ["| at step " + f"{step:,} | seeds | " + " | ".join(SCORES.values()) + " |",
             "|" + "---|" * (len(SCORES) + 2)]
    for name, arm in curves.items():
        cells = [_cell(arm[score].get(step, []), is_share="accuracy" in score) for score in SCORES]
        lines.append(f"| {name} | {len(arm[_DRAWN[0]][step])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], *, is_share: bool) -> str:
    if not values:
        return "-"
    unit = 100 if is_share else 1
    mean, digits = unit * statistics.fmean(values), 1 if is_share else 3
    spread = f" ± {unit * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{' %' if is_share else ''}{spread}"


def draw(curves: Curves, picture: Path) -> None:
    """The three losses and reconstruction over steps, on held-out text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(_DRAWN)), _DRAWN, strict=True):
        for name, arm in curves.items():
            steps = sorted(arm[score])
            values = [arm[score][step] for step in steps]
            line, = axes.plot(steps, [statistics.fmean(found) for found in values], label=name)
            axes.fill_between(steps, list(map(min, values)), list(map(max, values)), alpha=0.2,
                              color=line.get_color())
        axes.set(title=f"{SCORES[score]}, held-out text", xlabel="step")
        axes.set_yscale("linear" if "accuracy" in score else "log")
    figure.axes[0].legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, help="default: curves.png in the folder")
    options = parser.parse_args()
    curves = read_curves(options.folder)
    if not curves:
        sys.exit(f"{options.folder} holds no ARM-seed-S.jsonl: tests/learning/arms.py writes them")
    print(table(curves, last_common_step(curves)))
    draw(curves, options.picture or options.folder / "curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
