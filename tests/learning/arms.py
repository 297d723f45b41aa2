"""Train several variants of a recipe side by side on one machine, and gather what each has learned.

    python tests/learning/arms.py STORE ARMS.yaml OUT [--minutes 8]

STORE is a local folder with the prepared text and the mirror of the token encoder. ARMS.yaml names a
recipe and, for each arm, what it changes. Every arm is a whole trainer (node, torchrun, one rank) with a
run folder of its own; they share the GPU, if there is one, and stop together.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from trainer_runs import TrainerRun  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import Env  # noqa: E402
from trainer.profiles import merged  # noqa: E402


def arm_config(recipe: str, common: dict[str, Any], changes: dict[str, Any]) -> TrainConfig:
    """What one arm trains."""
    train = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["train"]
    return TrainConfig.model_validate(merged(merged(train, common), changes))


def start(store: Path, arms: dict[str, TrainConfig], minutes: float) -> "dict[str, subprocess.Popen[str]]":
    """Start every arm; each ends after so many minutes, if it has not finished."""
    deadline = datetime.now(UTC) + timedelta(minutes=minutes)
    threads = str(max(1, (os.cpu_count() or 1) // len(arms)))
    return {name: TrainerRun(config, store, num_ranks=1, run_id=name).start(
                **{Env.DEADLINE: deadline.isoformat(), "OMP_NUM_THREADS": threads})
            for name, config in arms.items()}


def rows_of(run: TrainerRun) -> list[dict[str, float]]:
    """Every metric row of a run, in the order of steps."""
    chunks = run.folder.store.objects(f"{run.run_id}/attempts/1/metrics")
    rows = [json.loads(line) for chunk in chunks
            for line in run.folder.store.get(chunk.key).decode().splitlines()]
    return sorted(rows, key=lambda row: row["step"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args()
    plan = yaml.safe_load(options.arms.read_text())
    arms = {name: arm_config(plan["recipe"], plan.get("common") or {}, changes or {})
            for name, changes in plan["arms"].items()}
    processes = start(options.store, arms, options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name, process in processes.items():
        output, _ = process.communicate()
        (options.out / f"{name}.log").write_text(output)
        rows = rows_of(TrainerRun(arms[name], options.store, run_id=name))
        (options.out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        last = {key: value for row in rows for key, value in row.items()}
        scores = ", ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in last.items()
                           if key.startswith("eval/") or key in ("step", "tokens_per_s"))
        print(f"{name}: exit {process.returncode}; {scores}", flush=True)
        worst = max(worst, abs(process.returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main())
