"""The picture of a bill, as matplotlib draws it."""

import json
import struct
from pathlib import Path

import pytest

pytest.importorskip("torch")  # the environment that may have it
pytest.importorskip("matplotlib")

from trainer.cost_plot import main  # noqa: E402

FIGURES = {
    "cap_usd": "3", "top_usd": "4.32", "labels": ["$1.0000", "$0.5000"], "total": "$1.5000",
    "now": "2026-11-23T13:00:00+00:00",
    "spent": [["2026-11-23T12:00:00+00:00", "0.000000"], ["2026-11-23T13:00:00+00:00", "1.500000"]],
    "report": {
        "run_id": "story-1", "spent_usd": "1.500000", "price_is_simulated": True,
        "planned_usd": ["1.0", "2.0", "4.0"],
        "usd_by_category": {"useful": "1.000000", "waiting": "0.500000"},
        "attempts": [
            {"attempt": 1, "began_at": "2026-11-23T12:00:00+00:00", "ended_at": "2026-11-23T12:30:00+00:00",
             "end": "preempted", "seconds_by_category": {"useful": 1800.0}},
            {"attempt": 2, "began_at": "2026-11-23T12:30:00+00:00", "ended_at": None, "end": "running",
             "seconds_by_category": {"useful": 600.0, "waiting": 1200.0}},
            {"attempt": 3, "began_at": "2026-11-23T13:00:00+00:00", "ended_at": None, "end": "running",
             "seconds_by_category": {}}]}}


def drawn(tmp_path: Path, **changes: object) -> tuple[int, int]:
    """Width and height of the picture, as its first bytes have them."""
    (tmp_path / "figures.json").write_text(json.dumps(FIGURES | changes))
    assert main([str(tmp_path / "figures.json"), str(tmp_path / "bill.png")]) == 0
    data = (tmp_path / "bill.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR"
    return struct.unpack(">II", data[16:24])


def test_a_bill_is_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path) == (1400, 460)


def test_a_bill_of_nothing_without_plan_and_cap_is_drawn(tmp_path: Path) -> None:
    report = FIGURES["report"] | {"planned_usd": None, "attempts": [], "spent_usd": "0.000000"}
    assert drawn(tmp_path, cap_usd=None, spent=[], report=report) == (1400, 460)


def test_a_picture_that_cannot_be_written_is_an_error_with_what_to_do(tmp_path: Path, capsys) -> None:
    (tmp_path / "figures.json").write_text(json.dumps(FIGURES))
    assert main([str(tmp_path / "figures.json"), str(tmp_path / "nowhere" / "bill.png")]) == 2
    assert "cannot be written: No such file or directory\n  fix: " in capsys.readouterr().err
