"""The second document of a task: text from the trained model, its scores, and tokens per second.

Throughput counts everything from seed to token ids in device memory: noise, denoiser passes, latent
decoder, token decoder, vocabulary head, argmax. The token encoder is not part of generation and is not
loaded here: scores and reconstructions are those that the end of training has left.
"""

import os
import signal
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch
from pydantic import BaseModel, ConfigDict

from trainer.averaged_weights import load_averaged_weights
from trainer.bench_device import gpu_state
from trainer.bench_result import Report
from trainer.bench_table import screen
from trainer.bench_trained import Circumstances, Throughput, measure
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, RankEnd
from trainer.evaluate import Evaluation
from trainer.generate import load_generator
from trainer.limit_watch import LimitWatch
from trainer.manifest import CheckpointError, pinned
from trainer.metrics import OwnAttempt, PhaseClock, Progress, Recorder
from trainer.node_watch import end_with_node
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import open_store
from trainer.token_encoder import load_tokenizer


class BenchResult(BaseModel):
    """`bench/result.json`."""

    model_config = ConfigDict(frozen=True)
    step: int
    scores: dict[str, float]
    reconstructions: list[tuple[str, str]]
    samples: list[str]
    throughput: Throughput


def run_bench(config: TrainConfig, folder: RunFolder, device: torch.device,
              told: Circumstances) -> tuple[BenchResult, Report]:
    """Sample and time the averaged weights of the newest checkpoint; add what training has scored.

    Args:
        config: As it was trained.
        folder: The run.
        device: Where to generate.
        told: Price, limit, and what else the figures stand beside.

    Returns:
        What the launcher shows, and the whole benchmark behind its throughput.

    Raises:
        CheckpointError: The run has no usable checkpoint, or its training has not ended.
        ConfigError: The tokenizer is not there.
    """
    manifest, weights = load_averaged_weights(folder, lambda text: print(text, flush=True))
    evaluation = scores_of(folder, manifest.step)
    tokenizer = load_tokenizer(pinned(config.token_encoder, manifest), folder.store)
    generator = load_generator(config, manifest, weights, torch.device("cpu"), tokenizer)
    # It makes latents of texts, never texts: 32 GB have no room for it beside both paths of seed-27b.
    del generator.model.encoder
    generator.model.to(device)
    samples = generator.texts(config.sampling.num_samples, config.seed)  # first: times may end in an error
    report, throughput = measure(generator, folder.run_id, manifest.step, told)
    result = BenchResult(
        step=manifest.step, scores=evaluation.scores, reconstructions=evaluation.reconstructions,
        samples=samples, throughput=throughput)
    return result, report


def scores_of(folder: RunFolder, step: int) -> Evaluation:
    """What training has scored at its end; nothing where a limit was reached before its last machine could.

    Raises:
        CheckpointError: Training has not ended.
    """
    found = folder.find(Name.EVALUATION, Evaluation)
    if found and found.step == step:
        return found
    if folder.find(Name.OUTCOME, RunOutcome) is None:
        raise CheckpointError("the training of this run has not ended: it has left no scores",
                              place=f"{folder.url}/{Name.EVALUATION}", fix="`ldlm resume RUN`")
    print(f"warning: training ended before it could score step {step}: there are no scores", flush=True)
    return Evaluation(step=step, scores={}, reconstructions=[])


def main() -> None:
    """Run the benchmark of a finished training document and leave the result in the run folder."""
    ends = Path(os.environ[Env.END_FOLDER])
    end_with_node(ends)
    leave_when_asked(ends)
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    try:
        end = bench(config)
    except LdlmError as error:
        end = RankEnd(error.node_exit_code, str(error))
    except Exception as error:
        traceback.print_exc()
        end = RankEnd(1, f"{type(error).__name__}: {error}")
    end.write(ends, 0)


def bench(config: TrainConfig) -> RankEnd:
    """Run the benchmark under heartbeats and write its result."""
    folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
    own = OwnAttempt.find(folder, int(os.environ[Env.ATTEMPT]))
    recorder = open_recorder(config, folder, own)
    limits, until = LimitWatch(own, lambda: (0.0, 0)), os.environ.get(Env.BENCH_UNTIL)

    def limit() -> str | None:
        if until and datetime.now(UTC) >= datetime.fromisoformat(until):
            return "its own time is over (limits.bench_hours)"
        found = limits.look()
        return found.words if found and found.is_reached else None

    try:
        told = circumstances(own, limit)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result, report = run_bench(config, folder, device, told)
    finally:
        recorder.close()
    print("\n".join(screen(report)), flush=True)
    folder.write(Name.BENCH_REPORT, report)
    folder.write(Name.BENCH, result)  # last: with it the benchmark is done
    speed = result.throughput
    return RankEnd(0, f"benchmark: {speed.tokens_per_s:,.0f} tokens/s on {speed.device}, "
                      f"{speed.denoiser_steps} steps, batch 1, {speed.tokens} tokens")


def circumstances(own: OwnAttempt, limit: Callable[[], str | None]) -> Circumstances:
    """What the figures of this attempt stand beside. Call it before CUDA is touched."""
    prices = [own.attempt.price_usd_per_hour, *(later.price_usd_per_hour for later in own.live_price.seen())]
    shas = [event.detail["git_sha"] for event in own.events if event.detail.get("git_sha")]
    return Circumstances(limit, price_usd_per_hour=prices[-1] or None,
                         expected_gpu=os.environ.get(Env.GPU, "").partition(":")[0] or None,
                         before=gpu_state(), git_sha=shas[-1] if shas else None)


def leave_when_asked(ends: Path) -> None:
    """On SIGTERM, end at once: a benchmark has nothing to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        RankEnd(ExitCode.RECOVER, "asked to stop; the benchmark begins anew next time").write(ends, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    RankEnd.listen(ends, os.getpid())


def open_recorder(config: TrainConfig, folder: RunFolder, own: OwnAttempt) -> Recorder:
    """Heartbeats of this attempt, all of its time booked on the benchmark from here on."""
    step, clock = own.durable_step, PhaseClock(own.attempt.billed_from)
    clock.enter("bench_s")
    return own.recorder(folder, config.heartbeat_s, clock, Progress(
        total_steps=config.steps, step=step, durable_step=step, resumed_from_step=step))
