"""Carries out the cases of a benchmark of training: builds each, times it, takes it apart."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from trainer.bench_device import state_during
from trainer.bench_floor import Rates, floor_s
from trainer.bench_limits import wait_for
from trainer.bench_models import shape_of
from trainer.bench_room import free_memory, if_room
from trainer.bench_timing import over_after, spread
from trainer.bench_train_cases import TrainCase, config_of, profile_config
from trainer.bench_train_encoder import GivenStates, random_encoder
from trainer.bench_train_floor import flops_of_step, work_of_step
from trainer.bench_train_profile import Kernels, kernels_of
from trainer.bench_train_result import Check, StepTimes, TrainCaseResult, check_of
from trainer.bench_train_timing import time_each
from trainer.bench_train_work import Encoding, Training, Work, plainly
from trainer.contract import ConfigError
from trainer.encoder_shape import EncoderShape
from trainer.memory import GIB, memory_per_gpu
from trainer.ranks import by_first_rank


@dataclass(frozen=True)
class TrainEffort:
    """How much is measured.

    Attributes:
        steps: Timed ones of each case, at most.
        case_seconds: Of timing each case, at most.
        has_reference: Also time the same work plainly, and compare what both give.
        check_steps: First steps of both whose losses are compared.
        say: Told how long what is timed took to build.
        hear_timed: Told what a case has come to before its reference runs.
        hear_kernels: Told the kernels of one more step of each case; None: nobody asks.
    """

    steps: int
    case_seconds: float
    seed: int
    has_reference: bool = False
    check_steps: int = 0
    say: Callable[[str], None] = lambda line: None
    hear_timed: Callable[[TrainCaseResult], None] = lambda result: None
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
        linear = getattr(encoder, "linear_attention", None)
        found = self._of_shapes(case).model_copy(update={"linear_attention": linear})
        with self._work(case, encoder) as work:
            outputs = work.outputs(self._num_checked(case))
            found = found.model_copy(update=self._timed(case, work) | self._apart(case, work))
        found = _with_figures(found, self._rates)
        if not self._effort.has_reference:
            return found
        self._effort.hear_timed(found)
        return self._beside_reference(found, encoder, outputs)

    @contextmanager
    def _work(self, case: TrainCase, encoder: Any) -> Iterator[Work]:
        began = time.monotonic()
        kind = Encoding if case.scope == "encoder" else Training
        work: Work = kind(case, encoder, self._effort.seed, self._device)
        self._effort.say(f"{case}: built after {time.monotonic() - began:.1f} s")
        try:
            yield work
        finally:
            work.close()

    def _num_checked(self, case: TrainCase) -> int:
        """Where other ranks are imagined, so are most of the weights."""
        return self._effort.check_steps if case.num_ranks == 1 or case.ranks_are_real else 0

    def _beside_reference(self, found: TrainCaseResult, encoder: Any,
                          outputs: dict[str, Tensor]) -> TrainCaseResult:
        """The same with a reference, where there is room for one."""
        assert found.fast is not None
        free_memory()  # of the fast one's engine
        with plainly(encoder):
            other = if_room(partial(self._reference, found.case, encoder, outputs))
        if other is None:
            return found.model_copy(update={"has_no_room_for_reference": True})
        timed, check = other
        return found.model_copy(update={"reference": timed, "check": check,
                                        "ratio": timed.seconds_median / found.fast.seconds_median})

    def _reference(self, case: TrainCase, encoder: Any,
                   outputs: dict[str, Tensor]) -> tuple[StepTimes, Check | None]:
        with self._work(case, encoder) as work:
            errors = work.errors(outputs, work.outputs(self._num_checked(case)))
            return self._times(case, work)[0], check_of(case, errors, self._num_checked(case))

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
        own = config.token_encoder.model_copy(update={"micro_batch_size": None})  # which is no part of it
        if self._encoder[0] != own:
            self._encoder = (None, None)  # before the next one takes its room
            free_memory()
            self._encoder = (own, self._new_encoder(case))
        return self._encoder[1]

    def _new_encoder(self, case: TrainCase) -> Any:
        config, began = config_of(case), time.monotonic()
        encoder = random_encoder(config.token_encoder, self._effort.seed, self._device)
        loaded = time.monotonic()
        encoder.hidden_states(torch.zeros(case.micro_batch, case.length, dtype=torch.int64))
        wait_for(self._device)
        self._effort.say(f"{encoder.name}: random weights after {loaded - began:.1f} s, its first pass after "
                         f"{time.monotonic() - loaded:.1f} s more")
        return encoder

    def _timed(self, case: TrainCase, work: Work) -> dict[str, Any]:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        timed, waited_s = self._times(case, work)
        found: dict[str, Any] = {"fast": timed}
        if case.scope != "encoder":
            found["data_wait_share"] = waited_s / (timed.num_steps * timed.seconds_median)
        if self._device.type == "cuda":
            found["peak_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / GIB
            found["loaded"] = state_during(work.do, _agreed)
        return found

    def _times(self, case: TrainCase, work: Work) -> tuple[StepTimes, float]:
        """Of steps after some to warm up; and seconds in which they waited for text."""
        effort = self._effort
        work.warm_up()
        waited_s, is_over = work.waited_s, over_after(effort.case_seconds)
        seconds = time_each(work.do, effort.steps, self._device, lambda: _agreed(is_over()))
        timed = StepTimes(num_steps=len(seconds), **spread(seconds, case.num_tokens).model_dump())
        return timed, work.waited_s - waited_s

    def _apart(self, case: TrainCase, work: Work) -> dict[str, Any]:
        if self._effort.hear_kernels:
            self._effort.hear_kernels(case, kernels_of(work.do, self._device))
        return work.apart()


def _agreed(is_so: bool) -> bool:
    """As rank 0 says: ranks that took another number of steps would wait for each other forever."""
    are_real = dist.get_world_size() > 1 and dist.get_backend() != "fake"
    return by_first_rank(lambda: is_so) if are_real else is_so


def predicted_bytes(case: TrainCase, shape: EncoderShape) -> int:
    """What a plan would say that torch allocates."""
    config, ranks = config_of(case), case.num_ranks  # all on one node
    told = memory_per_gpu(config, shape, ranks, ranks)
    held = told.parts.get("token encoder", 0)
    if case.scope == "encoder":  # as on a GPU of its own, but for how much of it lies there
        apart = config.token_encoder.model_copy(update={"placement": "next_gpu"})
        config = config.model_copy(update={"token_encoder": apart})
        return sum((memory_per_gpu(config, shape, ranks).encoder_gpu | {"token encoder": held}).values())
    return told.allocated_bytes - (held if case.scope == "trainables" else 0)


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


def _with_figures(found: TrainCaseResult, rates: Rates) -> TrainCaseResult:
    """What follows from times."""
    assert found.fast is not None and found.flops is not None
    seconds = found.fast.seconds_median
    rate = rates.flops_per_s.get("bf16", rates.flops_per_s["fp32"])
    projected = as_trained_tokens_per_s(found.case, seconds, found.parts_s) if found.parts_s else None
    return found.model_copy(update={"share_of_matrix_rate": found.flops / seconds / rate,
                                    "as_trained_tokens_per_s": projected})
