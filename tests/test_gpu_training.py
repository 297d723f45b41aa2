"""The whole trainer on a GPU at real sizes: what it takes of memory is what the plan has said."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

torch = pytest.importorskip("torch")
from random_mirrors import write_random_mirror  # noqa: E402

from tests.trainer_runs import ROOT, TrainerRun  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.encoder_shape import encoder_shape  # noqa: E402
from trainer.memory import GIB, memory_per_gpu  # noqa: E402
from trainer.profiles import merged  # noqa: E402

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHORT: dict[str, Any] = {
    "steps": 3, "log_every_steps": 1, "evaluate_every_steps": 100, "evaluate_sequences": 4,
    "heartbeat_s": 0.5, "data": {"source": "python-docs"},
    "token_encoder": {"statistics_tokens": 16_384, "placement": "gpu"},
    "checkpoint": {"every_steps": 100, "every_minutes": None},
    "sampling": {"steps": 2, "num_samples": 1, "bench_generations": 2}}
# Recipe, and what is changed: batches that GPUs take in seconds, and settings that move memory.
Case = tuple[str, dict[str, Any]]
CASES: dict[str, Case] = {
    "paper-gpt2": ("paper-gpt2", {"micro_batch_size": 8, "global_batch_size": 16}),
    "qwen3.5-0.8b": ("qwen3.5-0.8b", {"global_batch_size": 64, "zero_stage": 2}),
    "qwen3.5-2b": ("qwen3.5-2b", {"micro_batch_size": 64, "global_batch_size": 64}),
    "qwen3.5-2b, host memory": ("qwen3.5-2b", {
        "micro_batch_size": 32, "global_batch_size": 64, "model": {"prompt": True},
        "token_encoder": {"weights": "fp8", "placement": "host"}}),
    "home-3090": ("home-3090", {"global_batch_size": 64}),
    "qwen3.6-35b-a3b": ("qwen3.6-35b-a3b", {
        "micro_batch_size": 2, "global_batch_size": 4, "activation_checkpointing": True,
        "token_encoder": {"weights": "nf4"}}),
    "home-5090": ("home-5090", {"global_batch_size": 16}),
    "seed-35b-a3b": ("seed-35b-a3b", {"micro_batch_size": 32, "global_batch_size": 64, "zero_stage": 2,
                                      "token_encoder": {"weights": "nf4"}}),
    "qwen3.6-27b": ("qwen3.6-27b", {"micro_batch_size": 4, "global_batch_size": 4,
                                    "token_encoder": {"weights": "nf4"}}),
}
# By ranks: a rank of the second recipe takes both GPUs.
ON_TWO_GPUS: dict[str, tuple[int, Case]] = {
    "qwen3.5-2b, sharded": (2, ("qwen3.5-2b", {
        "micro_batch_size": 32, "global_batch_size": 128, "token_encoder": {"placement": "sharded"}})),
    "home-2gpu": (1, ("home-2gpu", {"global_batch_size": 16, "token_encoder": {"placement": "next_gpu"}})),
    "seed-35b-a3b, two ranks": (2, ("seed-35b-a3b", {
        "micro_batch_size": 32, "global_batch_size": 128, "zero_stage": 2,
        "token_encoder": {"weights": "nf4", "placement": "sharded"}})),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases, so that an encoder is made once."""
    return tmp_path_factory.mktemp("store")


def configured(recipe: str, changes: dict[str, Any]) -> TrainConfig:
    """What a recipe trains, cut to three steps."""
    train = yaml.safe_load((ROOT / "recipes" / f"{recipe}.yaml").read_text())["train"]
    return TrainConfig.model_validate(merged(merged(train, SHORT), changes))


def logged(run: TrainerRun) -> list[dict[str, float]]:
    chunks = run.folder.store.objects(f"{run.folder.run_id}/attempts/1/metrics")
    return [json.loads(line) for chunk in chunks
            for line in run.folder.store.get(chunk.key).decode().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_the_predicted_peak_of_memory_is_the_measured_one_within_ten_percent(case: str, store: Path) -> None:
    check_memory(case, configured(*CASES[case]), 1, store)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", ON_TWO_GPUS)
def test_so_it_is_on_two_gpus(case: str, store: Path) -> None:
    num_ranks, (recipe, changes) = ON_TWO_GPUS[case]
    check_memory(case, configured(recipe, changes), num_ranks, store)


def check_memory(case: str, config: TrainConfig, num_ranks: int, store: Path) -> None:
    """Train for three steps and compare the peak of the first rank's GPU with the plan's."""
    encoder = config.token_encoder
    if not list(store.glob(f"weights/{encoder.name.replace('/', '--')}/*-{encoder.weights}/manifest.json")):
        write_random_mirror(encoder, store)
    run_id = re.sub("[^a-z0-9]+", "-", case)
    run = TrainerRun(config, store, num_ranks=num_ranks, run_id=run_id, deadline_s=400,
                     environment={"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))})
    code, output = run.finish()
    assert code == 0, output[-4000:]
    rows = [row for row in logged(run) if "peak_memory_gib" in row]  # the last one is of the evaluation
    assert any("eval/token_loss" in row for row in rows)
    shutil.rmtree(store / run_id)  # a checkpoint can be as large as the disk that is left
    shape = encoder_shape(encoder.name)
    assert shape is not None
    told = memory_per_gpu(config, shape, world_size=num_ranks, ranks_per_node=num_ranks)
    predicted, measured = told.allocated_bytes / GIB, max(row["peak_memory_gib"] for row in rows)
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in told.parts.items())
    print(f"\n{case}: measured {measured:.2f} GiB, predicted {predicted:.2f} "
          f"({predicted / measured - 1:+.1%}) at {told.moment}: {parts}; "
          f"{[row['tokens_per_s'] for row in rows if 'tokens_per_s' in row][-1]:,.0f} tokens/s")
    print(next((line for line in output.splitlines() if line.startswith("hidden states:")), "no statistics"))
    assert predicted == pytest.approx(measured, rel=0.1)
