from collections.abc import Iterator

import pytest
from run_stories import RUN_ID, RUNNING, Story, at

from launcher import follow as module
from launcher.engine import EnginePhase, EngineState
from launcher.errors import StoreError
from launcher.follow import describe, follow, seconds_left
from trainer.contract import Document
from trainer.store import Store


class Scripted:
    """An engine that, each time it is asked, lets the next thing happen to the run."""

    def __init__(self, *happenings) -> None:
        self._happenings: Iterator = iter(happenings)

    def submit(self, task: str) -> None: ...

    def logs(self, run_id: str, follow: bool = False) -> Iterator[str]:
        return iter(())

    def cancel(self, run_id: str) -> None: ...

    def state(self, run_id: str) -> EngineState:
        happening = next(self._happenings, None)
        if happening is None:
            return EngineState(EnginePhase.ENDED)
        happening()
        return RUNNING


@pytest.fixture
def story(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_POLL_S", 0)
    return Story(f"file://{tmp_path}/store")


def watched(story: Story, capsys, *happenings) -> list[str]:
    record = follow(story.folder.store, Scripted(*happenings), RUN_ID)
    assert record.run_id == RUN_ID
    return capsys.readouterr().err.splitlines()


def test_a_preemption_and_its_recovery_are_told_once_each(story, capsys):
    lines = watched(
        story, capsys,
        lambda: story.attempt(1, 0),
        lambda: story.beat(1, 20, step=0, durable=0, setup=20),
        lambda: story.beat(1, 60, step=4, durable=0, setup=50, train=10),
        lambda: story.beat(1, 99, step=120, durable=100, setup=50, train=49),
        lambda: None,
        lambda: story.end(1, 100, None, preempted=True),
        lambda: story.attempt(2, 101),
        lambda: story.beat(2, 150, step=110, durable=100, resumed=100, setup=40, train=9),
    )
    assert lines == [
        "attempt 1: training on 2 CPU cores here, setting up",
        "  0/400  $0.5000  1,234 tok/s  L_diff 0.75  L_w 2.25  L_h 0.50",
        "attempt 1: training begins, set-up took 50 s",
        "  4/400  16 min left  $0.5000  1,234 tok/s  L_diff 0.75  L_w 2.25  L_h 0.50",
        "attempt 1: checkpoint of step 100 is durable",
        "  120/400  2 min left  $0.5000  1,234 tok/s  L_diff 0.75  L_w 2.25  L_h 0.50",
        "attempt 1: the machine was taken back",
        "attempt 2: training on 2 CPU cores here, setting up",
        "attempt 2: resumed from step 100, set-up took 40 s",
        "  110/400  4 min left  $0.5000  1,234 tok/s  L_diff 0.75  L_w 2.25  L_h 0.50",
    ]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("has_deadline", "listings"), [(False, 0), (True, 3)])
def test_only_of_a_run_with_a_deadline_decisions_are_looked_for(story, monkeypatch, has_deadline, listings):
    if has_deadline:
        story.folder.add_event("resumed", at(1), limits={"deadline_hours": 2.0})
    listed = []
    monkeypatch.setattr(Store, "objects", lambda store, prefix="", whole=Store.objects: (
        listed.append(prefix) or whole(store, prefix)))
    follow(story.folder.store, Scripted(*[lambda: None] * 3), RUN_ID)
    assert listed.count(f"{RUN_ID}/course") == listings


def test_the_benchmark_shows_no_training_progress(story, capsys):
    lines = watched(story, capsys, lambda: story.attempt(1, 0, Document.BENCH),
                    lambda: story.beat(1, 9, step=400, durable=400, resumed=400))
    assert lines == ["attempt 1: benchmark on 2 CPU cores here, setting up"]


def test_a_record_that_cannot_be_read_for_a_while_does_not_end_the_watching(story, capsys):
    def damage() -> None:
        story.folder.write_bytes("plan.json", b"{")

    def repair() -> None:
        story.folder.write_bytes("plan.json", b'{"tokens_per_step": 1, "usd": null, "offers": {}}')

    said = "\n".join(watched(story, capsys, damage, lambda: None, repair))
    assert said.count("the run goes on, but cannot be watched") == 1
    assert "plan.json" in said


def test_a_record_that_cannot_be_read_at_the_end_is_an_error(story):
    story.folder.write_bytes("plan.json", b"{")
    with pytest.raises(StoreError):
        follow(story.folder.store, Scripted(), RUN_ID)


def test_the_time_left_is_known_once_an_attempt_has_a_pace(story):
    story.attempt(1, 0)
    story.beat(1, 10, step=100, durable=100, resumed=100)
    beat = story.folder.attempts()[0].heartbeat
    assert seconds_left(beat) is None
    assert "left" not in describe(beat)
    story.beat(1, 10, step=200, durable=100, resumed=100, train=50)  # 100 steps in 50 s, 200 to go
    assert seconds_left(story.folder.attempts()[0].heartbeat) == 100
