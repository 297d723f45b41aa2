"""What `python -m trainer.bench train` has found, in one versioned form."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from trainer.bench_device import Device, GpuState, Software
from trainer.bench_floor import PartWork, Rates
from trainer.bench_timing import Spread
from trainer.bench_train_cases import TrainCase


class StepTimes(Spread):
    """Seconds of whole steps, the next one begun before the last one has ended; tokens of this rank."""

    num_steps: PositiveInt


class TrainCaseResult(BaseModel):
    """What was found of one case.

    Attributes:
        fast: The trainer's own step.
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
        losses: Of the last timed step; none of an encoder alone.
        linear_attention: Which code computes it.
        loaded: The card after timed steps.
        left_out: Why it was not timed.
    """

    model_config = ConfigDict(frozen=True)
    case: TrainCase
    fast: StepTimes | None = None
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
