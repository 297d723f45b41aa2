"""Everything one rank works with, built once: process group, data, models, engine, checkpoints, records."""

import copy
import os
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from trainer.checkpoint import Checkpointer
from trainer.config import TrainConfig, deepspeed_config
from trainer.contract import Env
from trainer.data import Corpus, prepare
from trainer.diffusion import TimestepSampler
from trainer.metrics import PhaseClock, Progress, Recorder
from trainer.model import LatentDiffusionLM
from trainer.preemption import StopSignal
from trainer.run_folder import Attempt, RunFolder, spent_usd
from trainer.store import open_store
from trainer.token_encoder import TokenEncoder, load_token_encoder


@dataclass(frozen=True)
class Limits:
    """Where the run stops itself. None: no such limit."""

    deadline: datetime | None
    max_cost_usd: Decimal | None
    bench_reserve_usd: Decimal

    @classmethod
    def from_environment(cls) -> "Limits":
        """Read what the task says."""
        deadline, cap = os.environ.get(Env.DEADLINE), os.environ.get(Env.MAX_COST)
        return cls(
            deadline=datetime.fromisoformat(deadline) if deadline else None,
            max_cost_usd=Decimal(cap) if cap else None,
            bench_reserve_usd=Decimal(os.environ.get(Env.BENCH_RESERVE) or 0),
        )


@dataclass
class Job:
    """Everything one rank works with. `recorder` and `ema` live on rank 0 only.

    Attributes:
        losses: Of the newest step, this rank's means.
        kept_by_step: Training and evaluation seconds at each snapshot that is not known durable yet.
    """

    config: TrainConfig
    folder: RunFolder
    attempt: Attempt
    limits: Limits
    device: torch.device
    corpus: Corpus
    encoder: TokenEncoder
    engine: Any  # deepspeed.DeepSpeedEngine: the package has no types
    ema: LatentDiffusionLM | None
    timesteps: TimestepSampler
    checkpoints: Checkpointer
    stop: StopSignal
    clock: PhaseClock
    progress: Progress
    recorder: Recorder | None
    failed_saves: int = 0
    saved_at_s: float = 0.0
    stop_reason: str = ""
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    kept_by_step: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def model(self) -> LatentDiffusionLM:
        """The module behind the engine."""
        return self.engine.module  # type: ignore[no-any-return]

    def say(self, text: str) -> None:
        """Print one line, once for all ranks."""
        if dist.get_rank() == 0:
            print(text, flush=True)


def build_job(config: TrainConfig, stop: StopSignal) -> Job:
    """Build this rank's Job.

    Raises:
        ConfigError: Text, tokenizer and encoder do not fit together.
        StoreError: The run folder cannot be read.
    """
    folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
    attempts = folder.attempts()
    number = agreed_attempt_number()
    attempt = next(files.attempt for files in attempts if files.attempt.number == number)
    clock, progress = PhaseClock(attempt.billed_from), Progress(total_steps=config.steps)
    recorder = None
    if dist.get_rank() == 0:
        earlier = [files for files in attempts if files.attempt.number < attempt.number]
        recorder = Recorder(folder, attempt, interval_s=config.heartbeat_s, clock=clock, progress=progress,
                            spent_before_usd=spent_usd(earlier, now=attempt.billed_from))
    device = _own_device()
    encoder = load_token_encoder(config.token_encoder, device, config.data.sequence_length)
    corpus = prepare(config, encoder.tokenizer, cache_folder())
    engine = _build_engine(config, build_model(config, encoder, corpus.seen_ids).to(device))
    ema = copy.deepcopy(engine.module).float().eval().requires_grad_(False) if dist.get_rank() == 0 else None
    return Job(
        config=config, folder=folder, attempt=attempt, limits=Limits.from_environment(), device=device,
        corpus=corpus, encoder=encoder, engine=engine, ema=ema, stop=stop, clock=clock, progress=progress,
        recorder=recorder,
        timesteps=TimestepSampler(config.diffusion.time_bins, config.diffusion.time_loss_decay,
                                  config.diffusion.time_refresh_steps),
        checkpoints=Checkpointer(folder, attempt.number, engine, keep=config.checkpoint.keep,
                                 data_fingerprint=corpus.fingerprint, model=model_arguments(encoder, corpus)),
    )


def agreed_attempt_number() -> int:
    """The number that the first node has claimed, on every rank of every node."""
    number = [os.environ.get(Env.ATTEMPT)]
    dist.broadcast_object_list(number, src=0)
    return int(number[0] or 0)


def cache_folder() -> Path:
    """Where tokenised text is kept between attempts on one machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldlm"


def model_arguments(encoder: TokenEncoder, corpus: Corpus) -> dict[str, int]:
    """What a manifest needs to say so that the model can be built without its encoder."""
    return {"hidden_size": encoder.hidden_size, "vocab_size": encoder.vocab_size,
            "num_seen_ids": len(corpus.seen_ids), "end_of_text_id": encoder.end_of_text_id}


def build_model(config: TrainConfig, encoder: TokenEncoder, seen_ids: np.ndarray) -> LatentDiffusionLM:
    """The four trained parts, from the run's seed. `seen_ids`: see `Corpus`."""
    torch.manual_seed(config.seed)
    covered = torch.from_numpy(seen_ids.astype("int64")) if config.model.head_vocabulary == "seen" else None
    return LatentDiffusionLM(config, encoder.hidden_size, covered, encoder.vocab_size)


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _build_engine(config: TrainConfig, model: LatentDiffusionLM) -> Any:
    import deepspeed

    decay = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    plain = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate, betas=settings.betas, eps=settings.eps,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, dist_init_required=False,
                                      config=deepspeed_config(config, dist.get_world_size()))
    return engine
