"""One table of all models at equal entropy, from their records, by one named judge.

    python tests/baselines/compare.py JUDGE OUT RECORD.json ... [--entropy 3.4,3.6]

A record is what a baseline writes, or `samples.json` of `ldlm evaluate`. Every model was sampled at several
settings, so it has a curve of perplexity over entropy; the table reads each curve at the same entropies,
by default at that of the held-out text. Seeds of one model give a mean and a deviation.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prepared_rows import PreparedRows, read_rows

from trainer.quality import Judge, load_judge, text_scores

_NEAR = 0.1  # nats of entropy: as far as a curve is carried on beyond its ends


def scored(record: dict[str, Any], judge: Judge, training: "Grams | None" = None) -> list[dict[str, Any]]:
    """Every setting of a record with the judge's scores, its speeds, and how much of it is copied."""
    points = []
    for one in record["generations"]:
        kept = {key: value for key, value in one.items() if key not in ("tokens", "texts")}
        kept |= {"model": record["model"], "model_seed": record["seed"]} | text_scores(judge, one["texts"])
        points.append(kept | ({} if training is None else {"copied_4": training.share_of(one["tokens"])}))
    return points


class Grams:
    """The 4-grams of the training rows: how much of a sample stands there word for word."""

    def __init__(self, rows: PreparedRows) -> None:
        self._token_ids = rows.token_ids
        self._keys = np.unique(self._keys_of(rows.train_NL))

    def share_of(self, tokens: Sequence[Sequence[int]]) -> float:
        """Share of the 4-grams of some samples, in the tokenizer's ids, that training rows hold."""
        ids_NL = np.asarray(tokens)
        places_NL = np.searchsorted(self._token_ids, ids_NL).clip(max=len(self._token_ids) - 1)
        known_NL = np.where(self._token_ids[places_NL] == ids_NL, places_NL, len(self._token_ids))
        return float(np.isin(self._keys_of(known_NL), self._keys).mean())

    def _keys_of(self, rows_NL: np.ndarray) -> np.ndarray:
        grams = np.lib.stride_tricks.sliding_window_view(rows_NL, 4, axis=1).reshape(-1, 4)
        return grams @ (len(self._token_ids) + 1) ** np.arange(4, dtype=np.int64)


def at_entropy(points: Sequence[dict[str, Any]], entropy: float, judge: Judge) -> dict[str, float] | None:
    """The best that some settings of one model and seed come to at an entropy.

    Perplexity (its logarithm), repetition and speed lie on a line between the two settings on either
    side; where several pairs of a sweep do, that of the lowest perplexity counts. None when no setting
    is within 0.1 nats and none lie on either side.
    """
    names = [judge.key(name) for name in ("generative_perplexity", "distinct_2", "distinct_4", "diversity")]
    names += sorted(key for key in points[0] if key.startswith(("tokens_per_s", "copied")))
    at = judge.key("entropy")
    found = []
    for sweep in _sweeps(points):
        sweep = sorted(sweep, key=lambda point: point[at])
        pairs = [(low, high) for low, high in zip(sweep, sweep[1:], strict=False)
                 if low[at] <= entropy <= high[at]]
        ends = [(end, end) for end in (sweep[0], sweep[-1]) if abs(end[at] - entropy) <= _NEAR]
        for low, high in pairs or ends:
            share = (entropy - low[at]) / (high[at] - low[at]) if high[at] > low[at] else 0.0
            found.append({key: _between(low[key], high[key], share) for key in names}
                         | {"from_entropy": low[at], "to_entropy": high[at]}
                         | {key: value for key, value in low["setting"].items() if key == "steps"})
    return min(found, key=lambda one: one[names[0]], default=None)


