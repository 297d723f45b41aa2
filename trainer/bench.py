"""The second document of a task: text from the trained model, its scores, and tokens per second.

`python -m trainer.bench generate` is a command of its own, without a run (`trainer/bench_command.py`).

Throughput counts everything from seed to token ids in device memory: noise, denoiser passes, latent
decoder, token decoder, vocabulary head, argmax. The token encoder is not part of generation and is not
loaded here: scores and reconstructions are those that the end of training has left.
"""

import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import torch
from pydantic import BaseModel, ConfigDict

from trainer.averaged_weights import load_averaged_weights
from trainer.bench_device import device_name
from trainer.config import TrainConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, RankEnd
from trainer.evaluate import Evaluation
from trainer.generate import Generator, Prompt, load_generator
from trainer.limit_watch import LimitWatch
from trainer.manifest import CheckpointError, pinned
from trainer.metrics import OwnAttempt, PhaseClock, Progress, Recorder
from trainer.node_watch import end_with_node
from trainer.run_folder import RunFolder, RunOutcome
from trainer.sizes import longest_prompt
from trainer.store import open_store
from trainer.token_encoder import load_tokenizer

_WARM_UP_GENERATIONS = 3


class Throughput(BaseModel):
    """Generation speed at batch 1, over `num_generations` timed generations after warm-up.

    Attributes:
        prompt_tokens: Of the prompt behind `prompted_tokens_per_s`; 0 for a model that reads none.
        prompted_tokens_per_s: The same with a prompt: all tokens of the sequence, the prompt's among them.
    """

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
    prompt_tokens: int
    prompted_tokens_per_s: float | None


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
    """Sample and time the averaged weights of the newest checkpoint; add what training has scored.

    Args:
        config: As it was trained.
        folder: The run.
        device: Where to generate.
        limit: Names the limit of the run that has been reached, or None.

    Raises:
        CheckpointError: The run has no usable checkpoint, or its training has not ended.
        ConfigError: The tokenizer is not there.
    """
    manifest, weights = load_averaged_weights(folder, lambda text: print(text, flush=True))
    evaluation = scores_of(folder, manifest.step)
    tokenizer = load_tokenizer(pinned(config.token_encoder, manifest), folder.store)
    generator = load_generator(config, manifest, weights, device, tokenizer)
    throughput = measure(generator, limit)
    return BenchResult(
        step=manifest.step, scores=evaluation.scores, reconstructions=evaluation.reconstructions,
        samples=generator.texts(config.sampling.num_samples, config.seed), throughput=throughput)


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


def measure(generator: Generator, limit: Callable[[], str | None]) -> Throughput:
    """Time generations one by one, each from another seed; fewer than asked for at a limit of the run.

    A model that reads prompts is timed both without one and with the longest that it reads, whose hidden
    states are given: the token encoder is not part of it.
    """
    config, device = generator.config, generator.model.hidden_mean.device
    seconds = _time(generator, None, limit)
    prompt = longest_dummy_prompt(generator) if config.model.prompt else None
    prompted = statistics.median(_time(generator, prompt, limit)) if prompt else None
    # Inclusive: the other method extrapolates, below zero for a few scattered values.
    deciles = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else seconds * 9
    name, length = device_name(device), config.data.sequence_length
    return Throughput(
        device=name, is_rtx5090="RTX 5090" in name, dtype=str(next(generator.model.parameters()).dtype),
        torch_version=torch.__version__, denoiser_steps=config.sampling.steps,
        tokens=length, num_generations=len(seconds), seconds_p10=deciles[0],
        seconds_median=statistics.median(seconds), seconds_p90=deciles[-1],
        tokens_per_s=length / statistics.median(seconds),
        prompt_tokens=prompt.tokens_BP.shape[1] if prompt else 0,
        prompted_tokens_per_s=length / prompted if prompted else None)


def longest_dummy_prompt(generator: Generator) -> Prompt:
    """A prompt of the longest kind, of nothing in particular: only its size decides the time."""
    model, num = generator.model, longest_prompt(generator.config)
    device = model.hidden_mean.device
    hidden_1PD = torch.randn(1, num, len(model.hidden_mean), device=device)
    return Prompt(torch.zeros(1, num, dtype=torch.int64, device=device), hidden_1PD,
                  torch.tensor([num], device=device))


def _time(generator: Generator, prompt: Prompt | None, limit: Callable[[], str | None]) -> list[float]:
    """Seconds of each timed generation, at least one."""
    device, seconds = generator.model.hidden_mean.device, list[float]()
    for index in range(_WARM_UP_GENERATIONS + generator.config.sampling.bench_generations):
        if seconds and (reached := limit()):
            print(f"warning: timed only {len(seconds)} generations: {reached}", flush=True)
            break
        _wait_for(device)
        began = time.perf_counter()
        generator.tokens(1, seed=index, prompt=prompt)
        _wait_for(device)
        if index >= _WARM_UP_GENERATIONS:
            seconds.append(time.perf_counter() - began)
    return seconds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def open_recorder(config: TrainConfig, folder: RunFolder, own: OwnAttempt) -> Recorder:
    """Heartbeats of this attempt, all of its time booked on the benchmark from here on."""
    step, clock = own.durable_step, PhaseClock(own.attempt.billed_from)
    clock.enter("bench_s")
    return own.recorder(folder, config.heartbeat_s, clock, Progress(
        total_steps=config.steps, step=step, durable_step=step, resumed_from_step=step))


if __name__ == "__main__":
    if sys.argv[1:2] == ["generate"]:
        from trainer.bench_command import main as generate

        sys.exit(generate(sys.argv[2:]))
    main()
