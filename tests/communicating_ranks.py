"""Trains a few steps on 1, 2 and 4 real ranks; writes down losses and every collective that torch made.

`python -m tests.communicating_ranks FOLDER`, a process of its own: its ranks are forks, so that libraries
load once. FOLDER/encoder is a model with random weights.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.trainer_runs import tiny_config
from trainer.average import WeightAverage
from trainer.batches import Batches
from trainer.bench_train_encoder import RandomText
from trainer.config import TrainConfig
from trainer.diffusion import TimestepSampler
from trainer.divergence import DivergenceWatch
from trainer.encoder_shape import encoder_shape
from trainer.gradients import flat_groups
from trainer.job import StepJob, build_engine, build_model
from trainer.ranks import init_process_group
from trainer.step import train_step
from trainer.token_encoder import load_token_encoder
from trainer.train_state import TrainState

STEPS, NUM_RANKS = 3, (1, 2, 4)
# Else every rank would load them anew.
_LATE = ("deepspeed.ops.op_builder.all_ops", "deepspeed.runtime.zero.muon.original_muon", "torch._dynamo",
         "torch.distributed.tensor", "transformers.models.auto.modeling_auto",
         "transformers.models.auto.tokenization_auto", "transformers.models.gpt2.modeling_gpt2")
# Changes of the config by name.
CASES: dict[str, dict[str, Any]] = {
    "stage 1": {},
    "stage 2": {"zero_stage": 2},
    "stage 1, bf16": {"precision": "bf16"},
    "stage 2, sharded": {"zero_stage": 2, "token_encoder": {"placement": "sharded"}},
    "sharded, read two at a time": {"token_encoder": {"placement": "sharded", "micro_batch_size": 2}},
}


class Collectives(TorchDispatchMode):
    """Notes name and bytes of what goes into each collective while it is active, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            # An all-gather takes the whole first, then this rank's share.
            tensors = [leaf for leaf in tree_leaves(args[0]) if isinstance(leaf, torch.Tensor)]
            self.seen.append((func._schema.name, sum(tensor.nbytes for tensor in tensors)))
        return func(*args, **(kwargs or {}))


class NoSaves:
    """Checkpoints of a run that keeps none."""

    def settle(self) -> None:
        """Nothing is being copied."""


def config_of(folder: Path, case: str) -> TrainConfig:
    """Four sequences a step, one at a time: two ranks take two each, one after the other."""
    changes = dict(CASES[case])
    encoder = {"name": str(folder / "encoder")} | changes.pop("token_encoder", {})
    sizes = {"latent_width": 32, "width": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
             "denoiser_layers": 1, "token_decoder_layers": 1, "token_decoder_width": 64,
             "token_decoder_heads": 2, "head_vocabulary": "full"}
    return tiny_config(folder, global_batch_size=4, model=sizes, token_encoder=encoder,
                       data={"source": "none", "sequence_length": 8}, **changes)


def step_job(config: TrainConfig) -> StepJob:
    """The trainer's own step on these ranks, without a run around it."""
    encoder, device = load_token_encoder(config.token_encoder, "cpu"), torch.device("cpu")
    text: Any = RandomText(config, encoder_shape(config.token_encoder.name), 0)
    engine = build_engine(config, build_model(config, encoder, text))
    average = WeightAverage(engine, config.optimizer.ema_decay)
    groups = flat_groups(engine.module, engine.module.parts())
    sizes = [sum(torch.Size(shape).numel() for shape in group.values()) for group in groups]
    return StepJob(config=config, device=device, encoder=encoder, engine=engine, average=average,
                   state=TrainState(engine, average, sizes, config.optimizer.round_steps),
                   timesteps=TimestepSampler(config.diffusion.time_bins, config.diffusion.time_loss_decay,
                                             config.diffusion.time_refresh_steps, device),
                   checkpoints=NoSaves(), watch=DivergenceWatch(list(engine.module.parts()), device),
                   batches=Batches(text, config, dist.get_rank(), dist.get_world_size(), 0))


def train(config: TrainConfig) -> dict[str, Any]:
    """Losses of all ranks together by step, and what one rank put into collectives in the last step."""
    job, losses, seen = step_job(config), [], []
    for step in range(STEPS):
        with Collectives() as collectives:
            train_step(job, step)
        seen = collectives.seen
        means = torch.stack(list(job.losses.values()))
        dist.all_reduce(means)
        losses.append((means / dist.get_world_size()).tolist())
    job.batches.close()
    job.engine.destroy()
    return {"losses": losses, "collectives": seen}


def one_rank(rank: int, world_size: int, folder: Path) -> None:
    """All cases; rank 0 writes down what it has seen."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    init_process_group(init_method=f"file://{folder}/rendezvous-{world_size}", rank=rank,
                       world_size=world_size)
    found = {case: train(config_of(folder, case)) for case in CASES}
    if rank == 0:
        (folder / f"{world_size}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads may hang at exit when a peer is gone first


if __name__ == "__main__":
    for name in _LATE:
        importlib.import_module(name)
    for num_ranks in NUM_RANKS:
        torch.multiprocessing.start_processes(one_rank, (num_ranks, Path(sys.argv[1])), nprocs=num_ranks,
                                              start_method="fork")