def _sweeps(points: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Settings that differ in their temperature alone: a curve goes along one of these."""
    sweeps: dict[Any, list[dict[str, Any]]] = {}
    for point in points:
        setting = tuple(sorted((k, str(v)) for k, v in point["setting"].items() if k != "temperature"))
        sweeps.setdefault(setting, []).append(point)
    return list(sweeps.values())


def _between(low: float, high: float, share: float) -> float:
    return math.exp((1 - share) * math.log(max(low, 1e-9)) + share * math.log(max(high, 1e-9)))


def table(points: Sequence[dict[str, Any]], entropies: Sequence[float],
          judge: Judge) -> list[dict[str, Any]]:
    """A line for each entropy and model: mean over seeds and, of perplexity, the deviation."""
    lines = []
    perplexity = judge.key("generative_perplexity")
    for entropy in entropies:
        for model in dict.fromkeys(point["model"] for point in points):
            seeds = dict.fromkeys(point["model_seed"] for point in points if point["model"] == model)
            runs = [at_entropy([point for point in points if point["model"] == model
                                and point["model_seed"] == seed], entropy, judge) for seed in seeds]
            reached = [run for run in runs if run is not None]
            line: dict[str, Any] = {"entropy": entropy, "model": model, "num_seeds": len(reached)}
            for key in reached[0] if reached else ():
                line[key] = statistics.fmean(run[key] for run in reached if key in run)
            if len(reached) > 1:
                line[f"{perplexity}_deviation"] = statistics.stdev(run[perplexity] for run in reached)
            lines.append(line)
    return lines


def markdown(lines: Sequence[dict[str, Any]], judge: Judge) -> str:
    """The table as people read it."""
    perplexity = judge.key("generative_perplexity")
    rows = [f"| entropy | model | seeds | {perplexity} | distinct-2 | distinct-4 | copied 4-grams | "
            "tokens/s, batch 1 | tokens/s, batched |", "|" + "---|" * 9]
    for line in lines:
        if not line["num_seeds"]:
            rows.append(f"| {line['entropy']:.2f} | {line['model']} | 0 | not reached | | | | | |")
            continue
        deviation = line.get(f"{perplexity}_deviation")
        batched = max((value for key, value in line.items() if key.startswith("tokens_per_s")), default=0.0)
        cells = [f"{line['entropy']:.2f}", line["model"], str(line["num_seeds"]),
                 f"{line[perplexity]:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}"),
                 f"{line[judge.key('distinct_2')]:.3f}", f"{line[judge.key('distinct_4')]:.3f}",
                 f"{line['copied_4']:.1%}" if "copied_4" in line else "",
                 f"{line.get('tokens_per_s_batch_1', 0):,.0f}", f"{batched:,.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Score every record, write compare.json and compare.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("judge")
    parser.add_argument("out", type=Path)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--entropy", help="comma-separated, nats; by default that of the reference texts")
    parser.add_argument("--store", type=Path, help="of the text, to count what is copied from it")
    parser.add_argument("--text", default="manual-and-bible")
    options = parser.parse_args(argv)
    judge = load_judge(options.judge, "cuda" if torch.cuda.is_available() else "cpu")
    records = [json.loads(path.read_text()) for path in options.records]
    length = len(records[0]["generations"][0]["tokens"][0])
    training = Grams(read_rows(options.store, options.text, length)) if options.store else None
    points = [point for record in records for point in scored(record, judge, training)]
    references = [record["reference_texts"] for record in records if record.get("reference_texts")]
    reference = text_scores(judge, references[0]) if references else {}
    if not (options.entropy or reference):
        parser.error("no record holds reference texts: say --entropy")
    entropies = ([float(word) for word in options.entropy.split(",")] if options.entropy
                 else [reference[judge.key("entropy")]])
    lines = table(points, entropies, judge)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"judge": options.judge, "reference": reference, "points": points, "table": lines}
    (options.out / "compare.json").write_text(json.dumps(result, indent=1))
    (options.out / "compare.md").write_text(markdown(lines, judge))
    print(markdown(lines, judge), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
