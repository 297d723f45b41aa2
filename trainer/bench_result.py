"""`bench.json`: everything a benchmark has found, in one versioned form."""

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.bench_cases import Case
from trainer.bench_device import Device, GpuState, Software
from trainer.bench_first import FirstText
from trainer.bench_floor import PartWork, Rates
from trainer.bench_parts import Parts
from trainer.bench_timing import Timed
from trainer.contract import ConfigError
from trainer.fast.program import Way

# Greatest relative error of the latents by how weights are held. bf16: the benchmark's specification;
# fp32: rounding of another order of sums; quantised ones are rows of their own, each with its error: more
# is a fault (guesses: about twice what was measured; what is unlike the reference is 1.4 off).
MOST_ERROR = {"fp32": 1e-3, "bf16": 1e-2, "fp8": 0.2, "fp4": 0.7}
_QUANTISED = {"fp8", "fp4"}
_Form = TypeVar("_Form", bound=BaseModel)
LEAST_SAME_TOKENS = 0.99  # of a trained checkpoint; the likeliest of random tokens are near ties


class Check(BaseModel):
    """The fast path beside the float32 reference, on seeds that nothing else uses.

    Attributes:
        latents_error: Relative error of the latents, of the worst seed; None: it is no number, which JSON
            cannot say.
        same_tokens: Share of positions with the same token, over all seeds.
        problem: Why the case counts as failed and is not timed; None: it passed.
    """

    model_config = ConfigDict(frozen=True)
    latents_error: float | None
    same_tokens: float
    problem: str | None

    def __str__(self) -> str:
        error = math.nan if self.latents_error is None else self.latents_error
        return f"error {error:.5f}, {self.same_tokens:.1%} the same"


class CaseResult(BaseModel):
    """What was found of one case.

    Attributes:
        check: None where the device has no room for it. A mode that is emulated is checked and not timed.
        reference: The float32 eager path, timed in the same run.
        work: Floor of each part; None where it is not known.
        fraction_of_limit: Floor of a generation by the median of the fast path.
        ratio: Speed of the fast path by the reference's.
        usd_per_million_tokens: At the price of the run; None without one.
        projected_rtx5090_tokens_per_s: A projection by bandwidth, never a measurement; None: not asked for,
            or arithmetic bounds it.
        published_tokens_per_s: Of the published code on such a card; None where it was not measured.
        parts: Where the time of the fast path goes; None: not asked for.
        autoregressive: A transformer of as many parameters, one CUDA graph a token; None: not asked for.
        loaded: The card while the fast path runs.
        fast_path: What the fast path has said of itself.
        way: How its texts were made; None: not by the fast path.
        left_out: Why it was not timed.
    """

    model_config = ConfigDict(frozen=True)
    case: Case
    check: Check | None = None
    reference: Timed | None = None
    fast: Timed | None = None
    work: dict[str, PartWork] | None = None
    floor_s: float | None = None
    fraction_of_limit: float | None = None
    ratio: float | None = None
    usd_per_million_tokens: Decimal | None = None
    projected_rtx5090_tokens_per_s: float | None = None
    published_tokens_per_s: float | None = None
    parts: Parts | None = None
    autoregressive: Timed | None = None
    loaded: GpuState | None = None
    fast_path: tuple[str, ...] = ()
    way: Way | None = None
    left_out: str | None = None

    @property
    def slowed(self) -> str | None:
        """What held the card's clocks down while the fast path ran, in words; None: nothing, or not known."""
        reasons = self.loaded.throttled if self.loaded else ()
        return f"{self.case}: clocks were held down by {', '.join(reasons)}" if reasons else None

    @property
    def has_failed(self) -> bool:
        """True where the two paths do not compute the same."""
        return self.check is not None and self.check.problem is not None


class Report(BaseModel):
    """A whole benchmark.

    Attributes:
        source: `random weights`, or the run and its step.
        price_usd_per_hour: Of the machine.
        seed: Of random weights, and of the inputs that are checked; timed ones are 0, 1, 2, ...
        projects: A projection for an RTX 5090 was asked for, where one can be made.
        first_texts: Cold starts; none: not asked for.
        problems: What was asked for beside the cases and did not work.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["ldlm generation benchmark"] = "ldlm generation benchmark"
    version: Literal[1] = 1
    at: datetime
    source: str
    seed: int
    device: Device
    software: Software
    rates: Rates
    price_usd_per_hour: Decimal | None
    cases: tuple[CaseResult, ...]
    projects: bool = False
    first_texts: tuple[FirstText, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def failed(self) -> list[CaseResult]:
        """Cases in which the fast path computes something else."""
        return [result for result in self.cases if result.has_failed]


def read_report(path: Path, form: type[_Form] = Report) -> _Form:  # type: ignore[assignment]
    """An earlier result, of generation unless another form is named.

    Raises:
        ConfigError: It is not there, or is none of this version.
    """
    try:
        return parsed_report(path.read_bytes(), str(path), form)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(path),
                          fix="name a file that --out has written") from error


def parsed_report(text: bytes, place: str, form: type[_Form]) -> _Form:
    """A result as it was written somewhere. Raises ConfigError: it is none of this version."""
    try:
        return form.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "JSON"
        raise ConfigError(f"is no result of this benchmark: {what}: {first['msg']}", place=place,
                          fix="name a file that --out of this version has written") from error


def usd_per_million_tokens(price_usd_per_hour: Decimal, tokens_per_s: float) -> Decimal:
    """Dollars of a million tokens on a machine that does nothing else, to a millionth."""
    return (price_usd_per_hour / 3600 / Decimal(tokens_per_s) * 1_000_000).quantize(Decimal("0.000001"))


def check_of(latents_errors: Sequence[float], same_tokens: Sequence[float], mode: str, *,
             is_trained: bool) -> Check:
    """What the figures of each seed come to."""
    error = max(latents_errors) if all(map(math.isfinite, latents_errors)) else None
    share = sum(same_tokens) / len(same_tokens)
    return Check(latents_error=error, same_tokens=share, problem=_problem(error, share, mode, is_trained))


def _problem(latents_error: float | None, same_tokens: float, mode: str, is_trained: bool) -> str | None:
    """Why two paths do not compute the same; None: they do."""
    if latents_error is None:
        return "latents are not numbers"
    if latents_error > MOST_ERROR[mode]:
        return f"latents are {latents_error:.4f} off, more than {MOST_ERROR[mode]:g}"
    if mode not in _QUANTISED and is_trained and same_tokens < LEAST_SAME_TOKENS:
        return f"{same_tokens:.1%} of tokens are the same, fewer than {LEAST_SAME_TOKENS:.0%}"
    return None
