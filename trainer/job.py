"""Everything one rank works with, built once: process group, data, models, engine, checkpoints, records."""

import contextlib
import gc
import io
import math
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist

from trainer.average import WeightAverage
from trainer.batches import Batches
from trainer.checkpoint import Checkpointer
from trainer.config import REDUCE_BUCKET_ELEMENTS, TokenEncoderConfig, TrainConfig, grad_accum_steps
from trainer.contract import ConfigError, Env
from trainer.data import Corpus, open_corpus
from trainer.diffusion import TimestepSampler
from trainer.divergence import DivergenceWatch
from trainer.evaluate import Evaluation
from trainer.fast.devices import has_triton
from trainer.gradients import flat_groups, parameter_groups
from trainer.host_copies import to_device
from trainer.identity import Identity
from trainer.interval import Gaps, Pace, Rates
from trainer.last_save import LastSave
from trainer.lease import SupersededError
from trainer.limit_watch import LimitWatch
from trainer.local_cache import cache_folder
from trainer.machine import cluster_info
from trainer.manifest import pinned_by_run
from trainer.metrics import OwnAttempt, Phase, PhaseClock, Progress, Recorder
from trainer.micro_batch import MicroBatchMemo, agreed_micro_batch
from trainer.model import LatentDiffusionLM
from trainer.notices import cloud_named
from trainer.preemption import StopSignal
from trainer.ranks import Shared, by_first_rank, meet, own_devices, require_same
from trainer.retention import Keep
from trainer.run_folder import RunFolder
from trainer.save_history import SaveHistory
from trainer.sign_of_life import SignOfLife
from trainer.start_parts import StartParts
from trainer.store import open_store
from trainer.token_encoder import TokenEncoder, open_token_encoder, open_tokenizer
from trainer.train_state import TrainState
from trainer.weight_sources import EncoderSource


@dataclass(kw_only=True)
class StepJob:
    """What one optimizer step works with: all that `trainer.step` reads and leaves behind.

    Attributes:
        batches: This rank's text, from the step where the attempt begins; None until that is known.
        losses: Of the newest step, this rank's means.
        grad_norms: Of the newest step, of each trained part, before clipping.
        data_wait_s: Waited for text since the last log row.
    """

    config: TrainConfig
    device: torch.device
    encoder: TokenEncoder
    engine: Any  # deepspeed.DeepSpeedEngine: the package has no types
    average: WeightAverage
    state: TrainState
    timesteps: TimestepSampler
    checkpoints: Checkpointer
    watch: DivergenceWatch
    batches: Batches | None = None
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    grad_norms: dict[str, torch.Tensor] = field(default_factory=dict)
    data_wait_s: float = 0.0

    @property
    def model(self) -> LatentDiffusionLM:
        """The module behind the engine."""
        return self.engine.module  # type: ignore[no-any-return]

    def next_batch(self) -> torch.Tensor:
        """Token ids of this rank's share of the next step: int64 (accumulation steps, B, L) on the device.

        Raises:
            StoreError: The text cannot be fetched.
        """
        assert self.batches is not None, "the attempt has begun"
        rows = self.batches.next()
        self.data_wait_s += self.batches.waited_s
        return to_device(torch.from_numpy(rows.astype("int64")), self.device)


