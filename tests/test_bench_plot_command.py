"""A benchmark's picture is drawn from its file, or from the folder of the run that it belongs to."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from test_bench_plot import report_of, result  # noqa: E402
from test_bench_train_table import REPORT  # noqa: E402

from trainer.bench_plot_command import main  # noqa: E402
from trainer.contract import Name  # noqa: E402

PNG = b"\x89PNG"
GENERATION = report_of(result(64, 4, 1), result(64, 4, 8)).model_dump_json()


@pytest.mark.parametrize("text", [GENERATION, REPORT.model_dump_json()], ids=["generation", "training"])
def test_a_file_of_either_benchmark_becomes_a_picture(text: str, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(text)
    assert main([str(tmp_path / "a.json"), str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert capsys.readouterr().out == f"wrote {tmp_path / 'a.png'}\n"


def test_the_folder_of_a_run_says_where_its_benchmark_lies(tmp_path: Path) -> None:
    place = tmp_path / "store/runs/run" / Name.BENCH_REPORT
    place.parent.mkdir(parents=True)
    place.write_text(GENERATION)
    for folder in (tmp_path / "store/runs/run", f"file://{tmp_path}/store/runs/run"):
        picture = tmp_path / f"{len(str(folder))}.png"
        assert main([str(folder), str(picture)]) == 0
        assert picture.read_bytes().startswith(PNG)


@pytest.mark.parametrize(("made", "words"), [
    (None, "cannot be read: there is no such file or folder"),
    ("folder", "holds no bench/report.json: no benchmark of this run has ended"),
    (report_of().model_dump_json(), "no case in it was timed: there is nothing to draw"),
    (REPORT.model_copy(update={"cases": ()}).model_dump_json(), "no case in it was timed"),
    ("[1]", "is no result of this benchmark"), ("{", "is no result of this benchmark")],
    ids=["nothing", "empty folder", "generation without cases", "training without cases", "list", "torn"])
def test_what_is_no_benchmark_is_refused_in_a_sentence(made: str | None, words: str, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "x"
    if made == "folder":
        place.mkdir()
    elif made:
        place.write_text(made)
    assert main([str(place), str(tmp_path / "a.png")]) == 3
    said = capsys.readouterr().err
    assert words in said and str(place) in said and "Traceback" not in said
    assert not (tmp_path / "a.png").exists()


def test_a_picture_without_a_folder_is_refused_before_anything_is_read(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.json", str(tmp_path / "gone/a.png")]) == 3
    assert "gone" in capsys.readouterr().err


def test_a_picture_does_not_take_the_place_of_the_report_that_it_shows(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "a.json"
    report.write_text(GENERATION)
    assert main([str(report), str(report)]) == 3
    assert report.read_text() == GENERATION
    assert capsys.readouterr().err == (
        f"error: picture {report}: is the file of the report, too\n  fix: name another file\n")


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(tmp_path / "a.json"), str(tmp_path / "a.png")]) == 3
    assert capsys.readouterr().err == "error: matplotlib is not installed\n  fix: make evaluation-tools\n"
