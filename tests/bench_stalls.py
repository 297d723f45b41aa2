"""How much of a run's time is not inside its steps: the real loop with its metrics and saves, by cause.

    python -m tests.bench_stalls [--recipe smoke] [--steps 120] [--save-every 20] [--folder DIR]
        [--set KEY=VALUE ...]

One rank, on a GPU where there is one, with a `file://` store in DIR; encoders that are not a package have
random weights of the real sizes. The same run twice: with a row of metrics every ten steps, a heartbeat every
two seconds and a save every so many steps; and with next to none of it. What waits for the device counts as
step. Saves are far more frequent than a run's own, so what one costs is told by itself.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import yaml

from tests.random_mirrors import write_random_mirror
from tests.trainer_runs import ROOT
from trainer import train
from trainer.config import TrainConfig
from trainer.contract import Document, Env
from trainer.job import Job, build_job
from trainer.preemption import StopSignal
from trainer.profiles import merged
from trainer.ranks import init_process_group
from trainer.run_folder import RunFolder
from trainer.store import local_store_url, open_store

_WARM_UP_STEPS = 6
_OFTEN, _NEVER = 10, 10**6
_USUAL_INTERVAL_S = 15 * 60  # between two saves of a run (as plans choose it, within 10 to 30 minutes)
# Of the loop in `trainer/train.py`, by what they are for.
CAUSES = {"own_verdict": "limits and text", "agree": "agreement of ranks", "log_step": "metrics",
          "save_due": "whether to save", "save": "begin of a save"}
_ROUNDING = "rounding of the state"
_WAIT_FIRST = ("log_step", "save")  # for the device, by themselves
ARMS: dict[str, dict[str, Any]] = {
    "with": {"log_every_steps": 10, "heartbeat_s": 2.0},
    "without": {"log_every_steps": _NEVER, "heartbeat_s": float(_NEVER),
                "checkpoint": {"every_steps": None, "every_minutes": 600.0, "max_lost_minutes": None}}}


@dataclass
class Spent:
    """Seconds of one run's loop, step by step.

    Attributes:
        steps: When each began, how long it took with what waited for the device, and whether a save was
            under way when it began.
        others: When something else began, its cause, and how long it took.
    """

    steps: list[tuple[float, float, bool]] = field(default_factory=list)
    others: list[tuple[float, str, float]] = field(default_factory=list)

    def watch(self, job: Job) -> None:
        """Time the functions that the loop calls from now on."""
        train.train_step = self._step(train.train_step)
        for name, cause in CAUSES.items():
            waits = job if name in _WAIT_FIRST else None
            setattr(train, name, self._other(cause, getattr(train, name), waits))
        job.state.round = self._other(_ROUNDING, job.state.round)  # type: ignore[method-assign]

    def _step(self, function: Callable[..., None]) -> Callable[..., None]:
        def timed(job: Job, step: int) -> None:
            began_s, is_saving = time.perf_counter(), job.checkpoints.is_saving
            function(job, step)
            self.steps.append((began_s, time.perf_counter() - began_s, is_saving))
        return timed

    def _other(self, cause: str, function: Callable[..., Any],
               waits: Job | None = None) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began_s = time.perf_counter()
            if waits is not None and self.steps:
                waits.wait_for_device()
                first_s, took_s, is_saving = self.steps[-1]
                now_s = time.perf_counter()
                self.steps[-1], began_s = (first_s, took_s + now_s - began_s, is_saving), now_s
            found = function(*arguments)
            self.others.append((began_s, cause, time.perf_counter() - began_s))
            return found
        return timed

    def summary(self) -> dict[str, Any]:
        """Of all whole rounds of the loop after the warm-up: shares of the time by cause, and means."""
        steps = self.steps[_WARM_UP_STEPS:]
        begin_s, end_s = steps[0][0], steps[-1][0]
        by_cause = dict.fromkeys([*CAUSES.values(), _ROUNDING], 0.0)
        for began_s, cause, took_s in self.others:
            if begin_s <= began_s < end_s:
                by_cause[cause] += took_s
        inside = [took_s for _, took_s, _ in steps[:-1]]
        rest_s = end_s - begin_s - sum(inside) - sum(by_cause.values())
        beside = [took_s for _, took_s, is_saving in steps[:-1] if is_saving]
        return {"num_steps": len(inside), "round_s": (end_s - begin_s) / len(inside),
                "step_s": mean(inside), "median_s": median(inside), "worst_s": max(inside),
                "beside_s": median(beside) if beside else 0.0, "num_beside": len(beside),
                "by_cause": {cause: took_s / (end_s - begin_s) for cause, took_s in
                             (by_cause | {"the loop itself": rest_s}).items()},
                "save_s": [took_s for began_s, cause, took_s in self.others
                           if cause == CAUSES["save"] and begin_s <= began_s < end_s]}


def run_arm(config: TrainConfig, store: Path, arm: str) -> dict[str, Any]:
    """One run in this process, to its end."""
    url, folder = local_store_url(store), RunFolder(open_store(local_store_url(store)), arm)
    attempt = folder.claim_attempt(Document.TRAIN, billed_from=datetime.now(UTC),
                                   price_usd_per_hour=Decimal("2.2"), offer="here", host="here")
    with tempfile.TemporaryDirectory() as ends:
        os.environ |= {Env.STORE: url, Env.RUN_ID: arm, Env.ATTEMPT: str(attempt.number),
                       Env.MAX_COST: "1000", Env.END_FOLDER: ends, "RANK": "0", "LOCAL_RANK": "0",
                       "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        init_process_group(store=torch.distributed.HashStore(), rank=0, world_size=1)
        job, spent = build_job(config, StopSignal()), Spent()
        spent.watch(job)
        train.train(job)
        assert job.recorder is not None
        job.recorder.close()
    return spent.summary()


def configured(asked: argparse.Namespace, arm: str) -> TrainConfig:
    """What the recipe trains, for some steps, with much or little beside them."""
    values = yaml.safe_load((ROOT / "recipes" / f"{asked.recipe}.yaml").read_text())["train"]
    own = {"steps": asked.steps, "evaluate_every_steps": _NEVER, "evaluate_sequences": 8,
           "data": {"source": "python-docs"},
           "token_encoder": {"statistics_tokens": 16_384, "placement": "gpu"},
           "checkpoint": {"every_steps": asked.save_every}}
    for setting in asked.set:
        key, value = setting.split("=", 1)
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        own = merged(own, nested)
    return TrainConfig.model_validate(merged(merged(values, own), ARMS[arm]))


def main() -> None:
    """Print both runs, by cause."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--set", action="append", default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        encoder = configured(asked, "with").token_encoder
        if "/" in encoder.name:
            write_random_mirror(encoder, Path(folder), "cuda" if torch.cuda.is_available() else "cpu")
        found = {}
        for arm in ARMS:
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                found[arm] = alone.submit(run_arm, configured(asked, arm), Path(folder), arm).result()
            print(arm, found[arm], flush=True)  # the second may not come to its end
    print_table(asked, found)


