"""What a person reads of a benchmark, at most 80 columns wide. Pure."""

import itertools
import textwrap
from collections.abc import Iterator
from decimal import Decimal

from trainer.bench_result import CaseResult, Report

WIDTH = 80
_WAYS = {"persistent kernels": "kernels", "compiled": "compiled", "operations of torch": "torch", None: "-"}


def screen(report: Report) -> list[str]:
    """The whole answer: device, limits, tables for each model, floors, what has to be said."""
    lines = list(_head(report))
    for name, group in itertools.groupby(report.cases, key=lambda result: result.case.model.name):
        results = list(group)
        lines += ["", *_speeds(name, results), "", *_spreads(results, report), *_parts(results), "",
                  *_floors(results)]
    return [*lines, *_first_texts(report), "", *_notes(report)]


def _first_texts(report: Report) -> Iterator[str]:
    """Cold starts: each part, then all until the first text."""
    for found in report.first_texts:
        path = "by the fast path" if found.is_fast else "operation by operation"
        path += ", kernels compiled before" if found.was_compiled else ""
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found.parts_s.items())
        yield ""
        yield from folded(f"{found.name}: first text of a new process after {found.total_s:.2f} s, {path}")
        yield from (f"  {line}" for line in textwrap.wrap(f"seconds: {parts}", WIDTH - 2))


def _head(report: Report) -> Iterator[str]:
    device, rates, software = report.device, report.rates, report.software
    yield from folded(f"{device.name}; torch {software.torch}; {report.source}")
    for words in dict.fromkeys(words for result in report.cases for words in result.fast_path):
        yield from folded(words)
    matrix = ", ".join(f"{mode} {rate / 1e12:,.2f} TFLOP/s" for mode, rate in rates.flops_per_s.items())
    yield from folded(f"measured now: reads {rates.read_bytes_per_s / 1e12:.3f} TB/s ({rates.read_how}); "
                       f"products {matrix}")
    if state := device.before:
        yield from folded(
            f"driver {state.driver_version}, clocks at most {_or_dash(state.clock_sm_max_mhz)} MHz, memory "
            f"{_or_dash(state.clock_memory_max_mhz)} MHz, {_or_dash(state.power_limit_w)} W, {software.sm}")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(result: CaseResult) -> str:
    case = result.case
    return f"  {case.steps:>5} {case.model.length:>6} {case.batch:>5} {case.mode:>5} "


def _speeds(name: str, results: list[CaseResult]) -> Iterator[str]:
    yield from folded(f"{name}: median tokens/s, share of the limit, distance from reference")
    yield (f"  {'steps':>5} {'tokens':>6} {'batch':>5} {'mode':>5} {'reference':>9} {'fast':>9} {'ratio':>6} "
           f"{'limit':>5} {'error':>8} {'same':>6}")
    for result in results:
        size = _size(result)
        yield size + (_figures(result) if result.left_out is None else result.left_out[:WIDTH - len(size)])


def _figures(result: CaseResult) -> str:
    fast, reference, check = result.fast, result.reference, result.check
    if fast is None or reference is None or check is None or check.latents_error is None:
        return ""
    return (f"{reference.tokens_per_s:>9,.0f} {fast.tokens_per_s:>9,.0f} {result.ratio or 0:>5.1f}x "
            f"{result.fraction_of_limit or 0:>5.0%} {check.latents_error:>8.5f} {check.same_tokens:>6.1%}")


def _spreads(results: list[CaseResult], report: Report) -> Iterator[str]:
    """Milliseconds; dollars and projections where they were asked for."""
    price = report.price_usd_per_hour
    dollars = f"; $ per million tokens at ${price:f}/h" if price is not None else ""
    yield f"  milliseconds of a generation{dollars}"
    yield (f"  {'steps':>5} {'tokens':>6} {'batch':>5} {'mode':>5} {'p10':>9} {'median':>9} {'p90':>9} "
           f"{'of':>4} {'path':>8}" + (f" {'$/M tok':>9}" if price is not None else ""))
    for result in results:
        if (fast := result.fast) is not None:
            seconds = (fast.seconds_p10, fast.seconds_median, fast.seconds_p90)
            yield (_size(result) + " ".join(_in_nine(1e3 * value, 3) for value in seconds)
                   + f" {fast.num_generations:>4} {_WAYS[result.way]:>8}"
                   + (f" {_in_nine(result.usd_per_million_tokens or 0, 6)}" if price is not None else ""))


