"""Text of a model at several numbers of steps and temperatures: how good it is, and how fast it comes.

Shapes: N texts, L tokens.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from trainer.bench_timing import over_after
from trainer.generate import Generator, to_text
from trainer.judge_rows import JudgeRows, RowJudge

_FEWEST, _MOST, _MOST_S = 3, 50, 1.0  # generations at batch 1, and when the fewest are enough


class Source(Protocol):
    """What writes rows of tokens."""

    def tokens(self, num: int, seed: int) -> Tensor:
        """Token ids (num, L)."""


def sample_frontier(generator: Generator, steps: Sequence[int], temperatures: Sequence[float], num: int,
                    batch: int, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Texts at every number of steps and temperature, in the form that the baselines' records have.

    Returns:
        For each sampling: `setting`, `seed`, `dtype`, `texts` (up to the first end, to be shown), and what
        `timed_rows` finds.
    """
    found = []
    for own in with_settings(generator, steps, temperatures, min(batch, num)):
        rows = timed_rows(own, num, own.config.sampling.batch_size, seed, in_words(own), say)
        found.append({
            "setting": setting_of(own), "seed": seed, "dtype": str(generator.dtype).removeprefix("torch."),
            **rows, "texts": to_text(generator.tokenizer, rows["tokens"], generator.end_of_text_id)})
    return found


def timed_rows(source: Source, num: int, batch: int, seed: int, name: str,
               say: Callable[[str], None]) -> dict[str, Any]:
    """Rows of a source, and how fast they come, from a seed to token ids on the host.

    Args:
        source: Draws at most `batch` rows at once.
        num: Rows.
        batch: Of the source.
        seed: Of the rows.
        name: Of the source, for a line of progress.
        say: Hears it.

    Returns:
        `batch`, `tokens`, `seconds_batch_1` (median of `generations_batch_1`), `tokens_per_s_batch_1`,
        `tokens_per_s_batch_<batch>` (all rows once).
    """
    latencies = _latencies(source, seed)
    _timed(source, batch, seed)  # warm-up
    tokens_NL, seconds = _timed(source, num, seed)
    latency = statistics.median(latencies)
    length = tokens_NL.shape[1]
    say(f"{num} texts of {name}: {num * length / seconds:,.0f} tokens/s")
    return {"batch": batch, "seconds_batch_1": latency, "generations_batch_1": len(latencies),
            "tokens_per_s_batch_1": length / latency, f"tokens_per_s_batch_{batch}": num * length / seconds,
            "tokens": tokens_NL.tolist()}


def with_settings(generator: Generator, steps: Sequence[int], temperatures: Sequence[float],
                  batch: int) -> Iterator[Generator]:
    """The generator at every pair of a number of steps and a temperature."""
    for num_steps, temperature in itertools.product(steps, temperatures):
        changes = {"steps": num_steps, "temperature": temperature, "batch_size": batch}
        config = generator.config
        changed = config.model_copy(update={"sampling": config.sampling.model_copy(update=changes)})
        yield dataclasses.replace(generator, config=changed)


def setting_of(generator: Generator, has_prompt: bool = False) -> dict[str, Any]:
    """How it samples, for the record."""
    sampling = generator.config.sampling
    weights = [sampling.self_conditioning_guidance, *([sampling.prompt_guidance] if has_prompt else [])]
    # A guidance of 0 or 1 weighs nothing against anything: one pass is enough.
    passes = sampling.steps * 2 ** sum(weight not in (0.0, 1.0) for weight in weights)
    return {"steps": sampling.steps, "temperature": sampling.temperature, "solver": sampling.solver,
            "grid": sampling.grid, "denoiser_passes": passes}


def in_words(generator: Generator) -> str:
    """How it samples, for a line of progress."""
    return f"{generator.config.sampling.steps} steps, temperature {generator.config.sampling.temperature:g}"


def judged(generation: dict[str, Any], row_judge: RowJudge, reference: JudgeRows,
           num_prompt: int = 0, *, has_mauve: bool = True) -> dict[str, Any]:
    """One sampling with the judge's scores in place of its texts, of as many as the reference has."""
    kept = {key: value for key, value in generation.items() if key not in ("tokens", "texts")}
    tokens_NL = generation["tokens"][:len(reference.rows)]
    return kept | row_judge.scores(tokens_NL, reference.rows if has_mauve else (), num_prompt)


def _latencies(source: Source, seed: int) -> list[float]:
    """Seconds of one row at a time, after one that warms up."""
    is_late, found = over_after(_MOST_S), list[float]()
    for index in range(1 + _MOST):
        if len(found) > _FEWEST and is_late():
            break
        found.append(_timed(source, 1, seed + index)[1])
    return found[1:]


def _timed(source: Source, num: int, seed: int) -> tuple[Tensor, float]:
    """Token ids on the host, and the seconds they took: once they are here the device has finished."""
    began = time.perf_counter()
    tokens_NL = source.tokens(num, seed).cpu()
    return tokens_NL, time.perf_counter() - began
