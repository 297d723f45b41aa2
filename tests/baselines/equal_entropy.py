"""Which setting stands for a model at an entropy, and what follows from it. Numbers in, numbers out.

A setting is chosen on one half of its texts and reported on the other: otherwise the model with more
settings would win by luck. Nothing is interpolated: what is reported was sampled, and timed, as it stands.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

NEAR = 0.1  # nats: entropies no farther apart count as equal
WITHIN = 1.5  # times the perplexity of masked diffusion: the goal


class Scores(NamedTuple):
    """Of some texts: by the judge, and the share of their 4-grams that training rows hold."""

    perplexity: float
    entropy: float
    distinct_2: float
    distinct_4: float
    copied_4: float


@dataclass(frozen=True)
class Point:
    """One setting of one trained model.

    Attributes:
        tokens_per_s: By batch size.
        choosing, reported: Of the two halves of its texts.
    """

    model: str
    seed: int
    setting: dict[str, Any]
    dtype: str
    tokens_per_s: dict[int, float]
    choosing: Scores
    reported: Scores

    @property
    def batch(self) -> int:
        """The largest that was timed."""
        return max(self.tokens_per_s)


@dataclass(frozen=True)
class Line:
    """A model at an entropy, by the settings that stand for it: one of each seed that comes there."""

    model: str
    num_seeds: int
    points: list[Point]

    def mean(self, value: Callable[[Point], float]) -> float:
        """Over seeds."""
        return statistics.fmean(value(point) for point in self.points)

    @property
    def perplexity(self) -> float:
        """Of the reported halves."""
        return self.mean(lambda point: point.reported.perplexity)

    @property
    def deviation(self) -> float | None:
        """Of the perplexity over seeds; None for one."""
        found = [point.reported.perplexity for point in self.points]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def speed(self) -> float:
        """Tokens/s at the largest batch."""
        return self.mean(lambda point: point.tokens_per_s[point.batch])


def near(points: Sequence[Point], entropy: float) -> list[Point]:
    """Of settings that differ in temperature alone, the nearest to an entropy, if it is near at all."""
    sweeps: dict[Any, list[Point]] = {}
    for point in points:
        setting = tuple(sorted((k, str(v)) for k, v in point.setting.items() if k != "temperature"))
        sweeps.setdefault(setting, []).append(point)
    nearest = [min(sweep, key=lambda point: abs(point.choosing.entropy - entropy))
               for sweep in sweeps.values()]
    return [point for point in nearest if abs(point.choosing.entropy - entropy) <= NEAR]


def best(points: Sequence[Point], model: str, entropy: float) -> Line:
    """Of each seed, the setting of the lowest perplexity."""
    return _line(points, model, lambda own: min(
        near(own, entropy), key=lambda point: point.choosing.perplexity, default=None))


def fastest(points: Sequence[Point], model: str, entropy: float, perplexity: float) -> Line:
    """Of each seed, the fastest setting whose perplexity is at most so high."""
    return _line(points, model, lambda own: max(
        (point for point in near(own, entropy) if point.choosing.perplexity <= perplexity),
        key=lambda point: point.tokens_per_s[point.batch], default=None))


def _line(points: Sequence[Point], model: str, choose: Callable[[list[Point]], Point | None]) -> Line:
    seeds: dict[int, list[Point]] = {}
    for point in points:
        if point.model == model:
            seeds.setdefault(point.seed, []).append(point)
    chosen = [choose(own) for own in seeds.values()]
    return Line(model, len(seeds), [point for point in chosen if point is not None])


def models_of(points: Sequence[Point]) -> list[str]:
    """In the order of the records."""
    return list(dict.fromkeys(point.model for point in points))


def as_good_as(points: Sequence[Point], entropy: float) -> list[tuple[str, float, Line]]:
    """For each model, its perplexity, and the fastest settings of every model that is as good."""
    found = []
    for other in models_of(points):
        line = best(points, other, entropy)
        if line.points:
            limit = line.mean(lambda point: point.choosing.perplexity)
            found += [(other, limit, fastest(points, model, entropy, limit)) for model in models_of(points)]
    return found


def verdicts(points: Sequence[Point], entropy: float) -> list[str]:
    """A line for each goal of each of our models: met or not, with its numbers."""
    found = []
    for model in models_of(points):
        if not model.startswith("ldlm"):
            continue
        found += [_by_perplexity(points, model, entropy, "ngram", 1.0),
                  _by_perplexity(points, model, entropy, "masked", WITHIN)]
        found += [_by_speed(points, model, entropy, other) for other in ("ngram", "masked")]
    return found


def _by_perplexity(points: Sequence[Point], model: str, entropy: float, other: str, times: float) -> str:
    goal = f"{model} below {other}" if times == 1.0 else f"{model} within {times:g} times {other}"
    ours, theirs = best(points, model, entropy), best(points, other, entropy)
    if missing := _missing(ours, theirs):
        return f"{goal}: not met, {missing}"
    ratio = ours.perplexity / theirs.perplexity
    is_met = ratio < 1.0 if times == 1.0 else ratio <= times
    return (f"{goal}: {_word(is_met)}, perplexity {ours.perplexity:.1f} against {theirs.perplexity:.1f} "
            f"({ratio:.2f} times)")


def _by_speed(points: Sequence[Point], model: str, entropy: float, other: str) -> str:
    """At the best quality that both reach: the perplexity of the worse of the two at its best."""
    goal = f"{model} faster than {other} at equal quality"
    pair = best(points, model, entropy), best(points, other, entropy)
    if missing := _missing(*pair):
        return f"{goal}: not met, {missing}"
    limit = max(line.mean(lambda point: point.choosing.perplexity) for line in pair)
    ours, theirs = (fastest(points, name, entropy, limit) for name in (model, other))
    if missing := _missing(ours, theirs):
        return f"{goal}: not met, {missing} at perplexity {limit:.1f} or less"
    speeds = f"{described(ours)} against {described(theirs)}, perplexity {limit:.1f} or less"
    batches = {point.batch for line in (ours, theirs) for point in line.points}
    if len(batches) > 1:
        return f"{goal}: not comparable, timed at different batches: {speeds}"
    return f"{goal}: {_word(ours.speed > theirs.speed)}, {speeds} ({ours.speed / theirs.speed:.2f} times)"


def _missing(*lines: Line) -> str:
    """Which models have no setting there; empty when all have."""
    names = [line.model for line in lines if not line.points]
    return f"no setting of {' and '.join(names)} comes there" if names else ""


def described(line: Line) -> str:
    """Speed, batch and settings of a line."""
    settings = sorted({setting_in_words(point) for point in line.points})
    return f"{line.speed:,.0f} tokens/s (batch {line.points[0].batch}; {' or '.join(settings)})"


def setting_in_words(point: Point) -> str:
    """Steps, if there are any, and temperature."""
    steps = f"{point.setting['steps']} steps, " if "steps" in point.setting else ""
    return f"{steps}T {point.setting['temperature']:g}"


def _word(is_met: bool) -> str:
    return "met" if is_met else "not met"


def finite(value: float | None) -> float:
    """A perplexity that sorts: without a scored token it is endless."""
    return math.inf if value is None else value