def _in_nine(value: float | Decimal, digits: int) -> str:
    """A column of nine, with so many digits behind the point, or as many as there is room for."""
    fitting = (words for few in range(digits, -1, -1) if len(words := f"{value:>9,.{few}f}") == 9)
    return next(fitting, f"{value:>9.0f}")


def _parts(results: list[CaseResult]) -> Iterator[str]:
    """Shares of the time."""
    measured = [result for result in results if result.parts and result.fast]
    if measured:
        yield ""
        yield "  share of the time; the denoiser's attention and the head were timed alone"
        yield (f"  {'steps':>5} {'tokens':>6} {'batch':>5} {'mode':>5} {'denoiser':>9} {'attention':>9} "
               f"{'decoders':>9} {'head':>9}")
    for result in measured:
        if (parts := result.parts) and (fast := result.fast):
            shares = (parts.denoiser, parts.attention, parts.decoders, parts.head)
            yield _size(result) + " ".join(f"{share / fast.seconds_median:>9.1%}" for share in shares)


def _floors(results: list[CaseResult]) -> Iterator[str]:
    """Of the first case whose work is known."""
    first = next((result for result in results if result.work), None)
    if first is None or first.work is None or first.floor_s is None:
        return
    yield from (f"  {line}" for line in textwrap.wrap(
        f"floor of {first.case}: {1e3 * first.floor_s:,.3f} ms", WIDTH - 2, subsequent_indent="  "))
    yield f"  {'part':<16} {'passes':>6} {'MB':>9} {'GFLOP':>11} {'read us':>10} {'compute us':>11}"
    for part, work in first.work.items():
        yield (f"  {part.replace('_', ' '):<16} {work.passes:>6} {work.num_bytes / 1e6:>9,.1f} "
               f"{work.flops / 1e9:>11,.2f} {work.read_s * 1e6:>10,.1f} {work.compute_s * 1e6:>11,.1f}")


def _notes(report: Report) -> Iterator[str]:
    """Every sentence that a figure must not be read without."""
    for result in report.cases:
        if result.left_out:
            yield from note(f"{result.case}: {result.left_out}")
        elif result.slowed:
            yield from note(result.slowed)
        if result.fraction_of_limit and result.fraction_of_limit > 1:
            yield from note(f"{result.case}: faster than the limit: its weights lie in a cache, or "
                             "something else was running while limits were measured")
        if result.autoregressive and result.fast:
            other = result.autoregressive.tokens_per_s
            held = "fp32" if result.case.mode == "fp32" else "bf16"  # it has no quantised weights
            yield from note(f"{result.case}: {result.fast.tokens_per_s / other:.1f} times an autoregressive "
                             f"transformer of as many parameters in {held}, {other:,.0f} tokens/s")
        if (published := result.published_tokens_per_s) and (reference := result.reference):
            fast = f", the fast path {result.fast.tokens_per_s / published:.1f} times" if result.fast else ""
            yield from note(f"{result.case}: the published code runs {published:,.0f} tokens/s on such a "
                             f"card, the reference {reference.tokens_per_s / published:.2f} times that{fast}")
    for warning in (*report.problems, *report.device.warnings):
        yield from note(warning)
    if not report.device.is_rtx5090:
        yield from note("this is not an RTX 5090 figure")
    if report.projects:
        yield from _projections(report)


def _projections(report: Report) -> Iterator[str]:
    for result in report.cases:
        projected = result.projected_rtx5090_tokens_per_s
        if projected is not None:
            none = ", had it such kernels" if result.way == "persistent kernels" else ""  # of Hopper alone
            yield from note("PROJECTION for an RTX 5090, by bandwidth alone (1.79 TB/s), not measured: "
                             f"{result.case}: ~{projected:,.0f} tokens/s{none}")
        elif result.fast:
            yield from note(f"no projection for an RTX 5090 of {result.case}: arithmetic bounds it, too")


def note(text: str) -> list[str]:
    """Lines of a sentence that figures must not be read without."""
    return textwrap.wrap(text, WIDTH, initial_indent="! ", subsequent_indent="  ", break_long_words=False,
                         break_on_hyphens=False)


def folded(text: str) -> list[str]:
    """Lines of a longer sentence."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
