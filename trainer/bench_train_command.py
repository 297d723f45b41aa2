"""`python -m trainer.bench train`: the trainer's own step at real sizes on one GPU or several, without a run.

Exit codes: 0 measured; 1 a case was not measured, its losses are not the reference's, it is slower than in
the earlier result, or nothing can be compared with that; 2 usage; others as of the `ldlm` command.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

import torch
from pydantic import BaseModel

from trainer.bench_compare import Comparison, compare, in_words
from trainer.bench_device import gpu_state, look_at, software
from trainer.bench_limits import measure_rates
from trainer.bench_output import Kept, Progress, keep, require_places
from trainer.bench_plot import require_plots
from trainer.bench_result import read_report
from trainer.bench_table import note
from trainer.bench_train_cases import TrainCase
from trainer.bench_train_job import as_first_rank, as_rank_of_torchrun
from trainer.bench_train_options import cases_of, read_train_options
from trainer.bench_train_plot import plot
from trainer.bench_train_profile import Kernels
from trainer.bench_train_result import TrainCaseResult, TrainReport
from trainer.bench_train_run import TrainEffort, run_cases
from trainer.bench_train_table import screen
from trainer.command import carry_out, talk
from trainer.contract import LdlmError
from trainer.fast.weights import Mode
from trainer.interrupts import INTERRUPTED
from trainer.ranks import own_devices

_LIBRARIES = ("transformers", "deepspeed", "fla-core", "causal-conv1d")


class Profile(BaseModel):
    """`--profile`: the kernels of one step of each case, by its words."""

    cases: dict[str, Kernels]


def main(arguments: Sequence[str]) -> int:
    """Benchmark as the command line says. Returns the exit code."""
    options = read_train_options(arguments)
    if not _is_first(options):
        return _take_part(options)
    verdicts: list[bool] = []
    kept = Kept(options.out)

    def answer() -> str:
        kernels: dict[TrainCase, Kernels] = {}
        report, comparison = train(options, kernels, kept)
        is_as_fast = comparison is None or comparison.is_good
        verdicts.append(report.is_good and is_as_fast and kept.problem is None)
        words = [] if kept.problem is None else note(kept.problem)
        words += [] if comparison is None else ["", *in_words(comparison)]
        return "\n".join([*screen(report, kernels), *words])

    code = carry_out(answer, out=options.out or options.plot, interrupted=kept.interrupted)
    return code or int(not all(verdicts))


def _take_part(options: Namespace) -> int:
    """Do all that rank 0 does, which says and keeps what there is."""
    for place in ("out", "plot", "against"):
        setattr(options, place, None)
    try:
        train(options, {}, Kept(None))
    except KeyboardInterrupt:
        return INTERRUPTED
    except LdlmError as error:  # torchrun ends rank 0 at once, which may not know why
        talk(f"error: rank {os.environ['RANK']}: {error}")
        return error.cli_exit_code
    return 0


def train(options: Namespace, kernels: dict[TrainCase, Kernels],
          kept: Kept) -> tuple[TrainReport, Comparison | None]:
    """Measure every case and write it. What is quick to refuse comes first.

    Raises:
        LdlmError: See the exit codes.
    """
    earlier = read_report(options.against, TrainReport) if options.against else None
    if options.plot:
        require_plots()
    require_places({"--out": options.out, "--profile": options.kernels, "--plot": options.plot},
                   {"--against": options.against})
    cases = cases_of(options)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
    before = gpu_state()
    device, = own_devices(1) if options.ranks_are_real else [_first_device()]
    report = TrainReport(
        at=datetime.now(UTC), seed=options.seed, device=look_at(device, before, None),
        software=software(device, options.git_sha), libraries={name: _version(name) for name in _LIBRARIES},
        rates=measure_rates(device, _modes(device)), cases=())
    report = _measured(options, cases, device, report, kernels, kept)
    if options.plot:
        plot(report, options.plot)
    return report, compare(report, earlier) if earlier else None


def _is_first(options: Namespace) -> bool:
    return not options.ranks_are_real or os.environ["RANK"] == "0"


def _first_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _modes(device: torch.device) -> tuple[Mode, ...]:
    return ("bf16", "fp8") if device.type == "cuda" else ("fp32",)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _measured(options: Namespace, cases: list[TrainCase], device: torch.device, report: TrainReport,
              kernels: dict[TrainCase, Kernels], kept: Kept) -> TrainReport:
    """The report with all cases in it, written after each, and before its reference: what ends this early
    costs only the rest."""
    is_first, profile = _is_first(options), options.kernels is not None
    say = talk if is_first else lambda line: None
    progress = Progress(len(cases), say)
    effort = TrainEffort(options.steps, options.case_seconds, options.seed,
                         has_reference=options.reference,
                         check_steps=options.check_steps if options.reference else 0, say=say,
                         hear_timed=lambda result: kept.write(with_this(result)),
                         hear_kernels=kernels.__setitem__ if profile else None)

    def with_this(result: TrainCaseResult) -> TrainReport:
        return report.model_copy(update={"cases": (*report.cases, result)})

    with as_rank_of_torchrun() if options.ranks_are_real else as_first_rank(options.ranks):
        for result in run_cases(cases, report.rates, effort, device):
            progress.done(result)
            report = with_this(result)
            kept.write(report)
            if profile and is_first:
                keep(Profile(cases={str(case): found for case, found in kernels.items()}), options.kernels)
    return report
