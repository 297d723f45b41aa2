"""The picture of the training benchmark shows each timed case, its floor, its parts and its reference."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from test_bench_train_table import REPORT, RESULT  # noqa: E402

from trainer.bench_train_plot import figure_of, plot  # noqa: E402


def test_bars_are_as_long_as_the_times_that_they_stand_for(tmp_path: Path) -> None:
    axes, = figure_of(REPORT).axes  # the other case was not timed
    assert [label.get_text() for label in axes.get_yticklabels()] == ["floor", "measured", "reference"]
    ends = {bar.get_label(): bar.patches[0].get_x() + bar.patches[0].get_width() for bar in axes.containers}
    assert ends == pytest.approx({
        "_floor encoder": 400, "_floor optimizer": 405, "_measured encoder": 800, "_measured backward": 1400,
        "_measured rest": 1600, "_reference in all": 4000})
    assert axes.get_title().endswith("encoder fp8, ZeRO 2: 40,960 tokens/s, 36% of the matrix rate")
    plot(REPORT, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_encoder_alone_is_one_bar() -> None:
    alone = RESULT.model_copy(update={"parts_s": None, "reference": None})
    axes, = figure_of(REPORT.model_copy(update={"cases": (alone,)})).axes
    assert [bar.get_label() for bar in axes.containers][-1] == "_measured encoder"


def test_the_speed_of_real_ranks_is_called_that_of_each() -> None:
    case = RESULT.case.model_copy(update={"num_ranks": 2, "ranks_are_real": True})
    axes, = figure_of(REPORT.model_copy(update={"cases": (RESULT.model_copy(update={"case": case}),)})).axes
    assert axes.get_title().endswith("ZeRO 2, 2 ranks: 40,960 tokens/s of each rank, 36% of the matrix rate")


def test_nothing_timed_is_an_empty_picture() -> None:
    axes, = figure_of(REPORT.model_copy(update={"cases": ()})).axes
    assert not axes.containers
