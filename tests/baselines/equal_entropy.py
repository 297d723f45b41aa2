"""Models at equal entropy, and what follows from it. Numbers in, numbers out.

Perplexity climbs steeply with entropy, 1.7 times in 0.1 nats where it was measured, so settings that are
merely near an entropy compare nothing. A model is sampled at several temperatures, and its perplexity at an
entropy is read between the two that surround it (linear in its logarithm). How many steps stand for a model
is chosen on one half of its texts, for all seeds alike, and reported on the other: otherwise the model with
more settings would win by luck.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    def sweep(self) -> tuple[tuple[str, str], ...]:
        """What settings have in common that differ in temperature alone."""
        return tuple(sorted((key, str(value)) for key, value in self.setting.items() if key != "temperature"))


@dataclass(frozen=True)
class Line:
    """A model at an entropy: one sweep of temperatures, the same for all seeds that come there.

    Attributes:
        points: Those that surround the entropy, of all these seeds; empty if no sweep comes there.
        choosing, reported: One each of these seeds, read between two temperatures.
    """

    model: str
    num_seeds: int
    points: list[Point]
    choosing: list[Scores]
    reported: list[Scores]

    def mean(self, name: str) -> float:
        """Of one of the scores that are reported, over seeds."""
        return statistics.fmean(getattr(scores, name) for scores in self.reported)

    @property
    def perplexity(self) -> float:
        """Of the reported halves."""
        return self.mean("perplexity")

    @property
    def choosing_perplexity(self) -> float:
        """Of the halves by which the sweep was chosen."""
        return statistics.fmean(scores.perplexity for scores in self.choosing)

    @property
    def deviation(self) -> float | None:
        """Of the perplexity over seeds; None for one."""
        found = [scores.perplexity for scores in self.reported]
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def batch(self) -> int:
        """The largest that was timed."""
        return max(self.points[0].tokens_per_s)

    def speed(self, batch: int) -> float:
        """Tokens/s, over seeds."""
        return statistics.fmean(point.tokens_per_s.get(batch, math.nan) for point in self.points)


def read_at(settings: Sequence[tuple[float, Scores]], entropy: float) -> Scores | None:
    """Scores of a model at an entropy.

    Args:
        settings: Temperature and scores of each.
        entropy: Nats.

    Returns:
        Between the two neighbouring temperatures that surround the entropy; None if none do.
    """
    for (_, low), (_, high) in _neighbours(settings):
        if min(low.entropy, high.entropy) <= entropy <= max(low.entropy, high.entropy):
            far = high.entropy - low.entropy
            part = (entropy - low.entropy) / far if far else 0.0
            between = [(1 - part) * one + part * other for one, other in zip(low, high, strict=True)]
            logarithm = (1 - part) * math.log(low.perplexity) + part * math.log(high.perplexity)
            return Scores(math.exp(logarithm), *between[1:])
    return None


def _neighbours(settings: Sequence[tuple[float, Scores]]) -> list[tuple[tuple[float, Scores], ...]]:
    """Pairs along the temperatures; of a lone one, itself."""
    ordered = sorted(settings, key=lambda setting: setting[0])
    return list(zip(ordered, ordered[1:] or ordered, strict=False))


def lines(points: Sequence[Point], model: str, entropy: float) -> list[Line]:
    """A model at an entropy, once for every sweep of which a seed comes there."""
    own = [point for point in points if point.model == model]
    num_seeds = len({point.seed for point in own})
    found = [_line([point for point in own if point.sweep == sweep], model, num_seeds, entropy)
             for sweep in dict.fromkeys(point.sweep for point in own)]
    return [line for line in found if line.points]


def _line(sweep: Sequence[Point], model: str, num_seeds: int, entropy: float) -> Line:
    used, choosing, reported = [], [], []
    for seed in dict.fromkeys(point.seed for point in sweep):
        own = [point for point in sweep if point.seed == seed]
        halves = [read_at([(point.setting["temperature"], half(point)) for point in own], entropy)
                  for half in (lambda point: point.choosing, lambda point: point.reported)]
        if halves[0] and halves[1]:
            choosing.append(halves[0])
            reported.append(halves[1])
            used += sorted(own, key=lambda point: abs(point.reported.entropy - entropy))[:2]
    return Line(model, num_seeds, used, choosing, reported)


def best(points: Sequence[Point], model: str, entropy: float) -> Line:
    """The sweep that most seeds come there with; among such the one of the lowest perplexity."""
    return min(lines(points, model, entropy),
               key=lambda line: (-len(line.choosing), line.choosing_perplexity),
               default=_nothing(points, model))


def fastest(points: Sequence[Point], model: str, entropy: float, perplexity: float) -> Line:
    """The fastest sweep with which all seeds come there and whose perplexity is at most so high."""
    able = [line for line in lines(points, model, entropy)
            if len(line.choosing) == line.num_seeds and line.choosing_perplexity <= perplexity]
    return max(able, key=lambda line: line.speed(line.batch), default=_nothing(points, model))


def _nothing(points: Sequence[Point], model: str) -> Line:
    return Line(model, len({point.seed for point in points if point.model == model}), [], [], [])


def models_of(points: Sequence[Point]) -> list[str]:
    """In the order of the records."""
    return list(dict.fromkeys(point.model for point in points))


def as_good_as(points: Sequence[Point], entropy: float) -> list[tuple[str, float, Line]]:
    """For each model, its perplexity, and the fastest settings of every model that is as good."""
    found = []
    for other in models_of(points):
        line = best(points, other, entropy)
        if line.points:
            limit = line.choosing_perplexity
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
    limit = max(line.choosing_perplexity for line in pair)
    ours, theirs = (fastest(points, name, entropy, limit) for name in (model, other))
    if missing := _missing(ours, theirs):
        return f"{goal}: not met, {missing} at perplexity {limit:.1f} or less"
    speeds = f"{described(ours)} against {described(theirs)}, perplexity {limit:.1f} or less"
    if ours.batch != theirs.batch:
        return f"{goal}: not comparable, timed at different batches: {speeds}"
    ratio = ours.speed(ours.batch) / theirs.speed(theirs.batch)
    return f"{goal}: {_word(ratio > 1)}, {speeds} ({ratio:.2f} times)"


def _missing(*lines: Line) -> str:
    """Which models have no setting there; empty when all have."""
    names = [line.model for line in lines if not line.points]
    return f"no setting of {' and '.join(names)} comes there" if names else ""


def described(line: Line) -> str:
    """Speed, batch and settings of a line."""
    return f"{line.speed(line.batch):,.0f} tokens/s (batch {line.batch}; {setting_in_words(line)})"


def setting_in_words(line: Line) -> str:
    """Steps, if there are any, and the temperatures between which it is read."""
    setting = line.points[0].setting
    steps = f"{setting['steps']} steps, " if "steps" in setting else ""
    temperatures = sorted({point.setting["temperature"] for point in line.points})
    return steps + "T " + " to ".join(f"{found:g}" for found in dict.fromkeys(
        (temperatures[0], temperatures[-1])))


def _word(is_met: bool) -> str:
    return "met" if is_met else "not met"


def finite(value: float | None) -> float:
    """A perplexity that sorts: without a scored token it is endless."""
    return math.inf if value is None else value
