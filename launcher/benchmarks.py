"""Training speeds that were measured once and committed: `recipes/measured/*.json`, where alone they stand.

`python -m trainer.bench train --out FILE` writes one; what other benchmarks have written lies beside it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from launcher.gpu_kinds import GPU_KINDS
from launcher.offers import Gpu
from trainer.config import ModelConfig, Products, TrainConfig, WeightFormat
from trainer.profiles import PROFILES

MEASURED = "recipes/measured"  # of the checkout
_KIND = "ldlm training benchmark"


@dataclass(frozen=True)
class Benchmarked:
    """One GPU's training speed: the joint step, as runs take it.

    Attributes:
        file: Whose figure it is: a name in `recipes/measured`.
        at: When, UTC.
        gpu: By SkyPilot's name.
        software: Versions.
        profile: Of `trainer/profiles.py`, with nothing changed but what stands here.
        weights: Of the frozen encoder, which lies on the same GPU.
        products: What that multiplies in.
        sequence_length: Tokens.
        micro_batch_size, global_batch_size: Sequences.
    """

    file: str
    at: datetime
    gpu: str
    software: str
    profile: str
    weights: WeightFormat
    products: Products
    sequence_length: int
    micro_batch_size: int
    global_batch_size: int
    tokens_per_s: float

    @property
    def words(self) -> str:
        """Where it comes from, for the reader of a plan."""
        return (f"{self.micro_batch_size} x {self.sequence_length} tokens, {self.file}, {self.at:%Y-%m-%d}, "
                f"{self.software}")

    def is_of(self, config: TrainConfig) -> bool:
        """The same model, encoder and text, so that hardware and batch alone can differ."""
        encoder = config.token_encoder
        names = (config.profile, encoder.weights, encoder.products, config.data.sequence_length,
                 config.precision)
        own = PROFILES.get(self.profile, {}).get("model")
        return names == (self.profile, self.weights, self.products, self.sequence_length, "bf16") and (
            own is not None and config.model == ModelConfig.model_validate(own))


def nearest(config: TrainConfig, gpu: str, benchmarks: Sequence[Benchmarked]) -> Benchmarked | None:
    """Of a config's benchmarks the one to go by: of this GPU, of a micro-batch like its own, the newest."""
    def distance(one: Benchmarked) -> tuple[bool, float, float]:
        ratio = one.micro_batch_size / config.micro_batch_size
        return one.gpu != gpu, abs(math.log(ratio)), -one.at.timestamp()

    return min((one for one in benchmarks if one.is_of(config)), key=distance, default=None)


class _Record(BaseModel):
    """Of a benchmark's file what is read here."""

    model_config = ConfigDict(frozen=True)


class _Case(_Record):
    profile: str
    scope: str
    weights: WeightFormat
    products: Products = "bf16"
    length: PositiveInt
    micro_batch: PositiveInt
    num_micro_batches: PositiveInt
    num_ranks: PositiveInt = 1

    @property
    def is_training(self) -> bool:
        """On one GPU, with the encoder in the loop: what a run does."""
        return self.scope == "joint" and self.num_ranks == 1


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


class _Result(_Record):
    case: _Case
    fast: _Times | None = None  # none where it was not timed


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
        except (OSError, ValueError) as error:
            unread.append(f"no speed is taken from {path}: {_first_line(error)}")
    return found, unread


def _speeds(name: str, document: _Document) -> Iterator[Benchmarked]:
    gpu = document.device.gpu
    for one in document.cases:
        case = one.case
        if gpu and one.fast and case.is_training:
            yield Benchmarked(
                file=name, at=document.at, gpu=gpu, software=f"torch {document.software.torch}",
                profile=case.profile, weights=case.weights, products=case.products,
                sequence_length=case.length, micro_batch_size=case.micro_batch,
                global_batch_size=case.micro_batch * case.num_micro_batches,
                tokens_per_s=one.fast.tokens_per_s)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).splitlines()[:3])
