"""Which generations a benchmark times: what was typed, and standard axes around it. No torch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

Axis = Literal["steps", "length", "batch"]
# Source: "Sweeps" of the benchmark's specification.
SWEEPS: dict[Axis, tuple[int, ...]] = {
    "steps": (1, 2, 4, 10, 50),
    "length": (64, 128, 256, 512, 1024, 2048, 4096),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}


class Model(BaseModel):
    """What is read into memory once: a model of some length. `name` is a profile, or a run."""

    model_config = ConfigDict(frozen=True)
    name: str
    length: int


class Case(BaseModel):
    """One way of generating. Two results are compared where all of it is the same.

    Attributes:
        steps: Denoiser passes.
        batch: Texts at once.
        mode: How the fast path holds its weights: `fp32`, `bf16`, `fp8`, `fp4`.
    """

    model_config = ConfigDict(frozen=True)
    model: Model
    steps: int
    batch: int
    mode: str

    def __str__(self) -> str:
        return (f"{self.model.name}, {self.steps} steps, {self.model.length} tokens, batch {self.batch}, "
                f"{self.mode}")


class Grid(BaseModel):
    """What was typed: every combination of these; and of each axis in `sweeps` all values, the other two
    at their first."""

    model_config = ConfigDict(frozen=True)
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    modes: tuple[str, ...]
    sweeps: tuple[Axis, ...] = ()

    def cases(self, name: str, lengths: Sequence[int]) -> list[Case]:
        """Of one model by name, those of one length together, each once."""
        sizes = itertools.product(lengths, self.steps, self.batches)
        found = dict.fromkeys([*sizes, *self._swept(lengths[0])])
        by_length = sorted(found, key=lambda size: size[0])  # stable: as typed otherwise
        return [Case(model=Model(name=name, length=length), steps=steps, batch=batch, mode=mode)
                for length, steps, batch in by_length for mode in self.modes]

    def _swept(self, length: int) -> Iterator[tuple[int, int, int]]:
        for axis in self.sweeps:
            first = {"length": length, "steps": self.steps[0], "batch": self.batches[0]}
            for value in SWEEPS[axis]:
                size = first | {axis: value}
                yield size["length"], size["steps"], size["batch"]
