"""Training speeds that others are scaled from; committed ones stand in `recipes/measured/*.json` alone.

`python -m trainer.bench train --out FILE` writes one; what other benchmarks have written lies beside it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from launcher.errors import ConfigError
from launcher.gpu_kinds import GPU_KINDS
from launcher.offers import Gpu
from trainer.bench_train_cases import TrainCase, config_of
from trainer.config import TrainConfig

MEASURED = "recipes/measured"  # of the checkout
_KIND = "ldlm training benchmark"


@dataclass(frozen=True)
class Benchmarked:
    """A training speed on some GPUs that others are scaled from: the joint step, as runs take it.

    Attributes:
        words: Where it comes from, for the reader of a plan: a file of `recipes/measured`, a run.
        at: When, UTC.
        gpu: By SkyPilot's name.
        config: What it trained, with the placement of its encoder.
        tokens_per_s: Over all ranks.
    """

    words: str
    at: datetime
    gpu: str
    config: TrainConfig
    tokens_per_s: float
    num_ranks: int = 1
    num_nodes: int = 1

    @property
    def hardware(self) -> str:
        """`H200`, `8 x H200`."""
        return self.gpu if self.num_ranks == 1 else f"{self.num_ranks} x {self.gpu}"

    def is_of(self, config: TrainConfig) -> bool:
        """The same arithmetic for a token, so that only hardware, batch and what saves memory can differ."""
        return _arithmetic(config) == _arithmetic(self.config)


def _arithmetic(config: TrainConfig) -> tuple[object, ...]:
    encoder = config.token_encoder
    return (config.model, encoder.name, encoder.layer, encoder.weights, encoder.products,
            config.data.sequence_length, config.precision, config.compile, config.token_loss_fraction,
            config.diffusion.self_conditioning_probability)


def _micro_batches(config: TrainConfig) -> tuple[int, int]:
    """Of the trained parts and of the encoder."""
    return config.micro_batch_size, config.token_encoder.micro_batch_size or config.micro_batch_size


def _shared_out(config: TrainConfig) -> tuple[object, ...]:
    """What decides how much ranks send, and what saves memory."""
    return config.token_encoder.placement, config.zero_stage, config.activation_checkpointing


def nearest(config: TrainConfig, gpu: str, num_ranks: int,
            benchmarks: Sequence[Benchmarked]) -> Benchmarked | None:
    """Of a config's benchmarks the one to go by: of this GPU, of about as many, of micro-batches like its own
    (the encoder's last), shared out as it is, the newest."""
    def distance(one: Benchmarked) -> tuple[bool, float, float, float, bool, float]:
        ratios = [there / here for there, here in zip(_micro_batches(one.config), _micro_batches(config),
                                                      strict=True)]
        trained, encoder = (abs(math.log(ratio)) for ratio in ratios)
        ranks = abs(math.log(one.num_ranks / num_ranks))
        is_other = _shared_out(one.config) != _shared_out(config)
        return one.gpu != gpu, ranks, trained, encoder, is_other, -one.at.timestamp()

    return min((one for one in benchmarks if one.is_of(config)), key=distance, default=None)


class _Record(BaseModel):
    """Of a benchmark's file what is read here."""

    model_config = ConfigDict(frozen=True)


class _Device(_Record):
    name: str
    memory_gib: float | None

    @property
    def gpu(self) -> str | None:
        """By SkyPilot's name; None for a CPU, or a GPU of which nothing else is known."""
        name = Gpu(name=self.name, memory_gib=self.memory_gib or 0.0, driver="").sky_name
        return name if name in GPU_KINDS else None


class _Software(_Record):
    torch: str


class _Times(_Record):
    tokens_per_s: PositiveFloat = Field(allow_inf_nan=False)


class _Check(_Record):
    problem: str | None


class _Loaded(_Record):
    other_processes: int | None = None


class _Result(_Record):
    case: TrainCase
    fast: _Times | None = None  # none where it was not timed
    check: _Check | None = None
    loaded: _Loaded | None = None

    @property
    def is_training(self) -> bool:
        """On GPUs of its own, with the encoder in the loop, and it trains what it should: as a run."""
        is_wrong = self.check is not None and self.check.problem is not None
        is_shared = self.loaded is not None and bool(self.loaded.other_processes)
        is_whole = self.case.num_ranks == 1 or self.case.ranks_are_real
        return self.case.scope == "joint" and is_whole and not (is_wrong or is_shared)


class _Document(_Record):
    at: datetime
    device: _Device
    software: _Software
    cases: tuple[_Result, ...]


def read_benchmarks(folder: Path) -> tuple[list[Benchmarked], list[str]]:
    """What the files of a folder say, and a sentence for each of training that cannot be read."""
    found, unread = list[Benchmarked](), list[str]()
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
            if isinstance(document, dict) and document.get("kind") == _KIND:
                found += _speeds(path.name, _Document.model_validate(document))
        except (OSError, ValueError, ConfigError) as error:
            unread.append(f"no speed is taken from {path}: {_first_line(error)}")
    return found, unread


def _speeds(name: str, document: _Document) -> Iterator[Benchmarked]:
    gpu, at, torch = document.device.gpu, document.at, document.software.torch
    for one in document.cases:
        if gpu and one.fast and one.is_training:
            encoder = one.case.encoder_micro_batch
            words = (f"{one.case.micro_batch} x {one.case.length} tokens, "
                     + (f"encoder {encoder} at a time, " if encoder else "")
                     + f"{name}, {at:%Y-%m-%d}, torch {torch}")
            ranks = one.case.num_ranks
            yield Benchmarked(words, at, gpu, config_of(one.case), ranks * one.fast.tokens_per_s, ranks)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).splitlines()[:3])
