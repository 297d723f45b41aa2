"""Where the time before the first step goes: every second on one part, told at once, and in the record."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.hands import Hands  # noqa: E402
from tests.trainer_runs import TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.start_parts import StartParts  # noqa: E402


def test_every_second_since_the_machine_is_billed_is_of_one_part() -> None:
    clock = Hands()
    parts = StartParts(clock)
    parts.done("imports")
    imports_s = parts.seconds["imports"]  # this process has imported for as long as it lives
    clock.now_s += 3
    parts.before(datetime.now(UTC) - timedelta(seconds=imports_s + 10))
    parts.done("text")
    clock.now_s += 2
    parts.end()
    assert parts.is_over and list(parts.seconds) == ["node", "imports", "text", "first step"]
    assert parts.seconds["node"] == pytest.approx(7, abs=0.5)
    assert (parts.seconds["text"], parts.seconds["first step"]) == (3, 2)
    assert re.fullmatch(r"first step after \d+\.\d s: node \d.*, imports \d.*, text 3\.0, first step 2\.0",
                        str(parts))


def test_a_run_tells_the_parts_of_each_start_and_they_are_its_set_up(tmp_path: Path) -> None:
    config = tiny_config(write_text(tmp_path / "prose.txt"), steps=8, checkpoint={"every_steps": 4})
    run = TrainerRun(config, tmp_path / "store", num_ranks=1)
    assert run.finish()[0] == ExitCode.FINISHED
    run.folder.store.delete(["run/outcome.json", *(found.key for found in run.folder.store.objects(
        "run/checkpoints/step-00000008"))])
    time.sleep(1)
    code, output = run.finish()
    assert code == ExitCode.FINISHED and "resumed from step 4" in output

    first, second = (run.folder.attempt(number).heartbeat for number in (1, 2))
    parts = ["node", "imports", "rendezvous", "text", "model", "checkpoint", "encoder"]
    assert list(first.start_s) == [*parts, "statistics", "first step"]
    assert list(second.start_s) == [*parts, "first step"]
    assert "first step after " in output
    for beat in (first, second):
        before_s = sum(beat.start_s.values()) - beat.start_s["first step"]
        assert before_s == pytest.approx(beat.phases.until_training_s, abs=0.5)
