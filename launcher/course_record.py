"""The decisions of a run in its record, and one more of them: `python -m launcher.course_record`.

Who supervises a run asks so, with the task's variables and keys in the environment of a process of its own:
one process of SkyPilot supervises many runs, and a store that hangs must not hold up the others.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from launcher.course import Course
from launcher.errors import LdlmError, UsageError
from launcher.next_move import Move, Progress, Seen, next_move
from launcher.policy import Policy
from launcher.policy_ours import POLICIES
from trainer.at_most import standing_of
from trainer.contract import CLOCK_SKEW, Document, Env, Name
from trainer.limits import Limits
from trainer.run_folder import AttemptFiles, Event, RunFolder, RunOutcome, StopWish, last_start
from trainer.store import DamagedError, open_store


class CourseRecord:
    """`course/` of a run: one object for each decision, never changed. One supervisor writes."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def moves(self) -> list[Move]:
        """All decisions, oldest first."""
        return [self._folder.read(name, Move) for name in self._names()]

    def newest(self) -> Move | None:
        """The last decision."""
        names = self._names()
        return self._folder.read(names[-1], Move) if names else None

    def newest_whole(self) -> Move | None:
        """The last decision that can be read: what it had seen is more than nothing."""
        for name in reversed(self._names()):
            with suppress(DamagedError):
                return self._folder.read(name, Move)
        return None

    def add(self, move: Move) -> None:
        """Write a decision down."""
        stamp = move.seen.at.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._folder.write(f"{Name.COURSE}/{stamp}.json", move)

    def _names(self) -> list[str]:
        found = self._folder.store.objects(self._folder.key(Name.COURSE))
        return sorted(one.key.removeprefix(f"{self._folder.run_id}/") for one in found)


def decide_next(folder: RunFolder, course: Course, limits: Limits, seen: Seen) -> Move | None:
    """Decide, and write the decision down. None: training is over, or a person wants it to stop.

    Args:
        limits: As the task says them to its nodes.

    Raises:
        LdlmError: The record cannot be read or written, or the course is none.
    """
    if _is_over(folder):
        return None
    record, attempts = CourseRecord(folder), folder.attempts()
    before = record.newest_whole()
    if before and before.seen.at < course.begins_at:  # a run that is resumed begins a new course
        before = None
    progress = progress_of(attempts, seen).model_copy(update={
        "left_usd": left_usd(limits, course, attempts, folder.events(), seen.at)})
    move = next_move(policy_named(course.policy), course, seen, progress, before)
    record.add(move)
    return move


def policy_named(name: str) -> Policy:
    """Of `launcher/policy_ours.py`. Raises UsageError."""
    found = next((policy for policy in POLICIES if policy.name == name), None)
    if found is None:
        raise UsageError(f"there is no policy {name!r}", place="limits.policy",
                         fix=f"one of: {', '.join(policy.name for policy in POLICIES)}")
    return found


def ask_to_move(folder: RunFolder, at: datetime) -> None:
    """Have the nodes of a run save and ask for another machine."""
    folder.write(Name.MOVE, StopWish(at=at))


def progress_of(attempts: Sequence[AttemptFiles], seen: Seen) -> Progress:
    """What a record says of training, at its newest machine if one is held."""
    training = [files for files in attempts if files.attempt.document is Document.TRAIN]
    beats = [files.heartbeat for files in training if files.heartbeat]
    newest = training[-1] if training else None
    durable = max((beat.durable_step for beat in beats), default=0)
    found = Progress(step=durable, steps=sum(max(0, beat.step - beat.resumed_from_step) for beat in beats),
                     seconds=sum(beat.phases.train_s + beat.phases.checkpoint_s + beat.phases.evaluate_s
                                 for beat in beats))
    if newest is None or not _is_held(newest, seen) or newest.heartbeat is None:
        return found
    beat = newest.heartbeat
    if beat.step <= beat.resumed_from_step or seen.held_since is None:
        return found
    began = newest.attempt.billed_from + timedelta(seconds=beat.phases.until_training_s)
    return found.model_copy(update={"step": max(durable, beat.step),
                                    "start_s": max(0.0, (began - seen.held_since).total_seconds())})


def left_usd(limits: Limits, course: Course, attempts: Sequence[AttemptFiles], events: Sequence[Event],
             now: datetime) -> float | None:
    """What the cap of a run leaves for its training, by the reading that its nodes hold it by."""
    if limits.max_cost_usd is None:
        return None
    dearest = max(place.usd_per_hour for place in course.places)
    spent = standing_of(attempts, events, now, dearest_usd_per_hour=dearest).spent_usd
    return float(limits.max_cost_usd - limits.bench_reserve_usd - spent)


def _is_held(newest: AttemptFiles, seen: Seen) -> bool:
    return (newest.end is None and seen.place is not None
            and newest.attempt.billed_from >= (seen.held_since or seen.at) - CLOCK_SKEW)


def _is_over(folder: RunFolder) -> bool:
    started = last_start(folder.events())
    wish, outcome = folder.find(Name.STOP, StopWish), folder.find(Name.OUTCOME, RunOutcome)
    return any(one is not None and (started is None or one.at > started) for one in (wish, outcome))


def main(arguments: Sequence[str]) -> None:
    """Read a `Seen` as JSON and print the `Move`, or `null`: where it leaves the machine, its nodes are asked
    to. With `--newest` print the last one."""
    try:
        course = Course.of_task(os.environ)
        folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
        if arguments == ["--newest"]:
            move = CourseRecord(folder).newest()
        else:
            seen = Seen.model_validate_json(sys.stdin.read())
            move = decide_next(folder, course, Limits.of(os.environ), seen) if course else None
            if move and move.leaves:
                ask_to_move(folder, datetime.now(UTC))
    except (LdlmError, ValueError, KeyError) as error:
        sys.exit(f"error: {error}")
    print("null" if move is None else move.model_dump_json())


if __name__ == "__main__":
    main(sys.argv[1:])
