"""The second document of a task: text from the trained model, its scores, and tokens per second.

Throughput counts everything from seed to token ids in device memory: noise, denoiser passes, latent
decoder, token decoder, vocabulary head, argmax. The token encoder is not part of generation; it is
loaded here only to score reconstructions of held-out text.
"""

import os
import platform
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, RankEnd
from trainer.data import prepare
from trainer.evaluate import evaluate
from trainer.generate import decode, sample_latents, to_text
from trainer.job import Limits, build_model, cache_folder
from trainer.manifest import load_averaged_weights
from trainer.metrics import PhaseClock, Progress, Recorder
from trainer.model import LatentDiffusionLM
from trainer.preemption import over_limit
from trainer.run_folder import RunFolder, spent_usd
from trainer.store import open_store
from trainer.token_encoder import TokenEncoder, load_token_encoder

_WARM_UP_GENERATIONS = 3
_NUM_RECONSTRUCTIONS = 3


class Throughput(BaseModel):
    """Generation speed at batch 1, over `num_generations` timed generations after warm-up."""

    model_config = ConfigDict(frozen=True)
    device: str
    is_rtx5090: bool
    dtype: str
    torch_version: str
    denoiser_steps: int
    tokens: int
    num_generations: int
    seconds_p10: float
    seconds_median: float
    seconds_p90: float
    tokens_per_s: float


class BenchResult(BaseModel):
    """`bench/result.json`."""

    model_config = ConfigDict(frozen=True)
    step: int
    scores: dict[str, float]
    reconstructions: list[tuple[str, str]]
    samples: list[str]
    throughput: Throughput


def run_bench(config: TrainConfig, folder: RunFolder, device: torch.device,
              limit: Callable[[], str | None]) -> BenchResult:
    """Score, sample and time the averaged weights of the newest checkpoint.

    Args:
        config: As it was trained.
        folder: The run.
        device: Where to generate.
        limit: Names the limit of the run that has been reached, or None.

    Raises:
        CheckpointError: The run has no usable checkpoint.
        ConfigError: Text or encoder are not there.
    """
    manifest, weights = load_averaged_weights(folder, lambda text: print(text, flush=True))
    encoder = load_token_encoder(config.token_encoder, device, config.data.sequence_length)
    corpus = prepare(config, encoder.tokenizer, cache_folder())
    if corpus.fingerprint != manifest.data_fingerprint:
        print("warning: the text here is not the one of the training: held-out scores may be on text that "
              "was trained on", flush=True)
    seen_ids = weights["token_ids"].numpy() if "token_ids" in weights else corpus.seen_ids
    model = build_model(config, encoder, seen_ids).to(device).eval()
    model.load_state_dict(weights)
    held_out = corpus.heldout_NL[: config.evaluate_sequences]
    scores = evaluate(model, encoder, held_out, seed=config.seed, batch_size=config.micro_batch_size)
    throughput = measure(model, config, device, limit)
    samples = generate(model, config.sampling.num_samples, config.sampling.steps, config.seed)
    return BenchResult(
        step=manifest.step, scores=scores, throughput=throughput,
        reconstructions=reconstruct(model, encoder, held_out[:_NUM_RECONSTRUCTIONS]),
        samples=to_text(encoder.tokenizer, samples, encoder.end_of_text_id))


@torch.no_grad()
def reconstruct(model: LatentDiffusionLM, encoder: TokenEncoder, rows: Any) -> list[tuple[str, str]]:
    """Held-out text and what latent encoder and decoders make of it, as pairs."""
    tokens_BL = torch.from_numpy(rows.astype("int64")).to(model.hidden_mean.device)
    z_BKD = model.encoder(model.normalise(encoder.hidden_states(tokens_BL)))
    pairs = zip(tokens_BL, decode(model, z_BKD), strict=True)
    return [(encoder.tokenizer.decode(truth), encoder.tokenizer.decode(guess)) for truth, guess in pairs]


