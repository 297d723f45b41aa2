"""`python -m trainer.bench generate`: random weights of profiles, the reference and the fast path in one run.

Exit codes: 0 measured; 1 a path computes something else, nothing was measured, not all could be kept, no
first text came, a case is slower than in the earlier result, or lost, or nothing can be compared with it;
2 usage; others as of the `ldlm` command.
"""

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainer.bench_cases import Case, Grid
from trainer.bench_compare import Comparison, compare, in_words
from trainer.bench_device import gpu_state, look_at, software
from trainer.bench_limits import measure_rates
from trainer.bench_options import read_bench_options
from trainer.bench_output import Kept, Progress, require_places
from trainer.bench_plot import plot, require_plots
from trainer.bench_result import Report, read_report
from trainer.bench_room import if_room
from trainer.bench_run import Effort, run_cases
from trainer.bench_sources import Source, of_export, of_profile
from trainer.bench_table import note, screen
from trainer.command import carry_out, talk
from trainer.contract import ConfigError, LdlmError
from trainer.fast.weights import Mode, is_emulated, usual_mode


def main(arguments: Sequence[str]) -> int:
    """Benchmark as the command line says. Returns the exit code."""
    options = read_bench_options(arguments)
    verdicts: list[bool] = []
    kept = Kept(options.out)

    def answer() -> str:
        report, comparison = generate(options, kept)
        verdicts.append(is_good(report, comparison) and kept.problem is None)
        words = [] if kept.problem is None else note(kept.problem)
        words += [] if comparison is None else ["", *in_words(comparison)]
        return "\n".join([*screen(report), *words])

    code = carry_out(answer, out=options.out, interrupted=kept.interrupted)
    return code or int(not all(verdicts))


def generate(options: Namespace, kept: Kept) -> tuple[Report, Comparison | None]:
    """Measure every case and write it. What is quick to refuse comes first.

    Raises:
        LdlmError: See the exit codes.
    """
    earlier = read_report(options.against) if options.against else None
    if options.plot:
        require_plots()
    require_places({"--out": options.out, "--plot": options.plot}, {"--against": options.against})
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
    before = gpu_state()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _require_meaning(options, device)
    sources = _sources(options, device)
    report = _measured(options, sources, device, kept, Report(
        at=datetime.now(UTC), source=_source_words(options), seed=options.seed,
        device=look_at(device, before, options.expect), software=software(device, options.git_sha),
        rates=measure_rates(device, _modes(options, device)), price_usd_per_hour=options.price, cases=(),
        projects=options.project is not None))
    if options.plot:
        report = _plotted(report, options.plot)
    return report, compare(report, earlier) if earlier else None


def _plotted(report: Report, path: Path) -> Report:
    try:
        plot(report, path)
    except OSError as error:  # what was measured is told nevertheless
        return _with_problem(report, f"no plot: {path} cannot be written: {error.strerror or error}")
    return report


def is_good(report: Report, comparison: Comparison | None) -> bool:
    """True when what was asked for was measured, no path computes something else, and nothing is slower."""
    measured = any(result.check for result in report.cases) and not report.problems
    return measured and not report.failed and (comparison is None or comparison.is_good)


def _require_meaning(options: Namespace, device: torch.device) -> None:
    """Raises ConfigError where a figure that was asked for would say nothing."""
    if options.first_text and is_emulated(mode := _modes(options, device)[0], device):
        raise ConfigError(f"{mode} is emulated here: its speed says nothing", place="--first-text",
                          fix="give another --dtype first")
    if options.project and device.type != "cuda":
        raise ConfigError("the speed of a CPU says nothing of a GPU's", place="--project",
                          fix="leave it out, or benchmark on a GPU")


def _source_words(options: Namespace) -> str:
    random = ["random weights"] if options.preset else []
    return ", ".join([*random, *(str(path) for path in options.exports)])


def _modes(options: Namespace, device: torch.device) -> tuple[Mode, ...]:
    return tuple(dict.fromkeys(options.dtype or [usual_mode(device)]))


def _sources(options: Namespace, device: torch.device) -> list[Source]:
    """What was named, each once.

    Raises:
        ConfigError: There is no such export, one was asked for another length than its own, or two have one
            name.
    """
    profiles = [of_profile(name, options.seed, device) for name in dict.fromkeys(options.preset)]
    exports = [of_export(path, device) for path in dict.fromkeys(options.exports)]
    for source in exports:
        others = "--sweep length" if "length" in options.sweep else "--length"
        if others != "--length" or options.length and set(options.length) != {source.length}:
            raise ConfigError(f"{source.name} has learned texts of {source.length} tokens, and no others",
                              place=others, fix=f"leave {others} out")
    for name, num in Counter(source.name for source in [*profiles, *exports]).items():
        if num > 1:
            raise ConfigError(f"{num} of them are called {name}: their figures could not be told apart",
                              place="--from", fix="rename a folder, or benchmark one after the other")
    return [*profiles, *exports]


def _cases(source: Source, options: Namespace, device: torch.device) -> list[Case]:
    grid = Grid(steps=tuple(options.steps or [10]), batches=tuple(options.batch or [1]),
                modes=_modes(options, device), sweeps=tuple(options.sweep))
    return grid.cases(source.name, options.length or [source.length])


def _measured(options: Namespace, sources: list[Source], device: torch.device, kept: Kept,
              report: Report) -> Report:
    """The report with all cases in it, written after each: what ends this early costs only the rest."""
    effort = Effort(options.generations, options.case_seconds, options.seed, options.price,
                    projects=options.project is not None, compiles=not options.no_compile,
                    has_parts=options.parts, has_autoregressive=options.autoregressive)
    cases = {source.name: _cases(source, options, device) for source in sources}
    progress = Progress(sum(map(len, cases.values())), talk)
    for source in sources:
        for result in run_cases(cases[source.name], source.subject, report.rates, effort, device):
            progress.done(result)
            report = report.model_copy(update={"cases": (*report.cases, result)})
            kept.write(report)
        if options.first_text:
            talk(f"{source.name}: the first text of a new process")
            report = _with_first_texts(report, source, _modes(options, device)[0])
            kept.write(report)
    return report


def _with_first_texts(report: Report, source: Source, mode: Mode) -> Report:
    try:
        found = if_room(lambda: source.first_texts(mode))
    except LdlmError as error:  # what was measured before stays
        return _with_problem(report, f"{source.name}: {error.problem}")
    if found is None:
        return _with_problem(report, f"{source.name}: no first text: it does not fit into memory")
    return report.model_copy(update={"first_texts": (*report.first_texts, *found)})


def _with_problem(report: Report, words: str) -> Report:
    return report.model_copy(update={"problems": (*report.problems, words)})
