"""Carries out the cases of a benchmark of training: builds each, times it, takes it apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from trainer.bench_device import state_during
from trainer.bench_floor import Rates, floor_s
from trainer.bench_models import shape_of
from trainer.bench_room import free_memory, if_room
from trainer.bench_timing import over_after, spread
from trainer.bench_train_cases import TrainCase, config_of, profile_config
from trainer.bench_train_encoder import GivenStates, RandomText, random_encoder
from trainer.bench_train_floor import flops_of_step, work_of_step
from trainer.bench_train_job import build_step, end_step, take_step
from trainer.bench_train_profile import Kernels, kernels_of
from trainer.bench_train_result import StepTimes, TrainCaseResult
from trainer.bench_train_timing import parts_of_step, time_each
from trainer.contract import ConfigError
from trainer.encoder_shape import EncoderShape
from trainer.host_copies import to_device
from trainer.job import StepJob
from trainer.memory import GIB, memory_per_gpu

_WARM_UP_STEPS = 2
_STEPS_APART = 2  # of which the parts are a mean


@dataclass(frozen=True)
class TrainEffort:
    """How much is measured.

    Attributes:
        steps: Timed ones of each case, at most.
        case_seconds: Of timing each case, at most.
        say: Told how long what is timed took to build.
        hear_kernels: Told the kernels of one more step of each case; None: nobody asks.
    """

    steps: int
    case_seconds: float
    seed: int
    say: Callable[[str], None] = lambda line: None
    hear_kernels: Callable[[TrainCase, Kernels], None] | None = None


def run_cases(cases: Sequence[TrainCase], rates: Rates, effort: TrainEffort,
              device: torch.device) -> Iterator[TrainCaseResult]:
    """What is found of each case, in order. One encoder at a time is in memory."""
    runner = _Runner(rates, effort, device)
    for case in cases:
        try:
            found = if_room(partial(runner.result, case))
        except ConfigError as error:
            found = TrainCaseResult(case=case, left_out=error.problem)
        yield found or TrainCaseResult(case=case, left_out="does not fit into memory")


class _Runner:
    """All cases, and the encoder of the newest one."""

    def __init__(self, rates: Rates, effort: TrainEffort, device: torch.device) -> None:
        self._rates, self._effort, self._device = rates, effort, device
        self._encoder: tuple[object, Any] = (None, None)

    def result(self, case: TrainCase) -> TrainCaseResult:
        """Build a case and time it. Raises ConfigError, torch.OutOfMemoryError."""
        free_memory()
        encoder = self._encoder_of(case)
        found = self._of_shapes(case)
        linear = getattr(encoder, "linear_attention", None)
        found = found.model_copy(update={"linear_attention": linear})
        timed = self._encoding(case, encoder) if case.scope == "encoder" else self._training(case, encoder)
        return _with_shares(found.model_copy(update=timed), self._rates)

    def _of_shapes(self, case: TrainCase) -> TrainCaseResult:
        """What is known before anything runs."""
        config = config_of(case)
        shape = shape_of(config)
        work = work_of_step(config, shape, case.num_ranks, case.scope, self._rates)
        return TrainCaseResult(case=case, work=work, floor_s=floor_s(work),
                               flops=sum(flops_of_step(config, shape, case.num_ranks, case.scope).values()),
                               predicted_memory_gib=predicted_bytes(case, shape) / GIB)

    def _encoder_of(self, case: TrainCase) -> Any:
        config = config_of(case)
        if case.scope == "trainables":
            self._encoder = (None, None)
            return GivenStates(shape_of(config), config, self._device)
        if self._encoder[0] != config.token_encoder:
            self._encoder = (None, None)  # before the next one takes its room
            free_memory()
            began = time.monotonic()
            self._encoder = (config.token_encoder,
                             random_encoder(config.token_encoder, self._effort.seed, self._device))
            self._effort.say(f"{config.token_encoder.name} with random weights after "
                             f"{time.monotonic() - began:.1f} s")
        return self._encoder[1]

    def _encoding(self, case: TrainCase, encoder: Any) -> dict[str, Any]:
        config = config_of(case)
        text = RandomText(config, shape_of(config), self._effort.seed)
        batches = [to_device(torch.from_numpy(text.rows(np.arange(case.micro_batch) + index).astype("int64")),
                             self._device) for index in range(case.num_micro_batches)]

        def encode(_: int = 0) -> None:
            for tokens_BL in batches:
                encoder.hidden_states(tokens_BL)

        return self._timed(case, encode)

    def _training(self, case: TrainCase, encoder: Any) -> dict[str, Any]:
        began = time.monotonic()
        job = build_step(case, encoder, self._effort.seed, self._device)
        self._effort.say(f"{case}: built after {time.monotonic() - began:.1f} s")
        try:
            return self._steps(case, job)
        finally:
            end_step(job)

    def _steps(self, case: TrainCase, job: StepJob) -> dict[str, Any]:
        count = _Counter()

        def step(_: int = 0) -> None:
            take_step(job, count.next())

        timed = self._timed(case, step, job)
        parts = parts_of_step(job, count.taken, _STEPS_APART)
        return timed | {
            "parts_s": parts, "losses": {name: float(value) for name, value in job.losses.items()},
            "as_trained_tokens_per_s": as_trained_tokens_per_s(case, timed["fast"].seconds_median, parts)}

    def _timed(self, case: TrainCase, work: Callable[[int], None], job: StepJob | None = None,
               ) -> dict[str, Any]:
        """Warm up, time, and whatever else a case of any kind has."""
        is_cuda, effort = self._device.type == "cuda", self._effort
        time_each(work, _WARM_UP_STEPS, self._device, lambda: False)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        waited_s = job.data_wait_s if job else 0.0
        seconds = time_each(work, effort.steps, self._device, over_after(effort.case_seconds))
        timed = StepTimes(num_steps=len(seconds), **spread(seconds, case.num_tokens).model_dump())
        peak = torch.cuda.max_memory_allocated(self._device) / GIB if is_cuda else None
        found = {"fast": timed, "peak_memory_gib": peak,
                 "data_wait_share": (job.data_wait_s - waited_s) / sum(seconds) if job else None,
                 "loaded": state_during(partial(work, 0)) if is_cuda else None}
        if effort.hear_kernels:
            effort.hear_kernels(case, kernels_of(partial(work, 0), self._device))
        return found


@dataclass
class _Counter:
    """Steps that were taken."""

    taken: int = 0

    def next(self) -> int:
        """One more: its number, from 0."""
        self.taken += 1
        return self.taken - 1


def predicted_bytes(case: TrainCase, shape: EncoderShape) -> int:
    """What a plan would say that torch allocates."""
    config = config_of(case)
    if case.scope == "encoder":  # as on a GPU of its own
        apart = config.token_encoder.model_copy(update={"placement": "next_gpu"})
        config = config.model_copy(update={"token_encoder": apart})
        return sum(memory_per_gpu(config, shape, case.num_ranks).encoder_gpu.values())
    told = memory_per_gpu(config, shape, case.num_ranks)
    absent = told.parts.get("token encoder", 0) if case.scope == "trainables" else 0
    return told.allocated_bytes - absent


def as_trained_tokens_per_s(case: TrainCase, seconds: float, parts: dict[str, float]) -> float:
    """With as many micro-batches as the profile's step has: what ends a step happens once in any.

    Args:
        case: With its own number of them.
        seconds: Of one step of the case.
        parts: Of it.
    """
    end = min(seconds, sum(parts.get(name, 0.0) for name in ("clipping", "optimizer", "average")))
    sequences = profile_config(case.profile).global_batch_size
    num = max(1, sequences // (case.micro_batch * case.num_ranks))
    whole = num * (seconds - end) / case.num_micro_batches + end
    return num * case.micro_batch * case.length / whole


def _with_shares(found: TrainCaseResult, rates: Rates) -> TrainCaseResult:
    assert found.fast is not None and found.flops is not None
    rate = rates.flops_per_s.get("bf16", rates.flops_per_s["fp32"])
    return found.model_copy(update={"share_of_matrix_rate": found.flops / found.fast.seconds_median / rate})
