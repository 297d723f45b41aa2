"""The picture of an evaluation is drawn whatever was measured, and says what its numbers are worth."""

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from random_encoders import save_model  # noqa: E402

from trainer import quality_plot  # noqa: E402
from trainer.quality import load_judge  # noqa: E402
from trainer.quality_plot import plot  # noqa: E402


def test_the_picture_of_a_run_without_scored_text_is_drawn_all_the_same(tmp_path: Path) -> None:
    judge = load_judge(str(save_model(tmp_path / "j", "gpt2")))
    speeds = {"tokens_per_s_batch_1": 10.0, "tokens_per_s_batch_8": 30.0}
    frontier = [{"setting": {"steps": steps, "temperature": 1.0}, "generative_perplexity_by_j": None,
                 "entropy_by_j": 0.0, "batch": 8, **speeds} for steps in (1, 2)]
    result = {"source": "run", "step": 1, "device": "CPU", "frontier": frontier, "reference": {},
              "panel": {"clean": {"accuracy": 0.5}}}
    plot(result, judge, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_picture_says_of_how_few_texts_a_mauve_is(tmp_path: Path) -> None:
    judge = load_judge(str(save_model(tmp_path / "j", "gpt2")))
    result = {"frontier": [{"mauve_by_j": 0.2}, {"mauve_by_j": 0.31}, {"mauve_by_j": None}],
              "reference": {"num_texts": 166}}
    assert quality_plot._mauve(result, judge) == "; mauve_by_j up to 0.31 of 166 texts: says little"
    result["reference"]["num_texts"] = 1000
    assert quality_plot._mauve(result, judge) == "; mauve_by_j up to 0.31 of 1,000 texts"


def test_speed_at_a_quality_has_a_point_for_each_number_of_steps_and_the_other_model_beside(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, drawn = load_judge(str(save_model(tmp_path / "j", "gpt2"))), list[Any]()
    draw = quality_plot._draw_speed_at_quality
    monkeypatch.setattr(quality_plot, "_draw_speed_at_quality",
                        lambda axes, *rest: (drawn.append(axes), draw(axes, *rest)))

    def at(perplexity: float, speed: float, **more: Any) -> dict[str, Any]:
        return {"generative_perplexity_by_j": perplexity, "entropy_by_j": 3.0, "batch": 8,
                "tokens_per_s_batch_1": speed, "tokens_per_s_batch_8": 5 * speed, **more}

    frontier = [at(100.0 / steps, 60.0 / steps, setting={"steps": steps, "temperature": 1.0})
                for steps in (1, 4)]
    result = {"source": "run", "step": 1, "device": "CPU", "frontier": frontier, "reference": {},
              "panel": {"clean": {"accuracy": 0.5}}, "autoregressive": at(9.0, 7.0)}
    plot(result, judge, tmp_path / "plot.png")
    points = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in drawn[0].lines}
    assert points == {"batch 1": [(60.0, 100.0), (15.0, 25.0)], "autoregressive, batch 1": [(7.0, 9.0)],
                      "batch 8": [(300.0, 100.0), (75.0, 25.0)], "autoregressive, batch 8": [(35.0, 9.0)]}
    assert [text.get_text() for text in drawn[0].texts] == ["1", "4", "1", "4"]


def test_speeds_over_three_decades_are_told_apart_on_their_axis(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    judge = load_judge(str(save_model(tmp_path / "j", "gpt2")))
    figure = Figure(figsize=(5.5, 4.2), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    frontier = [{"setting": {"steps": 1, "temperature": 1.0}, "generative_perplexity_by_j": 10.0,
                 "batch": 8, "tokens_per_s_batch_1": speed, "tokens_per_s_batch_8": speed}
                for speed in (5_231.0, 3_834_131.0)]  # seen on an H200
    quality_plot._draw_speed_at_quality(axes, {"frontier": frontier, "reference": {}}, judge)
    canvas.draw()
    low, high = axes.get_xlim()
    places_and_labels = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for place, label in places_and_labels if low <= place <= high]
    assert len(boxes) > 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
