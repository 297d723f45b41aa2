"""The newest decision of a run's course on its screens: what, why, until when; and in JSON."""

import json
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from cli_lab import check_golden, ldlm, without_names
from run_stories import NOON, PLAN, RUN_ID, RUNNING, Story, preempted_once
from test_follow import Scripted

from launcher import follow as following
from launcher.course import Course, Place
from launcher.course_record import CourseRecord
from launcher.course_screen import move_words
from launcher.engine_folder import EngineFolder, engine_home
from launcher.next_move import Move, Progress, Seen, next_move
from launcher.policies_known import SPOT_ONLY, UNIFORM_PROGRESS
from launcher.policy import Policy
from trainer.contract import Name

PLACES = tuple(Place(infra="vast", spot=spot, resource=0, usd_per_hour=Decimal(usd), move_usd=Decimal(0),
                     envs={}) for spot, usd in ((True, "1"), (False, "3")))
COURSE = Course(begins_at=NOON, ends_at=NOON + timedelta(hours=10), work_h=4, overhead_h=0.5, tick_s=600,
                from_step=0, to_step=400, policy="uniform-progress", places=PLACES)


def decided(minute: float, step: int, *, is_up: bool, left_usd: float | None = None, held: int | None = None,
            policy: Policy = UNIFORM_PROGRESS, course: Course = COURSE) -> Move:
    at = course.begins_at + timedelta(minutes=minute)
    seen = Seen(at=at, place=held, held_since=at if held is not None else None, looks={0: is_up})
    return next_move(policy, course, seen, Progress(step=step, left_usd=left_usd), None)


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    """A run that its engine says goes on, in a store whose name is short enough that no screen folds it."""
    with tempfile.TemporaryDirectory(prefix="ldlm-", dir="/tmp") as home:
        monkeypatch.setenv("LDLM_HOME", home)
        folder = EngineFolder(engine_home() / RUN_ID)
        folder.path.mkdir(parents=True)
        lock = folder.take_lock()
        folder.write_state(RUNNING)
        story = preempted_once(f"file://{home}/store")
        due = COURSE.ends_at.isoformat()
        story.folder.write_bytes(Name.PLAN, json.dumps(PLAN | {"deadline": due}).encode())
        yield story
        os.close(lock)


def screen(story: Story, *words: str) -> str:
    done = ldlm("status", RUN_ID, *words)
    assert done.returncode == 0, done.stderr
    return without_names(done.stdout, (story.folder.store.url, "STORE"))


def test_status_shows_what_was_decided_why_and_until_when(story: Story) -> None:
    """3 of 4 h of work are left: with a start of half an hour, on demand is due at 18:00 of 10 h."""
    CourseRecord(story.folder).add(decided(11, 100, is_up=True))
    CourseRecord(story.folder).add(decided(72, 100, is_up=False, left_usd=20.0))
    check_golden("screen-status-course.txt", screen(story))
    assert json.loads(screen(story, "--json"))["course"] == {
        "decided_at": "2026-11-23T13:12:00+00:00", "policy": "uniform-progress", "action": "wait",
        "place": None, "reason": "spot is up nowhere; 4.80 h to spare, so waiting costs least",
        "again_at": "2026-11-23T13:20:00+00:00", "on_demand_at": "2026-11-23T18:00:00+00:00",
        "cap_leaves_usd": 20.0, "on_demand_to_end_usd": 10.5}


def test_logs_begin_with_what_a_run_waits_for_and_are_printed_without_a_record_too(story: Story) -> None:
    """As talk, so that what is piped on is the nodes' own."""
    CourseRecord(story.folder).add(decided(72, 100, is_up=False))
    (EngineFolder(engine_home() / RUN_ID).path / "attempt-1.log").write_text("step 1")
    done = ldlm("logs", RUN_ID)
    assert done.stderr == ("course: waits for spot; on demand at 18:00 UTC at the latest\n"
                           "  spot is up nowhere; 4.80 h to spare, so waiting costs least\n")
    story.folder.store.delete([story.folder.key(Name.RECIPE)])
    again = ldlm("logs", RUN_ID)
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


def test_a_course_of_an_earlier_start_is_none_of_this_one(story: Story) -> None:
    CourseRecord(story.folder).add(decided(11, 100, is_up=True))
    story.folder.add_event("resumed", NOON + timedelta(minutes=20))
    assert json.loads(screen(story, "--json"))["course"] is None
    assert "\n  course " not in screen(story)


WHOLE = decided(11, 100, is_up=True).model_dump(mode="json")


@pytest.mark.parametrize("wrong", [
    {"situation": {}}, {"situation": WHOLE["situation"] | {"places": []}}, {"setting": {}}, {"seen": {}},
    {"situation": WHOLE["situation"] | {"held": "taxi"}}, {"left_usd": "NaN"},
    {"situation": WHOLE["situation"] | {"work_left_h": None}},
    {"situation": WHOLE["situation"] | {"elapsed_h": "NaN"}},
    {"setting": WHOLE["setting"] | {"deadline_h": 1e308}},
    {"setting": WHOLE["setting"] | {"on_demand_usd_per_hour": 1e308}},
    {"seen": WHOLE["seen"] | {"at": "2026-11-23T12:11:00"}}], ids=str)
def test_a_decision_that_cannot_be_is_not_read(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="1 validation error for Move"):
        Move.model_validate_json(json.dumps(WHOLE | wrong))


def test_a_torn_decision_is_said_and_the_rest_is_shown(story: Story) -> None:
    story.folder.write_bytes(f"{Name.COURSE}/20261123T130000.json", b'{"seen": {')
    said = screen(story)
    assert "  course     cannot be read:" in said and "  step       150/400 (durable: 100)" in said


@pytest.mark.parametrize(("move", "words"), [
    (decided(11, 100, is_up=True), "spot; when it is lost, on demand at 18:00 UTC at the latest"),
    (decided(11, 100, is_up=True, left_usd=10.4),
     "spot; when it is lost, the cap does not pay on demand to the end"),
    (decided(590, 100, is_up=False), "on demand"),
    (decided(72, 100, is_up=False, policy=SPOT_ONLY), "waits for spot; never on demand"),
    (decided(72, 100, is_up=False,
             course=COURSE.model_copy(update={"ends_at": NOON + timedelta(hours=30)})),
     "waits for spot; on demand at 14:00 UTC on 11-24 at the latest")])
def test_a_decision_in_one_line(move: Move, words: str) -> None:
    assert move_words(move) == words and len(words) < 68


def test_who_watches_a_run_is_told_what_it_waits_for_once(
        story: Story, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(following, "_POLL_S", 0)
    add = CourseRecord(story.folder).add
    moves = [decided(0, 0, is_up=True), decided(72, 100, is_up=False), decided(80, 100, is_up=False),
             decided(360, 100, is_up=False), decided(400, 100, is_up=True, held=1)]
    engine = Scripted(*[lambda move=move: add(move) for move in moves])
    following.follow(story.folder.store, engine, RUN_ID)
    told = capsys.readouterr().err.splitlines()
    assert told[told.index("course: waits for spot; on demand at 18:00 UTC at the latest"):] == [
        "course: waits for spot; on demand at 18:00 UTC at the latest",
        "  spot is up nowhere; 4.80 h to spare, so waiting costs least",
        "course: on demand",
        "  spot is up nowhere; 0.00 h to spare, so on demand costs least in the end"]
