"""What a person reads of a benchmark of training, at most 80 columns wide. Pure."""

import textwrap
from collections.abc import Iterator, Mapping

from trainer.bench_table import WIDTH, folded, note
from trainer.bench_train_cases import TrainCase
from trainer.bench_train_profile import Kernels
from trainer.bench_train_result import TrainCaseResult, TrainReport

_MOST_DATA_WAIT = 0.01
_MOST_MEMORY_ERROR = 0.1
_TOP_KERNELS = 12


def screen(report: TrainReport, kernels: Mapping[TrainCase, Kernels]) -> list[str]:
    """The whole answer: device, limits, one section for each case, what has to be said."""
    lines = list(_head(report))
    for result in report.cases:
        lines += ["", *folded(str(result.case)), *_case(result)]
        if result.case in kernels:
            lines += ["", *_kernels(kernels[result.case])]
    return [*lines, "", *_notes(report)]


def _head(report: TrainReport) -> Iterator[str]:
    rates = report.rates
    versions = ", ".join(f"{name} {version}" for name, version in report.libraries.items() if version)
    yield from folded(f"{report.device.name}; torch {report.software.torch}, {versions}; random weights")
    matrix = ", ".join(f"{mode} {rate / 1e12:,.2f} TFLOP/s" for mode, rate in rates.flops_per_s.items())
    yield from folded(f"measured now: reads {rates.read_bytes_per_s / 1e12:.3f} TB/s ({rates.read_how}); "
                      f"products {matrix}")


def _case(result: TrainCaseResult) -> Iterator[str]:
    timed = result.fast
    if timed is None:
        yield f"  {result.left_out}"
        return
    speed = f"{timed.tokens_per_s:,.0f}"
    if result.case.ranks_are_real:
        speed += f" of each rank, {result.case.num_ranks * timed.tokens_per_s:,.0f} of all"
    rows = {"tokens/s": speed, **_shares(result),
            "step": f"{1e3 * timed.seconds_median:,.1f} ms ({1e3 * timed.seconds_p10:,.1f} to "
                    f"{1e3 * timed.seconds_p90:,.1f}, {timed.num_steps} steps)"}
    if result.reference and result.ratio:
        rows["reference"] = (f"{result.reference.tokens_per_s:,.0f} tokens/s plainly: this is "
                             f"{result.ratio:.2f} times as fast")
    if result.check:
        errors = ", ".join(f"{name} {'no number' if error is None else f'{error:.3%}'}"
                           for name, error in result.check.errors.items())
        rows["off by"] = f"{errors} at most in {result.check.num_steps} steps"
    if result.as_trained_tokens_per_s:
        each = " of each rank" if result.case.ranks_are_real else ""
        rows["as trained"] = f"~{result.as_trained_tokens_per_s:,.0f} tokens/s{each} (projection by parts)"
    if result.peak_memory_gib and result.predicted_memory_gib:
        error = result.predicted_memory_gib / result.peak_memory_gib - 1
        rows["memory"] = f"{result.peak_memory_gib:.2f} GiB, predicted {result.predicted_memory_gib:.2f} " \
                         f"({error:+.1%})"
    if result.data_wait_share is not None:
        rows["data wait"] = f"{result.data_wait_share:.2%}"
    if result.losses:
        rows["losses"] = ", ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    if result.linear_attention:
        rows["linear att."] = result.linear_attention
    for name, words in rows.items():
        yield from textwrap.wrap(words, WIDTH, initial_indent=f"  {name:<12}", subsequent_indent=14 * " ")
    yield ""
    yield from _parts(result)


def _shares(result: TrainCaseResult) -> dict[str, str]:
    assert result.fast and result.flops and result.share_of_matrix_rate and result.floor_s
    rate = result.flops / result.fast.seconds_median / 1e12
    of = "the matrix rate in bf16" if result.case.products == "fp8" else "the matrix rate"  # may be above 1
    return {"useful": f"{rate:,.1f} TFLOP/s, {result.share_of_matrix_rate:.1%} of {of}; "
                      f"{result.floor_s / result.fast.seconds_median:.1%} of the limit"}


def _parts(result: TrainCaseResult) -> Iterator[str]:
    """Floors and times, each of the whole step."""
    assert result.work is not None and result.fast is not None and result.floor_s is not None
    yield f"  {'floor':<18} {'passes':>6} {'GB':>9} {'TFLOP':>9} {'read ms':>9} {'compute ms':>11}"
    for part, work in result.work.items():
        yield (f"  {part.replace('_', ' '):<18} {work.passes:>6} {work.num_bytes / 1e9:>9,.2f} "
               f"{work.flops / 1e12:>9,.3f} {work.read_s * 1e3:>9,.2f} {work.compute_s * 1e3:>11,.2f}")
    yield f"  {'in all':<18} {1e3 * result.floor_s:>47,.2f} ms"
    if not result.parts_s:
        return
    yield ""
    yield f"  {'measured':<18} {'ms':>9} {'share':>7}"
    whole = sum(result.parts_s.values())
    for part, seconds in result.parts_s.items():
        yield f"  {part.replace('_', ' '):<18} {1e3 * seconds:>9,.2f} {seconds / whole:>7.1%}"


def _kernels(found: Kernels) -> Iterator[str]:
    wall = found.wall_s or 1.0
    yield f"  {'kernels':<22} {'ms':>9} {'share':>7}"
    for group, seconds in (found.groups | {"idle gaps": found.idle_s}).items():
        yield f"  {group:<22} {1e3 * seconds:>9,.2f} {seconds / wall:>7.1%}"
    yield ""
    yield f"  {'calls':>6} {'ms':>9}  kernel"
    for kernel in found.kernels[:_TOP_KERNELS]:
        yield f"  {kernel.num_calls:>6} {1e3 * kernel.total_s:>9,.2f}  {kernel.name[:58]}"


def _notes(report: TrainReport) -> Iterator[str]:
    """Every sentence that a figure must not be read without."""
    for result in report.cases:
        if result.left_out:
            yield from note(f"{result.case}: {result.left_out}")
        if result.check and result.check.problem:
            yield from note(f"{result.case}: {result.check.problem}")
        if result.has_no_room_for_reference:
            yield from note(f"{result.case}: there was no room for the reference")
        if result.loaded and result.loaded.throttled:
            yield from note(f"{result.case}: clocks were held down by {', '.join(result.loaded.throttled)}")
        if (result.data_wait_share or 0) > _MOST_DATA_WAIT:
            yield from note(f"{result.case}: text was waited for {result.data_wait_share:.1%} of the time")
        if result.peak_memory_gib and result.predicted_memory_gib:
            error = result.predicted_memory_gib / result.peak_memory_gib - 1
            if abs(error) > _MOST_MEMORY_ERROR:
                yield from note(f"{result.case}: a plan would be {error:+.0%} off in its memory")
    if any("a3b" in result.case.profile and result.case.scope != "trainables" for result in report.cases):
        yield from note("a random router uses all experts about alike; a trained one does not, and experts "
                        "of unequal size take longer")
    for warning in report.device.warnings:
        yield from note(warning)
