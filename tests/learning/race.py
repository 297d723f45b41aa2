"""Our model against the baselines at equal GPU minutes on the same text, and one table of them all.

    python tests/learning/race.py STORE OUT [--minutes 6.5] [--seeds 0,1,2] [--judge-minutes 6.5]

STORE holds the text of the models and the judge's own (see tests/baselines/judge.py), and the mirror of the
token encoder (see arms.py). Three lanes, each alone on a GPU as far as there are any: ours (race.yaml), the
autoregressive transformer, masked diffusion. The seeds of a lane train beside one another and share its GPU:
models this small leave most of it idle alone. So a third of the minutes is what each of three had. A fourth
GPU trains the judge meanwhile, and the 5-gram model counts on the CPU. In the end
tests/baselines/compare.py scores all records. What has ended is in OUT at once; ended early, it takes all its
processes along.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import psutil
from arms import ROOT, devices

BASELINES = ROOT / "tests" / "baselines"
Lane = list[list[str]]
_SETUP_MINUTES = 1.0  # ours trains as many steps as race.yaml says; this bounds it all the same (guess)
_living: set["subprocess.Popen[bytes]"] = set()
_lock = threading.Lock()


def lanes_of(store: Path, out: Path, ours: Path, minutes: float, judge_minutes: float, seeds: list[int],
             num_samples: int, more: list[str]) -> dict[str, Lane]:
    """The commands of each lane, which run beside one another.

    Args:
        ours: Arms of our model.
        more: Options of all baselines.
    """
    def baseline(name: str, seed: int) -> list[str]:
        return [str(BASELINES / f"{name}.py"), str(store), str(out), "--minutes", str(minutes), "--seed",
                str(seed), "--samples", str(num_samples), *more]

    arms = [str(ROOT / "tests/learning/arms.py"), str(store), str(ours), str(out),
            "--minutes", str(minutes + _SETUP_MINUTES), "--samples", str(num_samples)]
    judge = [str(BASELINES / "judge.py"), str(store), str(out / "judge"), "--minutes", str(judge_minutes),
             *more, "--text", "judge"]
    return {"ours": [arms], "autoregressive": [baseline("autoregressive", seed) for seed in seeds],
            "masked": [baseline("masked", seed) for seed in seeds], "judge": [judge],
            "ngram": [baseline("ngram", seed) for seed in seeds]}


def run_lane(name: str, lane: Lane, device: str, out: Path) -> float:
    """Run all commands at once on a device; each writes OUT/NAME-number.log. Returns the seconds."""
    began = time.monotonic()
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device else {})

    def run(number: int) -> None:
        with (out / f"{name}-{number}.log").open("wb") as log, \
                subprocess.Popen([sys.executable, *lane[number]], env=environment, stdout=log,
                                 stderr=subprocess.STDOUT) as process:
            with _lock:
                _living.add(process)
            process.wait()
            with _lock:
                _living.discard(process)
        print(f"{name}: {Path(lane[number][0]).stem} ended with {process.returncode} after "
              f"{time.monotonic() - began:.0f} s", flush=True)

    with ThreadPoolExecutor(len(lane)) as pool:
        list(pool.map(run, range(len(lane))))
    return time.monotonic() - began


def stop(_number: int, _frame: object) -> NoReturn:
    """Take all that was started along."""
    for process in list(_living):
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6.5, help="of each lane's training")
    parser.add_argument("--judge-minutes", type=float, default=6.5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=512, help="of each model, seed and setting")
    parser.add_argument("--ours", type=Path, default=ROOT / "tests" / "learning" / "race.yaml")
    options, more = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    seeds = [int(word) for word in options.seeds.split(",")]
    lanes = lanes_of(options.store, options.out, options.ours, options.minutes, options.judge_minutes, seeds,
                     options.samples, more)
    on = {name: devices()[number % len(devices())] for number, name in enumerate(lanes)} | {"ngram": ""}
    with ThreadPoolExecutor(len(lanes)) as pool:
        seconds = pool.map(lambda name: run_lane(name, lanes[name], on[name], options.out), lanes)
        (options.out / "race.json").write_text(json.dumps({
            "gpu_minutes_of_run": options.minutes / len(seeds), "device_of_lane": on,
            "seconds_of_lane": dict(zip(lanes, seconds, strict=True))}))
    records = [str(path) for path in sorted(options.out.glob("*-seed-*.json"))]
    command = [sys.executable, str(BASELINES / "compare.py"), str(options.store), str(options.out / "judge"),
               str(options.out / "table"), *records]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
