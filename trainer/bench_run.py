"""Carries out the cases of a benchmark, of trained and random weights alike: each is checked, then timed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import torch
from torch import Tensor

from trainer.bench_autoregressive import Decoding, comparable, parameters_read
from trainer.bench_cases import Case, Model
from trainer.bench_device import device_name, state_during
from trainer.bench_floor import Rates, floor_s, projected_rtx5090, work_of
from trainer.bench_models import shape_behind
from trainer.bench_parts import Parts, attention_s, head_s, parts_of
from trainer.bench_paths import Eager, FastPaths, Path, relative_error, same_tokens
from trainer.bench_published import published_tokens_per_s
from trainer.bench_result import CaseResult, Check, check_of, usd_per_million_tokens
from trainer.bench_room import free_memory, if_room
from trainer.bench_timing import Timed, over_after, time_path
from trainer.contract import ConfigError
from trainer.fast.generator import FastGenerator
from trainer.fast.weights import dtype_of, is_emulated
from trainer.generate import Generator

_CHECKED_SEEDS = 2  # a graph that does not read its inputs would pass with one
_FIRST_CHECKED = 1_000_003  # no timed generation has such a seed


@dataclass(frozen=True)
class Subject:
    """What is benchmarked.

    Attributes:
        build: The float32 model of a length, on the device; its sampling is set by each case.
        is_trained: True for a checkpoint, whose tokens have to be the same, too.
    """

    build: Callable[[Model], Generator]
    is_trained: bool


@dataclass(frozen=True)
class Effort:
    """How much is measured, and what is said of it.

    Attributes:
        generations: Timed ones of each path.
        case_seconds: Of timing each path, at most.
        compiles: See `FastPaths`.
        has_parts: Also take the time of the fast path apart.
        has_autoregressive: Also time a transformer of as many parameters, one token after the other.
        is_over: True once no case may be begun but the first.
    """

    generations: int
    case_seconds: float
    seed: int
    price_usd_per_hour: Decimal | None
    projects: bool
    compiles: bool = True
    has_parts: bool = False
    has_autoregressive: bool = False
    is_over: Callable[[], bool] = lambda: False


def run_cases(cases: Sequence[Case], subject: Subject, rates: Rates, effort: Effort, device: torch.device,
              ) -> Iterator[CaseResult]:
    """What is found of each case, in order; one model at a time is in memory."""
    num_done = 0
    for model, group in itertools.groupby(cases, key=lambda case: case.model):
        group_cases = list(group)
        generator = if_room(partial(subject.build, model))
        if generator is None:
            yield from map(_no_room, group_cases)
            continue
        runner = _Runner(generator, subject, rates, effort, device)
        for case in group_cases:
            if num_done and effort.is_over():
                yield CaseResult(case=case, left_out="not begun: no time left")
            else:
                yield runner.result(case)
            num_done += 1
        del generator, runner
        free_memory()


class _Runner:
    """All cases of one model."""

    def __init__(self, generator: Generator, subject: Subject, rates: Rates, effort: Effort,
                 device: torch.device) -> None:
        self._generator, self._subject, self._rates = generator, subject, rates
        self._effort, self._device = effort, device
        self._expected: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._references: dict[tuple[int, int], Timed] = {}
        self._autoregressive: dict[tuple[str, int], Timed] = {}
        self._fast = FastPaths(generator, compiles=effort.compiles)

    def result(self, case: Case) -> CaseResult:
        """Check a case and, where it passes, time it; say so where the device cannot do it."""
        try:
            return if_room(lambda: self._measured(case)) or _no_room(case)
        except ConfigError as error:
            return CaseResult(case=case, left_out=error.problem)

    def _measured(self, case: Case) -> CaseResult:
        own = with_sampling(self._generator, case)
        expected = self._outputs(case, own)
        fast = self._fast.at(own, case.mode)
        check = self._check(case, fast, expected)
        if is_emulated(case.mode, self._device):
            return CaseResult(case=case, check=check, fast_path=tuple(self._fast.said),
                              left_out=check.problem or f"emulated, so not timed: {check}")
        work = work_of(case, own.config, shape_behind(own.model), self._rates, _num_seen(own))
        found = CaseResult(case=case, check=check, work=work, floor_s=floor_s(work), left_out=check.problem,
                           fast_path=tuple(self._fast.said),
                           way=fast.way(case.batch) if isinstance(fast, FastGenerator) else None)
        if check.problem:
            return found
        timed = self._timed(case, fast)
        loaded = state_during(lambda: fast.tokens(case.batch, 0)) if self._device.type == "cuda" else None
        has_parts = self._effort.has_parts and case.steps > 1
        parts = if_room(lambda: self._parts(case, own, fast, timed)) if has_parts else None
        reference = self._reference(case, Eager(own))
        other = if_room(lambda: self._one_by_one(case, own)) if self._effort.has_autoregressive else None
        return found.model_copy(update={
            "fast": timed, "loaded": loaded, "reference": reference, "parts": parts, "autoregressive": other,
            "published_tokens_per_s": published_tokens_per_s(case, device_name(self._device)),
        } | self._figures(timed, reference, found))

    def _figures(self, timed: Timed, reference: Timed, found: CaseResult) -> dict[str, object]:
        """What follows from the times."""
        assert found.floor_s is not None and found.work is not None
        effort, projected, dollars = self._effort, None, None
        if effort.price_usd_per_hour is not None:
            dollars = usd_per_million_tokens(effort.price_usd_per_hour, timed.tokens_per_s)
        if effort.projects:
            projected = projected_rtx5090(timed.tokens_per_s, found.work, found.case.mode, self._rates)
        return {"fraction_of_limit": found.floor_s / timed.seconds_median,
                "ratio": timed.tokens_per_s / reference.tokens_per_s,
                "projected_rtx5090_tokens_per_s": projected, "usd_per_million_tokens": dollars}

    def _parts(self, case: Case, own: Generator, fast: Path, timed: Timed) -> Parts:
        one_step = case.model_copy(update={"steps": 1})
        once = self._timed(one_step, self._fast.at(with_sampling(self._generator, one_step), case.mode))
        return parts_of(timed.seconds_median, once.seconds_median, case.steps,
                        attention_s(own, case.batch, case.steps, case.mode),
                        head_s(fast, own, case.batch, case.mode))

    def _one_by_one(self, case: Case, own: Generator) -> Timed:
        """Timed once for all numbers of steps."""
        size = (case.mode, case.batch)
        if size not in self._autoregressive:
            model = comparable(own, parameters_read(own), dtype_of(case.mode))
            self._autoregressive[size] = self._timed(case, Decoding(model, case.batch))
        return self._autoregressive[size]

    def _outputs(self, case: Case, own: Generator) -> list[tuple[Tensor, Tensor]]:
        """Latents and tokens of the reference for each checked seed, on the host."""
        size = (case.steps, case.batch)
        if size not in self._expected:
            self._expected[size] = [_outputs(Eager(own), case.batch, seed) for seed in self._checked_seeds()]
        return self._expected[size]

    def _check(self, case: Case, fast: Path, expected: list[tuple[Tensor, Tensor]]) -> Check:
        errors, shares = [], []
        for seed, (latents, tokens) in zip(self._checked_seeds(), expected, strict=True):
            own_latents, own_tokens = _outputs(fast, case.batch, seed)
            errors.append(relative_error(own_latents, latents))
            shares.append(same_tokens(own_tokens, tokens))
        return check_of(errors, shares, case.mode, is_trained=self._subject.is_trained)

    def _checked_seeds(self) -> list[int]:
        return [(self._effort.seed + 1) * _FIRST_CHECKED + index for index in range(_CHECKED_SEEDS)]

    def _timed(self, case: Case, path: Path) -> Timed:
        is_late = over_after(self._effort.case_seconds)
        return time_path(path, case.batch, case.model.length, self._effort.generations, self._device,
                         lambda: is_late() or self._effort.is_over())

    def _reference(self, case: Case, path: Path) -> Timed:
        """Timed once for all modes."""
        size = (case.steps, case.batch)
        if size not in self._references:
            self._references[size] = self._timed(case, path)
        return self._references[size]


def with_sampling(generator: Generator, case: Case) -> Generator:
    """The same, for as many steps and texts at once as a case has."""
    config = generator.config
    sampling = config.sampling.model_copy(update={"steps": case.steps, "batch_size": case.batch})
    return dataclasses.replace(generator, config=config.model_copy(update={"sampling": sampling}))


def _outputs(path: Path, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    return path.latents(batch, seed).cpu(), path.tokens(batch, seed).cpu()


def _num_seen(generator: Generator) -> int | None:
    ids = generator.model.token_ids
    return None if ids is None else len(ids)


def _no_room(case: Case) -> CaseResult:
    return CaseResult(case=case, left_out="does not fit into memory")
