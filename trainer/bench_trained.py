"""The benchmark of a trained checkpoint: the same cases, checks and times as of random weights."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import torch
from pydantic import BaseModel, ConfigDict

from trainer.bench_cases import Case, Grid
from trainer.bench_device import GpuState, look_at, software
from trainer.bench_limits import measure_rates
from trainer.bench_paths import Eager, FastPaths, Path
from trainer.bench_result import CaseResult, Report
from trainer.bench_run import Effort, Subject, run_cases, with_sampling
from trainer.bench_timing import Timed, over_after, time_path
from trainer.fast.weights import Mode, multiplies_fp8, usual_mode
from trainer.generate import Generator, Prompt
from trainer.sizes import longest_prompt

_CASE_S, _SWEEP_S = 20.0, 420.0  # on a GPU that is paid for; a plan counts on 12 min in all (guess)


class Throughput(BaseModel):
    """Generation speed at batch 1, over `num_generations` timed generations after warm-up.

    Attributes:
        dtype: Of the weights that were timed.
        prompt_tokens: Of the prompt behind `prompted_tokens_per_s`; 0 for a model that reads none.
        prompted_tokens_per_s: The same with a prompt: all tokens of the sequence, the prompt's among them.
        reference_tokens_per_s: Of the float32 eager path in the same run.
        fraction_of_limit: Of what reading the weights, or the arithmetic, allows here at best.
        latents_error: Relative, of the fast path against the reference.
        same_tokens: Share of positions with the reference's token.
        usd_per_million_tokens: At the price of the attempt, at batch 1.
        warnings: What makes these figures worth less.
    """

    model_config = ConfigDict(frozen=True)
    device: str
    is_rtx5090: bool
    dtype: str
    torch_version: str
    denoiser_steps: int
    tokens: int
    num_generations: int
    seconds_p10: float
    seconds_median: float
    seconds_p90: float
    tokens_per_s: float
    prompt_tokens: int
    prompted_tokens_per_s: float | None
    reference_tokens_per_s: float | None
    fraction_of_limit: float | None
    latents_error: float | None
    same_tokens: float | None
    usd_per_million_tokens: Decimal | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Circumstances:
    """What the benchmark of a run is told.

    Attributes:
        limit: Names the limit of the run that has been reached, or None.
        price_usd_per_hour: That this attempt pays; None where nobody pays.
        expected_gpu: That the plan pays for, by SkyPilot's name; None: any, or none.
        before: The card before it was touched.
        git_sha: Of the code that runs.
    """

    limit: Callable[[], str | None]
    price_usd_per_hour: Decimal | None = None
    expected_gpu: str | None = None
    before: GpuState | None = None
    git_sha: str | None = None


def measure(generator: Generator, run_id: str, step: int, told: Circumstances) -> tuple[Report, Throughput]:
    """Check and time a generator at its own steps and batch 1; on a GPU over steps and batches, and in fp8.

    At a limit of the run, or after some minutes, what is left is not begun; the first case always is. Where
    the fast path computes something else, the speed is the reference's.
    """
    device = generator.model.hidden_mean.device
    modes, is_late = _modes(device), over_after(_SWEEP_S)

    def is_over() -> bool:
        return is_late() or told.limit() is not None

    effort = Effort(generator.config.sampling.bench_generations, _CASE_S if device.type == "cuda" else 1e9,
                    generator.config.seed, told.price_usd_per_hour, projects=False, is_over=is_over)
    subject = Subject(lambda model: generator, is_trained=True)
    report = Report(
        at=datetime.now(UTC), source=f"{run_id}, step {step}", seed=effort.seed,
        device=look_at(device, told.before, told.expected_gpu), software=software(device, told.git_sha),
        rates=measure_rates(device, modes), price_usd_per_hour=told.price_usd_per_hour, cases=())
    results = run_cases(_cases(generator, modes, device, run_id), subject, report.rates, effort, device)
    report = report.model_copy(update=_gathered(results))
    if reached := told.limit():
        print(f"warning: the benchmark was cut short: {reached}", flush=True)
    return report, _throughput(generator, report)


def _gathered(results: Iterator[CaseResult]) -> dict[str, object]:
    """Cases of a report, and what kept it from having all: the headline, which is the first, is not lost for
    what a new card or format cannot do behind it."""
    found, problems = list[CaseResult](), list[str]()
    try:
        found.extend(results)
    except RuntimeError as error:
        if not found:
            raise
        traceback.print_exc()
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        problems.append(f"broken off behind {found[-1].case}: {why}")
    return {"cases": tuple(found), "problems": tuple(problems)}


def _modes(device: torch.device) -> tuple[Mode, ...]:
    """The usual one, which is the headline's, first."""
    usual = usual_mode(device)
    return (usual, "fp8") if device.type == "cuda" and multiplies_fp8(device) else (usual,)


def _cases(generator: Generator, modes: tuple[Mode, ...], device: torch.device, name: str) -> list[Case]:
    config = generator.config
    grid = Grid(steps=(config.sampling.steps,), batches=(1,), modes=modes,
                sweeps=("steps", "batch") if device.type == "cuda" else ())
    return grid.cases(name, [config.data.sequence_length])


def _throughput(generator: Generator, report: Report) -> Throughput:
    first = report.cases[0]
    own = with_sampling(generator, first.case)
    timed = first.fast or _timed(Eager(own), first.case, generator)
    # Behind an error of CUDA a process can do no more.
    has_prompt = generator.config.model.prompt and not report.problems
    prompt = longest_dummy_prompt(generator) if has_prompt else None
    prompted = None
    if prompt:  # weights are laid out again for it: those of the cases are gone
        path: Path = FastPaths(generator).at(own, first.case.mode) if first.fast else Eager(own)
        prompted = _timed(path, first.case, generator, prompt)
    problems = [*([first.slowed] if first.slowed else []),
                *(f"{result.case}: {result.left_out}" for result in report.cases if result.has_failed)]
    return Throughput(
        device=report.device.name, is_rtx5090=report.device.is_rtx5090,
        dtype=first.case.mode if first.fast else "fp32", torch_version=report.software.torch,
        denoiser_steps=first.case.steps, tokens=first.case.model.length, **timed.model_dump(),
        prompt_tokens=prompt.tokens_BP.shape[1] if prompt else 0,
        prompted_tokens_per_s=prompted.tokens_per_s if prompted else None,
        reference_tokens_per_s=first.reference.tokens_per_s if first.reference else None,
        fraction_of_limit=first.fraction_of_limit, **_checked(first),
        usd_per_million_tokens=first.usd_per_million_tokens,
        warnings=(*report.device.warnings, *problems, *report.problems))


def _checked(result: CaseResult) -> dict[str, float | None]:
    check = result.check
    return {"latents_error": check.latents_error if check else None,
            "same_tokens": check.same_tokens if check else None}


def _timed(path: Path, case: Case, generator: Generator, prompt: Prompt | None = None) -> Timed:
    num = generator.config.sampling.bench_generations
    return time_path(path, case.batch, case.model.length, num, generator.model.hidden_mean.device,
                     over_after(_CASE_S), prompt)


def longest_dummy_prompt(generator: Generator) -> Prompt:
    """A prompt of the longest kind, of nothing in particular: only its size decides the time."""
    model, num = generator.model, longest_prompt(generator.config)
    device = model.hidden_mean.device
    hidden_1PD = torch.randn(1, num, len(model.hidden_mean), device=device)
    return Prompt(torch.zeros(1, num, dtype=torch.int64, device=device), hidden_1PD,
                  torch.tensor([num], device=device))
