"""The micro-batch of `micro_batch_size: auto`: a start tries a few and keeps the fastest, for later ones too.

Tried is what fills a GPU in a step: the encoder, forward and backward pass, on a model of its own beside as
many bytes as the optimizer and the average will take. No collective runs in it, so a rank that is out of
memory keeps nobody waiting; what each has found is then shared, and all go by the slowest. Afterwards that
model is gone, and training starts as if nothing had been tried.
"""

import gc
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import distributed as dist

from trainer.config import TrainConfig, encoder_micro_batch, micro_batch_sizes
from trainer.contract import ConfigError, StoreError, set_option
from trainer.diffusion import TimestepSampler
from trainer.encoder_shape import encoder_shape
from trainer.host_copies import to_device
from trainer.memory import GIB, held_beside_weights, predicted_micro_batch
from trainer.model import LatentDiffusionLM
from trainer.ranks import by_first_rank
from trainer.run_folder import RunFolder
from trainer.step_inputs import model_inputs, states_in_turn
from trainer.store import DamagedError
from trainer.token_encoder import TokenEncoder

_BUDGET_S = 60.0
_TIMED = 2  # passes of a size, after one that loads its kernels
_AS_FAST = 0.98  # of the fastest: then the smaller one is taken, which leaves room (guess)
_MATTERS = {"model", "token_encoder", "diffusion", "global_batch_size", "precision", "zero_stage",
            "activation_checkpointing", "token_loss_fraction"}


class MicroBatchChoice(BaseModel):
    """What a probe has found, in the run's folder.

    Attributes:
        device: Names of all ranks' GPUs, each once.
        size: Sequences that a rank takes at a time.
        tokens_per_s: Of each size that was tried, of one rank, forward and backward; 0: out of memory.
        too_large: Training itself has run out of memory with so many: then it is no answer any more.
    """

    model_config = ConfigDict(frozen=True)
    device: str
    torch: str
    size: PositiveInt
    tokens_per_s: dict[int, float]
    too_large: PositiveInt | None = None


@dataclass(frozen=True)
class MicroBatchMemo:
    """Where a start finds what an earlier one has found, on devices and with versions like its own."""

    folder: RunFolder
    name: str
    choice: MicroBatchChoice

    def keep(self, say: Callable[[str], None]) -> None:
        """For later starts. A store that does not take it costs them a minute each, and this one nothing."""
        try:
            self.folder.write(self.name, self.choice)
        except StoreError as error:
            say(f"warning: the micro-batch is not remembered: {error}")

    def outgrown(self, error: BaseException) -> None:
        """Where that is how training has ended: the next start tries smaller ones."""
        if isinstance(error, RuntimeError) and _is_out_of_memory(error):
            unlearned = self.choice.model_copy(update={"too_large": self.choice.size})
            MicroBatchMemo(self.folder, self.name, unlearned).keep(print)


def agreed_micro_batch(config: TrainConfig, folder: RunFolder, encoder: TokenEncoder, rows_NL: np.ndarray,
                       build: Callable[[], LatentDiffusionLM], device: torch.device,
                       say: Callable[[str], None], done: Callable[[str], None]
                       ) -> tuple[TrainConfig, MicroBatchMemo | None]:
    """The config with the size that all ranks take, and the memo behind it. A collective.

    Args:
        config: Of any kind; one that says its size comes back as it is.
        folder: Of the run, which remembers.
        encoder: Is loaded where something has to be tried.
        rows_NL: Token ids of the run's text, at least one row.
        build: Makes a model as the run will train it.
        device: Of this rank.
        say: Told in one line what was tried and taken.
        done: Told of each part of a start that took its time here.

    Raises:
        ConfigError: Not even one sequence fits.
        StoreError: What earlier starts have found cannot be read, or the encoder not fetched.
    """
    if not config.probe_micro_batch:
        return config, None
    devices, name = _setting(config, device)
    known = _remembered(folder, name)
    sizes = micro_batch_sizes(config, dist.get_world_size())
    if known and known.too_large:
        sizes = [size for size in sizes if size < known.too_large] or sizes[:1]
    if known and not known.too_large and known.size in sizes:
        say(f"micro-batch: {known.size}, as an earlier start on {devices} has found")
        return _with(config, known.size), MicroBatchMemo(folder, name, known)
    if encoder.is_collective:
        size = min(_predicted(config, device), sizes[-1])
        say(f"micro-batch: {size}, by arithmetic: ranks that share an encoder try nothing")
        return _with(config, size), None
    encoder.load()
    done("encoder")
    began, first = time.monotonic(), min(_predicted(config, device), sizes[-1])
    found = _probe(Trial(config, device, encoder, rows_NL, build), sizes, first)
    _let_go(device)
    choice = MicroBatchChoice(device=devices, torch=torch.__version__, size=_fastest(found, config),
                              tokens_per_s=found)
    say(f"micro-batch: {choice.size} of {_words(found)}, tried in {time.monotonic() - began:.0f} s")
    memo = MicroBatchMemo(folder, name, choice)
    if dist.get_rank() == 0:
        memo.keep(say)
    done("micro-batch")
    return _with(config, choice.size), memo


def _with(config: TrainConfig, size: int) -> TrainConfig:
    return config.model_copy(update={"micro_batch_size": size})


def _words(found: Mapping[int, float]) -> str:
    return ", ".join(f"{size} ({found[size]:,.0f} tok/s)" if found[size] else f"{size} (out of memory)"
                     for size in sorted(found))


