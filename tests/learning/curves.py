"""Draws what the runs of tests/learning/arms.py have learned, and prints their scores as tables.

    python tests/learning/curves.py OUT [--picture learning.png] [--against main]

Lines are means over seeds, bands reach from the lowest seed to the highest. The tables have scores at the end
of training, mean and deviation over seeds, all under the same decoder noise; and how far each arm is from
one of them with the same seed: mean, standard error, and on how many seeds it is above.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

# Names of the scores, as people read them; those of the end and those drawn over steps.
SCORES = {"reconstruction_accuracy": "reconstruction", "reconstruction_accuracy_noisy": "under noise",
          "reconstruction_accuracy_denoised": "denoised", "hidden_loss": "L_h", "token_loss": "L_w",
          "diffusion_loss": "L_diff", "diffusion_loss_linear": "linear filter",
          "diffusion_loss_trivial": "trivial", "latent_rank": "rank of z"}
_DRAWN = ("hidden_loss", "token_loss", "diffusion_loss", "reconstruction_accuracy")

# arm -> score -> step -> a value of each seed
Curves = dict[str, dict[str, dict[int, list[float]]]]
# arm -> seed -> score
Ends = dict[str, dict[int, dict[str, float]]]


def read_curves(folder: Path) -> Curves:
    """Evaluations on the way of every run in a folder."""
    curves: Curves = {}
    for path in sorted(folder.glob("*-seed-*.jsonl")):
        arm = curves.setdefault(path.stem.rpartition("-seed-")[0], {name: {} for name in _DRAWN})
        for line in path.read_text().splitlines():
            row = json.loads(line)
            for name in _DRAWN:
                if f"eval/{name}" in row:
                    arm[name].setdefault(int(row["step"]), []).append(float(row[f"eval/{name}"]))
    return curves


def read_ends(folder: Path) -> Ends:
    """Scores at the end of every run of ours in a folder, under the recipe's noise."""
    ends: Ends = {}
    for path in sorted(folder.glob("*-seed-*.json")):
        record = json.loads(path.read_text())
        if "heldout" in record:  # baselines have other scores
            ends.setdefault(path.stem.rpartition("-seed-")[0], {})[record["seed"]] = record["heldout"]
    return ends


def table(ends: Ends) -> str:
    """Scores of every arm, as markdown."""
    lines = ["| arm | seeds | " + " | ".join(SCORES.values()) + " |", "|" + "---|" * (len(SCORES) + 2)]
    for arm, by_seed in ends.items():
        cells = [_cell([scores[name] for scores in by_seed.values()], name) for name in SCORES]
        lines.append(f"| {arm} | {len(by_seed)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(ends: Ends, against: str) -> str:
    """Every arm less another one with the same seed, as markdown."""
    lines = [f"| less {against} | " + " | ".join(SCORES.values()) + " |", "|" + "---|" * (len(SCORES) + 1)]
    for arm, by_seed in ends.items():
        shared = [seed for seed in by_seed if seed in ends[against]]
        if arm != against and shared:
            cells = [_difference([by_seed[seed][name] - ends[against][seed][name] for seed in shared], name)
                     for name in SCORES]
            lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float], name: str) -> str:
    unit, digits, sign = _unit(name)
    spread = f" ± {unit * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{unit * statistics.fmean(values):.{digits}f}{sign}{spread}"


def _difference(values: Sequence[float], name: str) -> str:
    unit, digits, sign = _unit(name)
    error = f" ± {unit * statistics.stdev(values) / len(values)**0.5:.{digits}f}" if len(values) > 1 else ""
    above = sum(value > 0 for value in values)
    return f"{unit * statistics.fmean(values):+.{digits}f}{sign}{error} ({above} of {len(values)} above)"


def _unit(name: str) -> tuple[float, int, str]:
    return (100, 1, " %") if "accuracy" in name else (1, 1, "") if "rank" in name else (1, 3, "")


def draw(curves: Curves, picture: Path) -> None:
    """The three losses and reconstruction over steps, on held-out text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axes, score in zip(figure.subplots(1, len(_DRAWN)), _DRAWN, strict=True):
        for name, arm in curves.items():
            steps = sorted(arm[score])
            values = [arm[score][step] for step in steps]
            line, = axes.plot(steps, [statistics.fmean(found) for found in values], label=name)
            axes.fill_between(steps, list(map(min, values)), list(map(max, values)), alpha=0.2,
                              color=line.get_color())
        axes.set(title=f"{SCORES[score]}, held-out text", xlabel="step")
        axes.set_yscale("linear" if "accuracy" in score else "log")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    FigureCanvasAgg(figure).print_png(picture)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, help="default: curves.png in the folder")
    parser.add_argument("--against", default="main", help="the arm that others are compared with")
    options = parser.parse_args()
    curves, ends = read_curves(options.folder), read_ends(options.folder)
    if not curves:
        sys.exit(f"{options.folder} holds no ARM-seed-S.jsonl: tests/learning/arms.py writes them")
    draw(curves, options.picture or options.folder / "curves.png")
    if ends:
        print(table(ends))
    if options.against in ends and len(ends) > 1:
        print(f"\n{differences(ends, options.against)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
