"""Where a benchmark writes: each file whole, and none in the place of another."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from pydantic import BaseModel  # noqa: E402

from trainer.bench_output import Kept, require_places  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402


class Found(BaseModel):
    speed: float


def test_a_kept_result_touches_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "bench.tmp").write_text("mine")
    kept = Kept(tmp_path / "bench.json")
    assert kept.interrupted() == "interrupted"
    for speed in (1, 2):
        kept.write(Found(speed=speed))
    assert kept.interrupted() == f"interrupted; cases that were done are in {tmp_path}/bench.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.tmp"]
    assert (tmp_path / "bench.tmp").read_text() == "mine"
    assert (tmp_path / "bench.json").read_text() == '{\n "speed": 2.0\n}'


def test_a_disk_that_is_full_for_a_while_costs_nothing_that_was_measured(tmp_path: Path) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    kept = Kept(folder / "bench.json")
    kept.write(Found(speed=1))
    folder.rename(away)
    kept.write(Found(speed=2))
    assert kept.problem == f"{folder}/bench.json does not hold all of this: No such file or directory"
    assert (away / "bench.json").read_text() == '{\n "speed": 1.0\n}'
    away.rename(folder)
    kept.write(Found(speed=3))
    assert kept.problem is None and (folder / "bench.json").read_text() == '{\n "speed": 3.0\n}'


def test_a_result_without_a_file_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Kept(None)
    kept.write(Found(speed=1))
    assert kept.interrupted() == "interrupted" and not [*tmp_path.iterdir()]


def test_no_file_takes_the_place_of_another(tmp_path: Path) -> None:
    out, link = tmp_path / "bench.json", tmp_path / "link"
    out.touch()
    link.symlink_to(out)
    require_places({"--out": out, "--plot": tmp_path / "bench.png", "--profile": None},
                   {"--against": tmp_path / "old.json"})
    for written, read, words in (
            ({"--out": out, "--plot": link}, {}, f"--plot {link}: is the file of --out, too"),
            ({"--out": link}, {"--against": out}, f"--out {link}: is the file of --against, too")):
        with pytest.raises(ConfigError) as told:
            require_places(written, read)
        assert str(told.value).startswith(words)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no Linux")
@pytest.mark.parametrize(("place", "words"), [
    ("/proc/bench.json", "/proc takes no file: No such file or directory\n  fix: name another place"),
    ("gone/bench.json", "gone is no folder\n  fix: name another place"),
    ("/proc/self", "is there, and no file\n  fix: name a file")])
def test_a_place_that_takes_no_file_is_refused_whatever_its_permissions_say(place: str, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        require_places({"--out": Path(place)}, {})
    assert str(told.value) == f"--out {place}: {words}"


def test_asking_whether_a_file_can_be_written_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("mine")
    require_places({"--out": tmp_path / "old.json", "--plot": tmp_path / "new.png"}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "mine"
