"""Models at equal entropy: which setting stands for one, and which goals that meets."""

import random
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "baselines"))
import equal_entropy as equal  # noqa: E402


def scores(perplexity: float, entropy: float) -> equal.Scores:
    return equal.Scores(perplexity, entropy, 0.5, 0.9, 0.1)


def point(model: str, perplexity: float, entropy: float = 3.0, *, speed: float = 100.0, batch: int = 8,
          seed: int = 0, reported: float | None = None, **setting: Any) -> equal.Point:
    return equal.Point(model, seed, {"temperature": 1.0, **setting}, "float32", {1: 1.0, batch: speed},
                       scores(perplexity, entropy), scores(reported or perplexity, entropy))


def test_between_settings_far_from_an_entropy_there_is_nothing() -> None:
    points = [point("m", 20, 2.0, temperature=0.5), point("m", 60, 4.0)]
    assert equal.best(points, "m", 3.0).points == []
    assert equal.best(points, "m", 3.95).perplexity == 60
    assert equal.best(points, "m", 3.89).points == []


def test_along_temperatures_the_nearest_entropy_counts_not_the_lowest_perplexity() -> None:
    points = [point("m", 20, 2.92, temperature=0.8), point("m", 30, 3.01, temperature=0.9),
              point("m", 25, 3.04, steps=4), point("m", 50, 3.0, steps=2)]
    assert [one.choosing.perplexity for one in equal.near(points, 3.0)] == [30, 25, 50]
    assert equal.best(points, "m", 3.0).points[0].setting["steps"] == 4


def test_a_model_with_more_settings_does_not_win_by_luck() -> None:
    """Four settings against one, all of true perplexity 50, known within 5 %."""
    draw = random.Random(0)

    def noisy() -> float:
        return 50 * draw.gauss(1, 0.05)

    found, lowest = [], []
    for _ in range(4000):
        points = [point("many", noisy(), reported=noisy(), steps=steps) for steps in (1, 2, 3, 4)]
        found.append(equal.best(points, "many", 3.0).perplexity)
        lowest.append(min(one.reported.perplexity for one in points))
    assert statistics.fmean(found) == pytest.approx(50, abs=0.16)  # 4 standard errors
    assert statistics.fmean(lowest) < 48


def test_seeds_of_a_model_give_a_mean_and_a_deviation() -> None:
    points = [point("m", 10, seed=0), point("m", 14, seed=1), point("m", 9, 5.0, seed=2)]
    line = equal.best(points, "m", 3.0)
    assert (line.perplexity, line.num_seeds, len(line.points)) == (12, 3, 2)
    assert line.deviation == pytest.approx(statistics.stdev([10, 14]))


def test_the_fastest_setting_is_the_one_that_is_still_as_good() -> None:
    points = [point("ldlm", 40, steps=64, speed=10), point("ldlm", 60, steps=16, speed=40),
              point("ldlm", 90, steps=4, speed=160), point("masked", 70, steps=32, speed=20)]
    found = {(other, line.model): line for other, _, line in equal.as_good_as(points, 3.0)}
    assert found["masked", "ldlm"].points[0].setting["steps"] == 16
    assert found["ldlm", "ldlm"].points[0].setting["steps"] == 64
    assert found["ldlm", "masked"].points == []


def test_every_goal_is_met_or_not_with_its_numbers() -> None:
    points = [point("ngram", 80, speed=30), point("masked", 40, steps=64, speed=20),
              point("masked", 55, steps=16, speed=80), point("ldlm", 56, steps=16, speed=50),
              point("ldlm", 70, steps=4, speed=200)]
    assert equal.verdicts(points, 3.0) == [
        "ldlm below ngram: met, perplexity 56.0 against 80.0 (0.70 times)",
        "ldlm within 1.5 times masked: met, perplexity 56.0 against 40.0 (1.40 times)",
        "ldlm faster than ngram at equal quality: met, 200 tokens/s (batch 8; 4 steps, T 1) against "
        "30 tokens/s (batch 8; T 1), perplexity 80.0 or less (6.67 times)",
        # At its best, ldlm comes to 56: masked does so in 16 steps.
        "ldlm faster than masked at equal quality: not met, 50 tokens/s (batch 8; 16 steps, T 1) against "
        "80 tokens/s (batch 8; 16 steps, T 1), perplexity 56.0 or less (0.62 times)"]


def test_speeds_at_different_batches_are_not_compared() -> None:
    points = [point("ldlm", 50, batch=32, speed=90), point("masked", 60, batch=512, speed=20)]
    found = equal.verdicts(points, 3.0)[-1]
    assert "not comparable, timed at different batches" in found and "met" not in found.split(":")[1]


def test_a_goal_against_a_model_that_is_not_there_is_not_met() -> None:
    assert equal.verdicts([point("ldlm main", 50), point("autoregressive", 20)], 3.0)[0] == \
        "ldlm main below ngram: not met, no setting of ngram comes there"
    assert equal.verdicts([point("masked", 50)], 3.0) == []
