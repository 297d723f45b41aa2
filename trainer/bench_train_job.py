"""The trainer's own step without a run: one rank, random weights, no store, no checkpoints."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from trainer.average import WeightAverage
from trainer.batches import Batches
from trainer.bench_models import shape_of
from trainer.bench_train_cases import TrainCase, config_of
from trainer.bench_train_encoder import RandomText
from trainer.diffusion import TimestepSampler
from trainer.divergence import DivergenceWatch
from trainer.gradients import flat_groups
from trainer.hidden_statistics import measure_statistics
from trainer.job import StepJob, build_engine, build_model
from trainer.ranks import init_process_group
from trainer.step import train_step
from trainer.train_state import TrainState

# What torchrun would say; DeepSpeed reads it.
_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


class _NoSaves:
    """Checkpoints of a run that keeps none."""

    def settle(self) -> None:
        """Nothing is being copied."""


@contextmanager
def as_rank_of_torchrun() -> Iterator[None]:
    """Within, this process is the rank that torchrun has started it as."""
    init_process_group()
    try:
        yield
    finally:
        _leave()


@contextmanager
def as_first_rank(num_ranks: int) -> Iterator[None]:
    """Within, this process is rank 0 of so many. Others than one are imagined.

    What this rank would hear of imagined ones is what it has said itself, at once: it computes as much and
    holds as much as it would, on weights that mean nothing, and communication takes no time.
    """
    told = {**_ENVIRONMENT, "WORLD_SIZE": str(num_ranks)}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        if num_ranks == 1:
            init_process_group(store=dist.HashStore(), rank=0, world_size=1)
        else:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
        yield
    finally:
        _leave()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _leave() -> None:
    """DeepSpeed, where it was used, has groups of its own to forget."""
    from deepspeed import comm

    if comm.is_initialized():
        comm.destroy_process_group()
    elif dist.is_initialized():
        dist.destroy_process_group()


def build_step(case: TrainCase, encoder: Any, seed: int, device: torch.device) -> StepJob:
    """Everything that a case's step works with. Weights are drawn on the device.

    Args:
        case: What to train.
        encoder: A `TokenEncoder`, loaded, or what stands in for one.
        seed: Of tokens; weights are the profile's own.
        device: Where.
    """
    config = config_of(case)
    text: Any = RandomText(config, shape_of(config), seed)
    with torch.device(device):
        model = build_model(config, encoder, text)
    engine = build_engine(config, model.to(device))
    _normalise(engine.module, encoder, text)
    average = WeightAverage(engine, config.optimizer.ema_decay)
    groups = flat_groups(engine.module, engine.module.parts())
    sizes = [sum(int(np.prod(shape)) for shape in group.values()) for group in groups]
    return StepJob(
        config=config, device=device, encoder=encoder, engine=engine, average=average,
        state=TrainState(engine, average, sizes, config.optimizer.round_steps),
        timesteps=TimestepSampler(config.diffusion.time_bins, config.diffusion.time_loss_decay,
                                  config.diffusion.time_refresh_steps, device),
        checkpoints=_NoSaves(),  # type: ignore[arg-type]
        watch=DivergenceWatch(list(engine.module.parts()), device),
        batches=Batches(text, config, dist.get_rank(), dist.get_world_size(), 0))


def _normalise(model: Any, encoder: Any, text: RandomText) -> None:
    """Fix what normalises hidden states by those of one micro-batch."""
    config = model.config
    rows_NL = text.rows(np.arange(config.micro_batch_size))
    found = measure_statistics(encoder, rows_NL, config.token_encoder.statistics, config.token_encoder.clip,
                               config.micro_batch_size)
    model.set_statistics(found.mean_D, found.std_D)


def end_step(job: StepJob) -> None:
    """Let go of everything: else the hooks on its gradients would hold an engine, and all that it has."""
    assert job.batches is not None
    job.batches.close()
    job.engine.destroy()


def take_step(job: StepJob, step: int) -> None:
    """One step as the training loop takes it, from 0."""
    job.state.round(step)
    train_step(job, step)  # type: ignore[arg-type]