def generate(model: LatentDiffusionLM, num: int, steps: int, seed: int) -> torch.Tensor:
    """Token ids of `num` texts: the whole way from a seed to tokens in device memory."""
    generator = torch.Generator(model.hidden_mean.device).manual_seed(seed)
    return decode(model, sample_latents(model, num, steps, generator))


def measure(model: LatentDiffusionLM, config: TrainConfig, device: torch.device,
            limit: Callable[[], str | None]) -> Throughput:
    """Time generations one by one, each from another seed; fewer than asked for at a limit of the run."""
    seconds: list[float] = []
    for index in range(_WARM_UP_GENERATIONS + config.sampling.bench_generations):
        if seconds and (reached := limit()):
            print(f"warning: timed only {len(seconds)} generations: {reached}", flush=True)
            break
        _wait_for(device)
        began = time.perf_counter()
        generate(model, 1, config.sampling.steps, seed=index)
        _wait_for(device)
        if index >= _WARM_UP_GENERATIONS:
            seconds.append(time.perf_counter() - began)
    # Inclusive: the other method extrapolates, below zero for a few scattered values.
    deciles = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else seconds * 9
    name = device_name(device)
    return Throughput(
        device=name, is_rtx5090="RTX 5090" in name, dtype=str(next(model.parameters()).dtype),
        torch_version=torch.__version__, denoiser_steps=config.sampling.steps,
        tokens=config.data.sequence_length, num_generations=len(seconds), seconds_p10=deciles[0],
        seconds_median=statistics.median(seconds), seconds_p90=deciles[-1],
        tokens_per_s=config.data.sequence_length / statistics.median(seconds))


def device_name(device: torch.device) -> str:
    """What ran the benchmark, as its driver calls it; a CPU with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the benchmark of a finished training document and leave the result in the run folder."""
    ends = Path(os.environ[Env.END_FOLDER])
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
    recorder = open_recorder(config, folder, int(os.environ[Env.ATTEMPT]))
    limits = Limits.from_environment()

    def limit() -> str | None:
        now = datetime.now(UTC)
        return over_limit(now, recorder.spent_usd(now), deadline=limits.deadline,
                          max_cost_usd=limits.max_cost_usd, reserve_usd=Decimal(0))

    try:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        result = run_bench(config, folder, device, limit)
    finally:
        recorder.close()
    folder.write(Name.BENCH, result)
    speed = result.throughput
    return RankEnd(0, f"benchmark: {speed.tokens_per_s:,.0f} tokens/s on {speed.device}, "
                      f"{speed.denoiser_steps} steps, batch 1, {speed.tokens} tokens")


def leave_when_asked(ends: Path) -> None:
    """On SIGTERM, end at once: a benchmark has nothing to save."""

    def leave(number: int, frame: FrameType | None) -> None:
        RankEnd(ExitCode.RECOVER, "asked to stop; the benchmark begins anew next time").write(ends, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    RankEnd.listen(ends, os.getpid())


def open_recorder(config: TrainConfig, folder: RunFolder, number: int) -> Recorder:
    """Heartbeats of this attempt, all of its time booked on the benchmark from here on."""
    attempts = folder.attempts()
    attempt = next(files.attempt for files in attempts if files.attempt.number == number)
    earlier = [files for files in attempts if files.attempt.number < number]
    beats = [files.heartbeat for files in earlier if files.heartbeat]
    step = max((beat.durable_step for beat in beats), default=0)
    clock = PhaseClock(attempt.billed_from)
    clock.enter("bench_s")
    return Recorder(folder, attempt, interval_s=config.heartbeat_s, clock=clock,
                    spent_before_usd=spent_usd(earlier, now=attempt.billed_from),
                    progress=Progress(total_steps=config.steps, step=step, durable_step=step,
                                      resumed_from_step=step))


if __name__ == "__main__":
    main()
