"""Text of a model at several numbers of steps and temperatures: how good it is, and how fast it comes.

Shapes: N texts, L tokens.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from trainer.generate import Generator, to_text
from trainer.quality import Judge, text_scores

_TIMED = 3  # generations at batch 1


def sample_frontier(generator: Generator, steps: Sequence[int], temperatures: Sequence[float], num: int,
                    batch: int, seed: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Texts at every number of steps and temperature, in the form that the baselines' records have.

    Returns:
        For each sampling: `setting`, `tokens`, `texts`, and the speeds from seed to token ids on the host,
        decoding included: `seconds_batch_1` (median), `tokens_per_s_batch_1`, `tokens_per_s_batch_<batch>`.
    """
    found = []
    for num_steps, temperature in itertools.product(steps, temperatures):
        own = _with(generator, steps=num_steps, temperature=temperature, batch_size=min(batch, num))
        sampling = own.config.sampling
        guided = sampling.self_conditioning_guidance not in (0.0, 1.0)
        setting = {"steps": num_steps, "temperature": temperature, "solver": sampling.solver,
                   "grid": sampling.grid, "denoiser_passes": num_steps * (2 if guided else 1)}
        latencies = [_timed(own, 1, seed + index)[1] for index in range(_TIMED + 1)][1:]
        own.tokens(sampling.batch_size, seed)  # warm-up
        tokens_NL, seconds = _timed(own, num, seed)
        latency = statistics.median(latencies)
        length = tokens_NL.shape[1]
        say(f"{num} texts of {num_steps} steps, temperature {temperature:g}: "
            f"{num * length / seconds:,.0f} tokens/s")
        found.append({
            "setting": setting, "seed": seed, "batch": sampling.batch_size, "seconds_batch_1": latency,
            "tokens_per_s_batch_1": length / latency,
            f"tokens_per_s_batch_{sampling.batch_size}": num * length / seconds, "tokens": tokens_NL.tolist(),
            "texts": to_text(generator.tokenizer, tokens_NL, generator.end_of_text_id)})
    return found


def judged(generation: dict[str, Any], judge: Judge, reference: Sequence[str]) -> dict[str, Any]:
    """One sampling with the judge's scores in place of its texts."""
    kept = {key: value for key, value in generation.items() if key not in ("tokens", "texts")}
    return kept | text_scores(judge, generation["texts"], reference)


def _with(generator: Generator, **sampling: Any) -> Generator:
    config = generator.config
    changed = config.model_copy(update={"sampling": config.sampling.model_copy(update=sampling)})
    return dataclasses.replace(generator, config=changed)


def _timed(generator: Generator, num: int, seed: int) -> tuple[Tensor, float]:
    """Token ids on the host, and the seconds they took: once they are here the device has finished."""
    began = time.perf_counter()
    tokens_NL = generator.tokens(num, seed).cpu()
    return tokens_NL, time.perf_counter() - began
