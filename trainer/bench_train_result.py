"""What `python -m trainer.bench train` has found, in one versioned form."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from trainer.bench_device import Device, GpuState, Software
from trainer.bench_floor import PartWork, Rates
from trainer.bench_timing import Spread
from trainer.bench_train_cases import TrainCase, config_of

# Greatest relative difference of a loss from the reference's, of any step, by the trainer's precision; where
# the encoder is held in fewer bits, it may compute in them too (guesses).
MOST_ERROR = {"fp32": 1e-3, "bf16": 0.02}
MOST_ERROR_QUANTISED = 0.1


class StepTimes(Spread):
    """Seconds of whole steps, the next one begun before the last one has ended; tokens of this rank."""

    num_steps: PositiveInt


class Check(BaseModel):
    """What a case gives beside what its reference gives, both from the same seed.

    Attributes:
        num_steps: First steps that were compared.
        errors: Greatest relative difference by loss, and by norm of a part's gradients (`gradient_of`), of
            all steps; of an encoder alone, of its hidden states by norms. None: no number, which JSON cannot
            say.
        problem: Why the two do not train the same; None: they do, as far as this says.
    """

    model_config = ConfigDict(frozen=True)
    num_steps: int
    errors: dict[str, float | None]
    problem: str | None


class TrainCaseResult(BaseModel):
    """What was found of one case.

    Attributes:
        fast: The trainer's own step.
        reference: The same work in the same run, operation by operation; None: not asked for, or no room.
        ratio: Speed of the trainer's own step by the reference's.
        check: None without a reference.
        has_no_room_for_reference: It was asked for and does not fit into memory.
        work: Floor of each part.
        flops: Useful operations of one step.
        floor_s: Of one step.
        share_of_matrix_rate: Useful operations a second by the measured rate of products in bf16, on a CPU in
            float32.
        parts_s: Seconds of each part of a step, of steps of their own; None for an encoder alone.
        data_wait_share: Of the time of all timed steps, in which text was waited for.
        as_trained_tokens_per_s: A projection: the same with as many micro-batches in a step as the profile
            has, from the parts; None for an encoder alone.
        peak_memory_gib: That torch has allocated in timed steps; None on a CPU.
        predicted_memory_gib: Of a plan.
        losses: Of the last step; none of an encoder alone, or where other ranks are imagined.
        linear_attention: Which code computes it.
        loaded: The card after timed steps.
        left_out: Why it was not timed.
    """

    model_config = ConfigDict(frozen=True)
    case: TrainCase
    fast: StepTimes | None = None
    reference: StepTimes | None = None
    ratio: float | None = None
    check: Check | None = None
    has_no_room_for_reference: bool = False
    work: dict[str, PartWork] | None = None
    flops: float | None = None
    floor_s: float | None = None
    share_of_matrix_rate: float | None = None
    parts_s: dict[str, float] | None = None
    data_wait_share: float | None = None
    as_trained_tokens_per_s: float | None = None
    peak_memory_gib: float | None = None
    predicted_memory_gib: float | None = None
    losses: dict[str, float] = {}
    linear_attention: str | None = None
    loaded: GpuState | None = None
    left_out: str | None = None


class TrainReport(BaseModel):
    """A whole benchmark of training. Weights and tokens are random; `seed` is theirs."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["ldlm training benchmark"] = "ldlm training benchmark"
    version: Literal[1] = 1
    at: datetime
    seed: int
    device: Device
    software: Software
    libraries: dict[str, str | None]
    rates: Rates
    cases: tuple[TrainCaseResult, ...]

    @property
    def is_good(self) -> bool:
        """True when every case was measured, and none trains something else than its reference."""
        return bool(self.cases) and all(
            result.fast and not (result.check and result.check.problem) for result in self.cases)


def gradient_of(part: str) -> str:
    """The name under which the norm of a part's gradients is compared."""
    return f"gradient of {part.replace('_', ' ')}"


def is_loss(name: str) -> bool:
    """Whether it is judged: gradients and hidden states are shown alone."""
    return not name.startswith(("gradient of ", "hidden states"))


def check_of(case: TrainCase, errors: Mapping[str, float], num_steps: int) -> Check | None:
    """What differences come to; None: nothing was compared. Losses alone are judged."""
    if not errors:
        return None
    most = MOST_ERROR_QUANTISED if case.weights != "bf16" else MOST_ERROR[config_of(case).precision]
    off = [f"{name} {error:.2%}" for name, error in errors.items() if is_loss(name) and not error <= most]
    problem = None
    if off:
        problem = f"losses are off by more than {most:.1%} of the reference's: {', '.join(off)}"
    told = {name: error if math.isfinite(error) else None for name, error in errors.items()}
    return Check(num_steps=num_steps, errors=told, problem=problem)