def print_table(asked: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Shares of the time by cause, and what one save costs."""
    much, little = found["with"], found["without"]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{asked.recipe}, torch {torch.__version__}, {card}: {much['num_steps']} steps, metrics every "
          f"{ARMS['with']['log_every_steps']}, a save every {asked.save_every}")
    print(f"{'':<26}{'with':>10}{'without':>10}")
    for name in ("round_s", "step_s", "median_s", "worst_s"):
        print(f"{name[:-2] + ', ms':<26}{1e3 * much[name]:>10.2f}{1e3 * little[name]:>10.2f}")
    for cause, share in much["by_cause"].items():
        print(f"{cause:<26}{share:>10.3%}{little['by_cause'][cause]:>10.3%}")
    outside = [sum(arm["by_cause"].values()) for arm in (much, little)]
    print(f"{'not inside a step':<26}{outside[0]:>10.3%}{outside[1]:>10.3%}")
    print_saves(much, little)


def print_saves(much: dict[str, Any], little: dict[str, Any]) -> None:
    """What one save costs: where training stands still, and in the steps beside its upload."""
    if not much["save_s"]:
        return
    stall_s, beside = mean(much["save_s"]), much["num_beside"] / len(much["save_s"])
    more_s = beside * max(0.0, much["beside_s"] - little["median_s"])
    worst_s = max(much["save_s"])
    print(f"a save: {1e3 * stall_s:.1f} ms until training goes on (at worst {1e3 * worst_s:.1f}), "
          f"{1e3 * more_s:.1f} ms more in the {beside:.1f} steps beside it; one in "
          f"{_USUAL_INTERVAL_S // 60} min: {(stall_s + more_s) / _USUAL_INTERVAL_S:.4%}")


if __name__ == "__main__":
    main()
