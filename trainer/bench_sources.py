"""What a benchmark without a run can be of: random weights of a profile, or an export of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.bench_cases import Model
from trainer.bench_first import FirstText, first_texts_of_export, first_texts_of_profile
from trainer.bench_models import profile_config, random_generator, shape_of
from trainer.bench_run import Subject
from trainer.generate import Generator
from trainer.profiles import profile_values


@dataclass(frozen=True)
class Source:
    """One model to benchmark.

    Attributes:
        name: Of its cases.
        length: Tokens of its texts where nobody asks for others.
        subject: What builds it.
        first_texts: Cold starts in a mode.
    """

    name: str
    length: int
    subject: Subject
    first_texts: Callable[[str], list[FirstText]]


def of_profile(name: str, seed: int, device: torch.device) -> Source:
    """Random weights of a profile. Raises ConfigError where its token encoder's sizes are not known."""
    length = profile_values(name)["data"]["sequence_length"]
    own = Model(name=name, length=length)
    shape_of(profile_config(own))

    def build(model: Model) -> Generator:
        return random_generator(profile_config(model), seed, device)

    return Source(name, length, Subject(build, is_trained=False),
                  lambda mode: first_texts_of_profile(build(own), name, mode))


def of_export(path: Path, device: torch.device) -> Source:
    """A trained model that `ldlm export` has written. Raises ConfigError where it is none."""
    # Here: not every machine has what it imports to read checkpoints.
    from trainer.export import load_export, read_export

    record = read_export(path)
    return Source(path.resolve().name, record.train.data.sequence_length,
                  Subject(lambda model: load_export(path, device, torch.float32), is_trained=True),
                  lambda mode: first_texts_of_export(path, mode))