@dataclass(kw_only=True)
class Job(StepJob):
    """Everything one rank works with. `recorder` and `limits` live on rank 0 only.

    Attributes:
        evaluation: The newest one of this attempt.
        saves: What has become of those of this attempt.
        stall_s: In which training stood still for the newest save.
        chance_steps: From one step after which a save by time may begin to the next; same on all ranks.
        owed_step: Its checkpoint was to be one that stays, and has not begun; None: there is no such step.
        is_late_told: It was said that the store is slower than the interval.
        micro_batch: Where its size was tried and not said; None: the recipe has said it.
    """

    folder: RunFolder
    limits: LimitWatch | None
    corpus: Corpus
    last_save: LastSave
    pace: Pace
    gaps: Gaps
    stop: StopSignal
    clock: PhaseClock
    progress: Progress
    recorder: Recorder | None
    life: SignOfLife
    start: StartParts
    saves: SaveHistory = field(default_factory=SaveHistory)
    stall_s: float = 0.0
    chance_steps: int = 1
    owed_step: int | None = None
    is_late_told: bool = False
    micro_batch: MicroBatchMemo | None = None
    stop_reason: str = ""
    evaluation: Evaluation | None = None

    @property
    def superseded(self) -> SupersededError | None:
        """Set on rank 0 once another attempt owns the run."""
        return self.recorder.superseded if self.recorder is not None else None

    def enter_together(self, phase: Phase) -> None:
        """Begin a phase on all ranks at once: one that waits for a slow peer must not look as if it hung."""
        meet()
        self.clock.enter(phase)

    @contextlib.contextmanager
    def together(self, phase: Phase) -> Iterator[None]:
        """Book the block on `phase`; all ranks enter and leave it at once."""
        meet()
        with self.clock.during(phase):
            yield
            meet()

    def wait_for_device(self) -> None:
        """Return when everything queued on the device is done: before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def say(self, text: str) -> None:
        """Print one line, once for all ranks."""
        say_once(text)


def say_once(text: str) -> None:
    """Print one line, on rank 0 only."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def build_job(config: TrainConfig, stop: StopSignal, life: SignOfLife | None = None,
              start: StartParts | None = None) -> Job:
    """Build this rank's Job. What is quick to refuse is looked at before what takes minutes to load.

    Args:
        config: What to train.
        stop: Heard by this process.
        life: What the node sees of this rank; None: no node looks.
        start: Told what has been built; None: begun now.

    Raises:
        ConfigError: Text, tokenizer and encoder do not fit together, the node has too few GPUs, or a
            library refuses a value.
        StoreError: The run folder, text or weights cannot be read.
    """
    try:
        return _build_job(config, stop, life or SignOfLife(), start or StartParts())
    except ValueError as error:
        raise refused_value(error) from error


def refused_value(error: ValueError) -> ConfigError:
    """What to say of a value that some library does not take: another machine would not take it either."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigError(f"a value is refused: {error}", place=f"{last.filename}:{last.lineno}",
                       fix="correct that value in the recipe, and launch again")


def _build_job(config: TrainConfig, stop: StopSignal, life: SignOfLife, start: StartParts) -> Job:
    store = open_store(os.environ[Env.STORE])
    folder = RunFolder(store, os.environ[Env.RUN_ID])
    own = OwnAttempt.find(folder, agreed_attempt_number())
    life.begin(own.attempt.number)
    start.before(own.attempt.billed_from)
    clock, progress = PhaseClock(own.attempt.billed_from, on_phase=life.enter), Progress(config.steps)
    recorder = None
    if dist.get_rank() == 0:
        recorder = own.recorder(folder, config.heartbeat_s, clock, progress)
    devices = own_devices(config.gpus_per_rank)
    device = devices[0]
    asked = agreed_encoder(config.token_encoder, folder)
    source = EncoderSource(asked, store, say_once)
    corpus = open_corpus(config, open_tokenizer(source.tokenizer()), store, cache_folder())
    start.done("text")
    encoder = open_token_encoder(asked, source, device, config.data.sequence_length,
                                 encoder_device=devices[-1])
    require_same({"data.source": Shared("the text", corpus.fingerprint),
                  "token_encoder.name": Shared("the token encoder", encoder.identity.key)})
    say_once(encoder.summary())
    config, micro_batch = agreed_micro_batch(
        config, folder, encoder, corpus.heldout_NL, lambda: build_model(config, encoder, corpus), device,
        say_once, start.done)
    engine = build_engine(config, build_model(config, encoder, corpus).to(device))
    average = WeightAverage(engine, config.optimizer.ema_decay)
    groups = flat_groups(engine.module, engine.module.parts())
    state = TrainState(engine, average, [sum(map(math.prod, group.values())) for group in groups],
                       config.optimizer.round_steps)
    checkpoints = Checkpointer(
        folder, own.attempt.number, state, engine.module, groups, device,
        keep=Keep(config.checkpoint.keep, config.checkpoint.stays),
        identity=Identity(data_fingerprint=corpus.fingerprint, encoder=encoder.identity,
                          model=model_arguments(encoder, engine.module), precision=config.precision),
        # Else rows could be lost whose steps are not trained again.
        before_commit=recorder.write if recorder else lambda: None, told_step=own.durable_step,
        pace=own.pace)
    start.done("model")
    cloud = cloud_named(cluster_info(os.environ).get("cloud", "") if recorder else "")  # rank 0 alone reckons
    # By time, saves are of steps whose state is rounded, as a rule, and as that of step 0 is.
    pace = Pace(config.checkpoint, Rates.of_environment(), own.history(), state.saved_bytes(0), own.pace)
    gaps = Gaps(config)
    limits = LimitWatch(own, lambda: (gaps.ahead_s + pace.save.seconds, int(pace.save.num_bytes)))
    return Job(
        config=config, folder=folder, limits=limits if recorder else None, device=device,
        corpus=corpus, encoder=encoder, engine=engine, average=average, stop=stop, clock=clock,
        progress=progress, recorder=recorder, life=life, start=start,
        watch=DivergenceWatch(list(engine.module.parts()), device),
        timesteps=TimestepSampler(config.diffusion.time_bins, config.diffusion.time_loss_decay,
                                  config.diffusion.time_refresh_steps, device),
        state=state, checkpoints=checkpoints, last_save=LastSave(cloud, checkpoints, state.saved_bytes),
        pace=pace, gaps=gaps, micro_batch=micro_batch,
    )


def agreed_attempt_number() -> int:
    """The number that the first node has claimed, on every rank of every node."""
    number = [os.environ.get(Env.ATTEMPT)]
    dist.broadcast_object_list(number, src=0)
    return int(number[0] or 0)


def agreed_encoder(config: TokenEncoderConfig, folder: RunFolder) -> TokenEncoderConfig:
    """The encoder's config on every rank, at the commit that this run has begun with."""
    return by_first_rank(lambda: pinned_by_run(config, folder))


