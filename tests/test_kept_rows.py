"""Attempts train some steps again; a reader of the record meets each step once."""

import json
from pathlib import Path

from trainer.kept_rows import RowReader, kept_rows
from trainer.run_folder import RunFolder
from trainer.store import local_store_url, open_store


def losses(*rows: tuple[int, int, float]) -> dict[int, float]:
    """Losses by step that are kept of (attempt, step, loss)."""
    kept = kept_rows((attempt, {"step": step, "loss": loss}) for attempt, step, loss in rows)
    return {step: row["loss"] for step, row in kept.items()}


def test_steps_that_are_trained_again_count_as_the_later_attempt_has_them():
    assert losses((1, 10, 1.0), (1, 20, 2.0), (1, 30, 3.0), (2, 20, 2.5)) == {10: 1.0, 20: 2.5}
    assert losses((1, 10, 1.0), (2, 10, 1.5), (2, 20, 2.5), (3, 30, 3.5)) == {10: 1.5, 20: 2.5, 30: 3.5}


def test_an_attempt_that_logged_nothing_takes_nothing_away():
    assert losses((1, 10, 1.0), (3, 20, 2.0)) == {10: 1.0, 20: 2.0}


def test_an_attempt_that_begins_anew_takes_all_away():
    assert losses((1, 0, 0.5), (1, 10, 1.0), (2, 0, 0.7)) == {0: 0.7}


def test_all_that_is_logged_at_a_step_is_one_row():
    kept = kept_rows([(1, {"step": 4, "loss": 1.0}), (1, {"step": 4, "eval/x": 2.0})])
    assert kept == {4: {"step": 4, "loss": 1.0, "eval/x": 2.0}}


def test_scores_at_the_step_that_an_attempt_resumed_from_join_its_losses():
    kept = kept_rows([(1, {"step": 4, "loss": 1.0}), (1, {"step": 5, "loss": 9.0}),
                      (2, {"step": 4, "eval/x": 2.0})])
    assert kept == {4: {"step": 4, "loss": 1.0, "eval/x": 2.0}}


def test_a_second_look_reads_only_what_is_new(tmp_path: Path):
    store = open_store(local_store_url(tmp_path))
    reader = RowReader(RunFolder(store, "run"))

    def write(attempt: int, chunk: int, *steps: int) -> None:
        lines = "".join(json.dumps({"step": step}) + "\n" for step in steps)
        store.put(f"run/attempts/{attempt}/metrics/{chunk:06d}.jsonl", lines.encode())

    write(2, 0, 30)
    write(10, 0, 40)
    write(1, 0, 10, 20)
    store.put("run/attempts/1/heartbeat.json", b"{}")
    assert list(reader.rows()) == [10, 20, 30, 40]
    write(1, 0, 99)  # never written again in truth: it must not be read a second time
    write(10, 1, 50)
    assert list(reader.rows()) == [10, 20, 30, 40, 50]


def test_a_run_without_rows_has_none(tmp_path: Path):
    assert RowReader(RunFolder(open_store(local_store_url(tmp_path)), "run")).rows() == {}
