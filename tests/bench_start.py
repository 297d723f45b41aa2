"""How long a resumed run takes from its process to the first step, beside what its bytes take on that line.

    python -m tests.bench_start [--recipe qwen3.6-35b-a3b] [--gbit 1] [--weights fp8] [--folder FOLDER]

The whole trainer, one rank, on a GPU at the recipe's sizes or here at small ones (`--recipe paper-gpt2`):
first a few steps with a checkpoint, its encoder a mirror of random weights read where it lies; then the same
run on a machine that has nothing, whose store is a server (`plain_s3.py`) behind a line. The checkpoint is of
a step that is rounded, as those are that a run saves by time. FOLDER holds the store; the second machine's
copy lies among temporary files.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.random_mirrors import write_random_mirror
from tests.s3_server import KEYS, running_plain_s3
from tests.trainer_runs import ROOT, TrainerRun, kill_tree
from trainer.config import TrainConfig
from trainer.profiles import merged
from trainer.run_folder import Heartbeat, RunFolder
from trainer.store import open_store

DEADLINE_S = 900.0
BUCKET = "bench"
SAVED_STEP = 10
SHORT: dict[str, Any] = {
    "steps": 1000, "log_every_steps": 1, "evaluate_every_steps": 1000, "evaluate_sequences": 4,
    "heartbeat_s": 0.5, "data": {"source": "python-docs"},
    "token_encoder": {"statistics_tokens": 16_384, "placement": "gpu"},
    "optimizer": {"round_steps": SAVED_STEP},
    "checkpoint": {"every_steps": SAVED_STEP, "every_minutes": None}}

ON_A_CPU: dict[str, Any] = {
    "precision": "fp32", "data": {"sequence_length": 16}, "token_encoder": {"statistics_tokens": 256},
    "model": {"latent_width": 64, "width": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
              "denoiser_layers": 1, "token_decoder_layers": 1, "token_decoder_width": 64,
              "token_decoder_heads": 2, "head_vocabulary": "seen"}}


def configured(recipe: str, weights: str) -> TrainConfig:
    """What a recipe trains, with steps that are over soon."""
    train = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["train"]
    micro = min(2, train.get("micro_batch_size", 2))
    changes: dict[str, Any] = {"micro_batch_size": micro, "global_batch_size": micro,
                               "token_encoder": {"weights": weights}}
    if not torch.cuda.is_available():
        changes = merged(changes, ON_A_CPU)
    return TrainConfig.model_validate(merged(merged(train, SHORT), changes))


def begin(run: TrainerRun) -> None:
    """An attempt that ends, without a word, when a checkpoint is durable."""
    process = run.start()
    run.wait_for(process, 1, durable=SAVED_STEP)
    kill_tree(process)


def resume(run: TrainerRun, url: str, cache: Path) -> Heartbeat:
    """The next attempt on a machine that has nothing yet; its first heartbeat after a step."""
    process = run.start(**KEYS, LDLM_STORE=url, XDG_CACHE_HOME=str(cache))
    os.environ.update(KEYS)
    folder, give_up = RunFolder(open_store(url), run.run_id), time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < give_up:
            beat = folder.find("attempts/2/heartbeat.json", Heartbeat)
            if beat and "first step" in beat.start_s:
                return beat
            if process.poll() is not None:
                break
            time.sleep(0.2)
    finally:
        ended = process.poll() is not None
        output = process.communicate()[0] if ended else ""
        if not ended:
            kill_tree(process)
    sys.exit(f"it did not come to a step\n{output[-4000:]}")


def main() -> None:
    """Print what each part took, and what the line alone would take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="qwen3.6-35b-a3b")
    parser.add_argument("--weights", default="fp8")
    parser.add_argument("--gbit", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as buckets, tempfile.TemporaryDirectory() as cache:
        measure(Path(buckets), Path(cache), configured(asked.recipe, asked.weights), asked.gbit)


def measure(buckets: Path, cache: Path, config: TrainConfig, gbit: float) -> None:
    """Both attempts, and the table."""
    store = buckets / BUCKET / "ldlm"
    device, began_at = "cuda" if torch.cuda.is_available() else "cpu", time.monotonic()
    mirror = write_random_mirror(config.token_encoder, store, device)
    encoder_bytes = sum(path.stat().st_size for path in mirror.iterdir())
    print(f"encoder of {encoder_bytes / 2**30:.2f} GiB after {time.monotonic() - began_at:.0f} s", flush=True)
    run = TrainerRun(config, store, num_ranks=1, deadline_s=DEADLINE_S,
                     environment={"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))})
    begin(run)
    checkpoint_bytes = sum(run.checkpoints()[0].sizes.values())
    print(f"checkpoint of {checkpoint_bytes / 2**30:.2f} GiB after {time.monotonic() - began_at:.0f} s",
          flush=True)
    with running_plain_s3(gbit, buckets) as server:
        beat = resume(run, server.url(BUCKET, "ldlm"), cache)
    print_table(beat.start_s, {"encoder": encoder_bytes, "checkpoint": checkpoint_bytes}, gbit * 1e9 / 8)


def print_table(start_s: dict[str, float], sizes: dict[str, int], bytes_per_s: float) -> None:
    """Parts of the start, and the floor."""
    total_s = sum(start_s.values())
    print(f"torch {torch.__version__}, "
          f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}")
    for part, seconds in start_s.items():
        print(f"  {part:<12}{seconds:8.1f} s")
    print(f"  {'in all':<12}{total_s:8.1f} s")
    alone_s = {name: size / bytes_per_s for name, size in sizes.items()}
    for name, seconds in alone_s.items():
        print(f"  {name} alone on the line {seconds:.1f} s")
    print(f"  {total_s / max(alone_s.values()):.2f} times the larger, "
          f"{total_s / sum(alone_s.values()):.2f} times both")


if __name__ == "__main__":
    main()
