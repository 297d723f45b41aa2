"""Where the time of a generation goes: denoiser, its attention, decoders, vocabulary head.

A captured generation cannot be looked into, so parts are measured from outside: the denoiser by what more
steps take longer, attention and head by themselves, the decoders as what is left.

Shapes: B batch, L tokens, W width of the token decoder.
"""

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict

from trainer.bench_limits import timed_s
from trainer.bench_paths import Path
from trainer.fast.generator import FastGenerator
from trainer.fast.graph import replay_of
from trainer.fast.weights import Mode, dtype_of
from trainer.generate import Generator

_TIMES = 10


class Parts(BaseModel):
    """Seconds of one generation.

    Attributes:
        denoiser: All its passes, attention among them.
        attention: Of the denoiser's layers, measured alone, over all passes.
        decoders: Latent decoder and token decoder, with whatever else there is: the rest.
        head: The vocabulary head and the choice of the likeliest, measured alone.
    """

    model_config = ConfigDict(frozen=True)
    denoiser: float
    attention: float
    decoders: float
    head: float


def parts_of(whole_s: float, one_step_s: float, steps: int, attention_s: float, head_s: float) -> Parts:
    """Take a generation apart.

    Args:
        whole_s: With all its steps.
        one_step_s: The same with one step.
        steps: More than one.
        attention_s: Of all passes.
        head_s: Of the head.
    """
    a_pass = max(0.0, whole_s - one_step_s) / (steps - 1)
    denoiser = min(whole_s, steps * a_pass)
    return Parts(denoiser=denoiser, attention=attention_s, head=head_s,
                 decoders=max(0.0, whole_s - denoiser - head_s))


def attention_s(generator: Generator, batch: int, steps: int, mode: Mode) -> float:
    """Seconds of the denoiser's attention in all layers and passes, on random inputs of its sizes."""
    config, device = generator.config, generator.model.hidden_mean.device
    sizes = config.model
    shape = (batch, sizes.num_heads, config.num_latents, sizes.width // sizes.num_heads)
    query, key, value = (torch.randn(shape, device=device, dtype=dtype_of(mode)) for _ in range(3))
    once = alone_s(lambda: F.scaled_dot_product_attention(query, key, value), device)
    return steps * sizes.denoiser_layers * once


def head_s(path: Path, generator: Generator, batch: int, mode: Mode) -> float:
    """Seconds of the fast path's head over all positions of a batch; 0 where the path shows none."""
    if not isinstance(path, FastGenerator):
        return 0.0
    config, device, model = generator.config, generator.model.hidden_mean.device, path.fast
    features_BLW = torch.randn(batch, config.data.sequence_length, config.model.token_decoder_width,
                               device=device, dtype=dtype_of(mode))
    return alone_s(lambda: model.tokens(features_BLW), device)


@torch.inference_mode()
def alone_s(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of some work; on a GPU replayed as a graph, so that giving orders costs nothing."""
    if device.type == "cuda":
        work = replay_of(work)
    timed_s(work, device)
    return statistics.median(timed_s(work, device) for _ in range(_TIMES))