def _setting(config: TrainConfig, device: torch.device) -> tuple[str, str]:
    """Devices of all ranks, in words, and the name of the record of what was found on them. A collective."""
    own = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    names = [own] * dist.get_world_size()
    dist.all_gather_object(names, own)
    devices = ", ".join(sorted(set(names)))
    what = [devices, torch.__version__, len(names), config.data.sequence_length,
            config.model_dump(mode="json", include=_MATTERS)]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return devices, f"micro_batch/{digest}.json"


def _remembered(folder: RunFolder, name: str) -> MicroBatchChoice | None:
    """What rank 0 finds, on every rank. A collective."""
    def find() -> MicroBatchChoice | None:
        try:
            return folder.find(name, MicroBatchChoice)
        except DamagedError:
            return None  # it is found out once more

    return by_first_rank(find)


def _predicted(config: TrainConfig, device: torch.device) -> int:
    """Where to begin. Ranks of several kinds of GPU go by the smallest. A collective."""
    gib = torch.cuda.get_device_properties(device).total_memory / GIB if device.type == "cuda" else None
    shape, per_node = encoder_shape(config.token_encoder.name), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    least = torch.tensor(predicted_micro_batch(config, shape, dist.get_world_size(), per_node, gib))
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)


def next_size(sizes: Sequence[int], first: int, seen: Mapping[int, float]) -> int | None:
    """The size to try next: from the first one down to what fits, then both ways from the fastest so far.

    Args:
        sizes: To choose from, the smallest first.
        first: One of them.
        seen: Tokens per second of those that were tried; 0: out of memory.

    Returns:
        None where both neighbours of the fastest are known, or nothing fits.
    """
    if first not in seen:
        return first
    too_large = min((size for size, rate in seen.items() if not rate), default=math.inf)
    best = max(seen, key=lambda size: (seen[size], -size))
    place = sizes.index(best if seen[best] else min(seen))
    around = [*sizes[place + 1:place + 2], *sizes[max(0, place - 1):place]]
    return next((size for size in around if size not in seen and size < too_large), None)


def _fastest(found: Mapping[int, float], config: TrainConfig) -> int:
    best = max(found.values())
    if not best:
        lighter = set_option("train.activation_checkpointing", "true")
        fix = "take a larger GPU" + ("" if config.activation_checkpointing else f", or add {lighter}")
        raise ConfigError("not even one sequence at a time fits the memory of this GPU",
                          place="train.micro_batch_size", fix=fix)
    return min(size for size, rate in found.items() if rate >= _AS_FAST * best)


class Trial:
    """A model of its own, and all that a micro-batch of it needs, on one rank. See `step_inputs.Asked`."""

    def __init__(self, config: TrainConfig, device: torch.device, encoder: TokenEncoder, rows_NL: np.ndarray,
                 build: Callable[[], LatentDiffusionLM]) -> None:
        self.config, self.device, self.encoder, self._rows_NL = config, device, encoder, rows_NL
        settings = config.diffusion
        self.timesteps = TimestepSampler(settings.time_bins, settings.time_loss_decay,
                                         settings.time_refresh_steps, device)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._model = build().to(device, dtype)
        self._beside = self._as_training_holds()

    def _as_training_holds(self) -> torch.Tensor | None:
        """Room that optimizer and average will take; none on a CPU, whose memory nothing limits."""
        if self.device.type != "cuda":
            return None
        number = sum(parameter.numel() for parameter in self._model.parameters())
        held = held_beside_weights(self.config, number, dist.get_world_size())
        return torch.empty(sum(held.values()), dtype=torch.uint8, device=self.device)

    def seconds(self, size: int) -> float:
        """Of one micro-batch of a size; inf: out of memory."""
        try:
            self._pass(size)
            began = time.perf_counter()
            num = sum(self._pass(size) for _ in range(_TIMED))
            return (time.perf_counter() - began) / num
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        _let_go(self.device)
        return math.inf

    def _pass(self, size: int) -> int:
        """As many micro-batches as the encoder reads at once: their number."""
        num = encoder_micro_batch(_with(self.config, size), dist.get_world_size()) // size
        rows = np.resize(self._rows_NL, (num, size, self._rows_NL.shape[1]))
        batch = to_device(torch.from_numpy(rows.astype("int64")), self.device)
        for tokens_BL, h_BLD in zip(batch, states_in_turn(self, batch), strict=True):
            losses = self._model(*model_inputs(self, 0, range(size), tokens_BL, h_BLD))
            losses.total.backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return num


def _probe(trial: Trial, sizes: Sequence[int], first: int) -> dict[int, float]:
    """Tokens per second by size, the same on all ranks. A collective."""
    began, seen = time.monotonic(), dict[int, float]()
    elapsed_s = last_s = 0.0
    while (size := next_size(sizes, first, seen)) is not None:
        # The next one may take twice as long. Where nothing has fitted yet, there is no choice.
        if any(seen.values()) and elapsed_s + 2 * last_s > _BUDGET_S:
            break
        seconds = trial.seconds(size)
        slowest = torch.tensor([seconds, time.monotonic() - began], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        seconds, now_s = slowest.tolist()
        elapsed_s, last_s = now_s, now_s - elapsed_s
        seen[size] = size * trial.config.data.sequence_length / seconds
    return seen


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Also as cuBLAS, Triton and the CPU's allocator say it."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        said in words for said in ("out of memory", "alloc_failed", "can't allocate memory"))


def _let_go(device: torch.device) -> None:
    """Give back what nobody holds any more; and forget that it was held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
