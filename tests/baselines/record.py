"""What a baseline leaves behind: one JSON file of samples, speeds and scores, and the samples as text."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from prepared_rows import PreparedRows

_WARM_UP, _TIMED = 1, 3


def options_of(description: str, argv: list[str] | None = None, **defaults: Any) -> argparse.Namespace:
    """The command line that all baselines share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("store", type=Path, help="folder of a local store")
    parser.add_argument("out", type=Path, help="folder for the record")
    parser.add_argument("--text", default="manual-and-bible", help="prepared text: data/NAME of the store")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128, help="rows of a training step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parameters", type=float, default=28e6,
                        help="the nearest size is taken (default: what recipes/manual-and-bible.yaml trains)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--temperatures", type=_numbers, default=[0.6, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--sampling-steps", type=lambda text: [int(word) for word in text.split(",")],
                        default=[8, 16, 32, 64], help="of masked diffusion")
    parser.add_argument("--save-model", action="store_true",
                        help="of autoregressive.py: also OUT/MODEL-seed-SEED, a folder for "
                             "`ldlm evaluate --autoregressive`")
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def generation(rows: PreparedRows, generate: Callable[[int, int], np.ndarray], num: int, seed: int,
               setting: dict[str, float], dtype: str,
               speeds: dict[str, float] | None = None) -> dict[str, Any]:
    """Samples of one setting, and how fast they come.

    Args:
        rows: Whose ids are generated.
        generate: (number, seed) -> rows on the host, so that the device has finished.
        num: Samples.
        seed: Of the samples.
        setting: For the record.
        dtype: What it computes in, for the record.
        speeds: Where another setting has been timed for it; None: this one is, see `speeds_of`.
    """
    tokens, texts = rows.texts(generate(num, seed))
    speeds = speeds_of(generate, num, seed) if speeds is None else speeds
    return {"setting": setting, "seed": seed, **speeds, "batch": num, "dtype": dtype, "tokens": tokens,
            "texts": texts}


def speeds_of(generate: Callable[[int, int], np.ndarray], num: int, seed: int) -> dict[str, float]:
    """Tokens/s one at a time and all at once."""
    length = generate(1, seed).shape[1]
    return {f"tokens_per_s_batch_{size}": size * length / _seconds(lambda size=size: generate(size, seed))
            for size in (1, num)}


def _seconds(run: Callable[[], object]) -> float:
    taken = []
    for index in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        run()
        if index >= _WARM_UP:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def write(out: Path, record: dict[str, Any]) -> Path:
    """Write OUT/MODEL-seed-SEED.json, and its samples as text beside it."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record['model']}-seed-{record['seed']}.json"
    path.write_text(json.dumps(record))
    lines = [f"{one['setting']}\t{text}" for one in record["generations"] for text in one["texts"]]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    score = record.get("heldout_perplexity")
    print(f"{path}: {record['parameters']:,} parameters, {record['steps']:,} steps in "
          f"{record['train_seconds']:.0f} s, held-out perplexity {score:.1f} ({record['heldout_is']})",
          flush=True)
    return path