def model_arguments(encoder: TokenEncoder, model: LatentDiffusionLM) -> dict[str, int]:
    """What a manifest says so that the model can be built, and used, without its encoder."""
    return {"hidden_size": encoder.hidden_size, "vocab_size": encoder.vocab_size,
            "num_seen_ids": 0 if model.token_ids is None else len(model.token_ids),
            "num_tokens": encoder.num_tokens, "end_of_text_id": encoder.end_of_text_id}


def build_model(config: TrainConfig, encoder: TokenEncoder, corpus: Corpus) -> LatentDiffusionLM:
    """The four trained parts, from the run's seed."""
    torch.manual_seed(config.seed)
    seen_ids = corpus.seen_ids if config.model.head_vocabulary == "seen" else None
    covered = None if seen_ids is None else torch.from_numpy(seen_ids.astype("int64"))
    return LatentDiffusionLM(config, encoder.hidden_size, covered, encoder.vocab_size)


@contextlib.contextmanager
def _no_compiler() -> Iterator[None]:
    """Leave functions as they are where DeepSpeed would have torch compile them.

    It decorates those of an optimizer that is not ours, and that alone loads the whole compiler: 1.3 s of a
    processor at every start of a rank (measured, recipes/LOG.md).
    """
    def as_it_is(function: Any = None, **_: Any) -> Any:
        return as_it_is if function is None else function

    compiles, torch.compile = torch.compile, as_it_is
    try:
        yield
    finally:
        torch.compile = compiles


@contextlib.contextmanager
def _nothing_to_collect() -> Iterator[None]:
    """Leave what is loaded out of collections of garbage.

    DeepSpeed's optimizer for bf16 asks for 18 of them to print the machine's memory: 4 s of a processor with
    0.4 M objects, 0.05 s so (measured, recipes/LOG.md).
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def build_engine(config: TrainConfig, model: LatentDiffusionLM) -> Any:
    """DeepSpeed's engine around the trained parts, with AdamW. A collective."""
    import deepspeed

    if config.compile and has_triton(next(model.parameters()).device):
        model.compile_for_training()
    settings = config.optimizer
    optimizer = torch.optim.AdamW(parameter_groups(model.parts(), settings.weight_decay),
                                  lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
    # Its bf16 optimizer prints the machine's memory, several times and unasked; errors are exceptions.
    with contextlib.redirect_stdout(io.StringIO()), _no_compiler(), _nothing_to_collect():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, dist_init_required=False,
                                          config=deepspeed_config(config, dist.get_world_size()))
    return engine


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`. The optimizer itself is handed over as an object.

    Master weights, accumulated gradients and reductions are float32 in every stage and precision.
    """
    is_bf16 = config.precision == "bf16"
    # DeepSpeed's own norm and clipping are off: `trainer.gradients` clips part by part. The optimizer
    # that it takes for bf16 in stage 1 cannot go without the norm.
    zero = {"stage": config.zero_stage, "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
            "compute_grad_norm": is_bf16 and config.zero_stage == 1}
    return {
        "train_batch_size": config.global_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": grad_accum_steps(config, world_size),
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        # A foreign optimizer object under ZeRO needs this word.
        "zero_allow_untested_optimizer": True,
        # A gradient that is not finite ends the run; DeepSpeed would ask for it, and wait, at every step.
        "bf16": {"enabled": is_bf16, "immediate_grad_update": True, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 10**9,
        # Its own speed, which nobody reads, and for which it waits for the device in every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
