"""How long a way of generating takes: one generation after the other, each from another seed."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from trainer.bench_limits import timed_s
from trainer.bench_paths import Path
from trainer.generate import Prompt

WARM_UP_GENERATIONS = 3
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # of files, too: a NaN is never slower


class Spread(BaseModel):
    """Seconds of something that was done several times, and its speed by their median."""

    model_config = ConfigDict(frozen=True)
    seconds_p10: _Positive
    seconds_median: _Positive
    seconds_p90: _Positive
    tokens_per_s: _Positive


class Timed(Spread):
    """Seconds of whole generations, from a seed to token ids in device memory."""

    num_generations: PositiveInt


def spread(seconds: Sequence[float], num_tokens: int) -> Spread:
    """Percentiles of at least one time, each for so many tokens."""
    # Inclusive: the other method extrapolates, below zero for a few scattered values.
    deciles = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [*seconds] * 9
    median = statistics.median(seconds)
    return Spread(seconds_p10=deciles[0], seconds_median=median, seconds_p90=deciles[-1],
                  tokens_per_s=num_tokens / median)


def summary(seconds: Sequence[float], num_tokens: int) -> Timed:
    """Percentiles of at least one generation of so many tokens, all of its batch together."""
    return Timed(num_generations=len(seconds), **spread(seconds, num_tokens).model_dump())


def time_path(path: Path, batch: int, length: int, num: int, device: torch.device,
              is_over: Callable[[], bool], prompt: Prompt | None = None) -> Timed:
    """Time at most `num` generations of a batch after warm-up, at least one.

    Args:
        path: What generates.
        batch: Texts of each generation.
        length: Tokens of each text.
        num: Generations.
        device: Where.
        is_over: True once time is up.
        prompt: Which each text begins with.
    """
    seconds = list[float]()
    for seed in range(WARM_UP_GENERATIONS + num):
        if len(seconds) > WARM_UP_GENERATIONS and is_over():
            break
        seconds.append(timed_s(partial(path.tokens, batch, seed, prompt), device))
    return summary(seconds[WARM_UP_GENERATIONS:], batch * length)


def over_after(seconds: float) -> Callable[[], bool]:
    """Turns true so many seconds from now."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until
