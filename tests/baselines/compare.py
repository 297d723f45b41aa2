"""All models at equal entropy, from their records, by one named judge.

    python tests/baselines/compare.py STORE JUDGE OUT RECORD.json ... [--text NAME] [--entropy 3.4,3.6]

A record is what a baseline writes, `samples.json` of `ldlm evaluate`, or what tests/learning/arms.py
leaves. Every model was sampled at several temperatures; at each entropy, by default that of held-out text,
it is read between the two that surround it (see equal_entropy.py). Held-out and training rows stand beside
them, as many as there are texts of a model: the judge must find both alike, or it has learned the models'
training text by heart and favours copies of it (judge.py tells how to train one that has not).
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from equal_entropy import (
    Line,
    Point,
    Scores,
    as_good_as,
    best,
    described,
    finite,
    models_of,
    setting_in_words,
    verdicts,
)
from prepared_rows import PreparedRows, read_rows, spread

from trainer.judge_rows import RowJudge
from trainer.quality import load_judge

_BATCH_1 = ("Speed at batch 1 of models this small, run eagerly, is the overhead of starting kernels: it "
            "says how many passes there are, not how much they compute.")


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
        keys_NL = self._keys_of(known_NL)
        places_NL = np.searchsorted(self._keys, keys_NL).clip(max=len(self._keys) - 1)
        return float((self._keys[places_NL] == keys_NL).mean())

    def _keys_of(self, rows_NL: np.ndarray) -> np.ndarray:
        grams = np.lib.stride_tricks.sliding_window_view(rows_NL, 4, axis=1).reshape(-1, 4)
        return grams @ (len(self._token_ids) + 1) ** np.arange(4, dtype=np.int64)


@dataclass(frozen=True)
class Scorer:
    """What scores texts of all models alike."""

    row_judge: RowJudge
    training: Grams

    def scores(self, tokens_NL: Sequence[Sequence[int]]) -> Scores:
        """Of whole rows in the tokenizer's ids."""
        found, key = self.row_judge.scores(tokens_NL), self.row_judge.judge.key
        perplexity, *others = (found[key(name)] for name in (
            "generative_perplexity", "entropy", "distinct_2", "distinct_4"))
        return Scores(finite(perplexity), *others, self.training.share_of(tokens_NL))

    def points(self, record: dict[str, Any], num: int) -> list[Point]:
        """Every setting of a record, by `num` texts of either half."""
        return [Point(
            record["model"], record["seed"], one["setting"], one.get("dtype", "not recorded"),
            {int(key.rsplit("_", 1)[1]): value for key, value in one.items()
             if key.startswith("tokens_per_s_batch_")},
            self.scores(one["tokens"][::2][:num]), self.scores(one["tokens"][1::2][:num]))
            for one in record["generations"]]


def markdown(points: Sequence[Point], entropies: Sequence[float], real: dict[str, Scores], num: int,
             perplexity: str) -> str:
    """All tables and verdicts as people read them."""
    parts = [f"Of {num} texts each; as many others chose the setting. {_judge_in_words(real)}"]
    for entropy in entropies:
        parts += [f"## At entropy {entropy:.2f}",
                  _table(points, entropy, real, perplexity), _speeds(points, entropy, perplexity),
                  "\n".join(f"- {line}" for line in verdicts(points, entropy)) or "No model of ours."]
    return "\n\n".join([*parts, _BATCH_1]) + "\n"


def _judge_in_words(real: dict[str, Scores]) -> str:
    known, unknown = real["training text"].perplexity, real["held-out text"].perplexity
    return (f"The judge's perplexity of the models' training text is {known:.1f}, of held-out text "
            f"{unknown:.1f} ({unknown / known:.2f} times): where they differ, it favours copies.")


def _table(points: Sequence[Point], entropy: float, real: dict[str, Scores], perplexity: str) -> str:
    rows = [f"| model | seeds | {perplexity} | entropy | distinct-2 | distinct-4 | copied 4-grams | "
            "setting | dtype | tokens/s, batch 1 | tokens/s, batched |", "|" + "---|" * 11]
    rows += [f"| {name} | | {_cells(scores)} | | | | |" for name, scores in real.items()]
    for model in models_of(points):
        line = best(points, model, entropy)
        if line.points:
            rows.append(_row(line))
        else:
            nearest = min((point.choosing.entropy for point in points if point.model == model),
                          key=lambda found: abs(found - entropy))
            rows.append(f"| {model} | 0 of {line.num_seeds} | not reached | nearest {nearest:.2f} |"
                        + " |" * 7)
    return "\n".join(rows)


def _row(line: Line) -> str:
    scores = Scores(*map(line.mean, Scores._fields))
    seeds = f"{len(line.reported)} of {line.num_seeds}"
    return (f"| {line.model} | {seeds} | {_cells(scores, line.deviation)} | {setting_in_words(line)} | "
            f"{line.points[0].dtype} | {line.speed(1):,.0f} | {line.speed(line.batch):,.0f} "
            f"(batch {line.batch}) |")


def _cells(scores: Scores, deviation: float | None = None) -> str:
    spread_of = "" if deviation is None else f" ± {deviation:.1f}"
    return (f"{scores.perplexity:.1f}{spread_of} | {scores.entropy:.2f} | {scores.distinct_2:.3f} | "
            f"{scores.distinct_4:.3f} | {scores.copied_4:.1%}")


def _speeds(points: Sequence[Point], entropy: float, perplexity: str) -> str:
    rows = [f"| as good as | {perplexity} at most | model | fastest setting |", "|---|---|---|---|"]
    for other, limit, line in as_good_as(points, entropy):
        rows.append(f"| {other} | {limit:.1f} | {line.model} | "
                    f"{described(line) if line.points else 'not reached'} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> int:
    """Score every record, write compare.json and compare.md."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="folder of a local store")
    parser.add_argument("judge")
    parser.add_argument("out", type=Path)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--text", default="manual-and-bible", help="that the models learned from")
    parser.add_argument("--entropy", help="comma-separated, nats; by default that of held-out text")
    options = parser.parse_args(argv)
    judge = load_judge(options.judge, "cuda" if torch.cuda.is_available() else "cpu")
    records = [json.loads(path.read_text()) for path in options.records]
    generations = [one["tokens"] for record in records for one in record["generations"]]
    rows = read_rows(options.store, options.text, len(generations[0][0]))
    scorer = Scorer(RowJudge(judge, rows.tokenizer, rows.end_of_text_id), Grams(rows))
    num = min(len(rows.heldout_NL), len(rows.train_NL), *(len(tokens) // 2 for tokens in generations))
    real = {"held-out text": scorer.scores(spread(rows.heldout_tokens_NL, num).tolist()),
            "training text": scorer.scores(rows.token_ids[spread(rows.train_NL, num)].tolist())}
    points = [point for record in records for point in scorer.points(record, num)]
    entropies = ([float(word) for word in options.entropy.split(",")] if options.entropy
                 else [real["held-out text"].entropy])
    table = markdown(points, entropies, real, num, judge.key("generative_perplexity"))
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"judge": options.judge, "judge_revision": judge.revision, "num_texts": num,
              "real": {name: scores._asdict() for name, scores in real.items()},
              "points": [dataclasses.asdict(point) | {"choosing": point.choosing._asdict(),
                                                      "reported": point.reported._asdict()}
                         for point in points],
              "verdicts": {f"{entropy:.4f}": verdicts(points, entropy) for entropy in entropies}}
    (options.out / "compare.json").write_text(json.dumps(result, indent=1))
    (options.out / "compare.md").write_text(table)
    print(table, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
