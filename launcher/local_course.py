"""The course of a run on this machine: spot that is simulated, decided about by the policy of real ones."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from launcher.course import Course
from launcher.course_record import decide_next
from launcher.errors import LdlmError
from launcher.next_move import Move, Seen
from launcher.task_documents import TaskDocument
from trainer.limits import Limits
from trainer.run_folder import RunFolder

_POLL_S = 0.1

Say = Callable[[str], None]


class LocalCourse:
    """Decides for one document; does nothing for one without a course. Where a decision fails, which is said,
    the run goes on as it is."""

    def __init__(self, document: TaskDocument, run: RunFolder, say: Say) -> None:
        self._document, self._run, self._say = document, run, say
        self._place: int | None = None
        self._since = datetime.now(UTC)
        self._spot_at_s = 0.0  # by the monotonic clock: from then on spot is there
        self._ask_at_s = float("-inf")
        try:
            self._course = Course.of_task(document.envs)
        except ValueError as error:
            self._course = None
            say(f"its course cannot be read, and is not followed: {error}")

    def withdraw_spot(self, seconds: float) -> None:
        """Take the machine away, and have none on spot for so long."""
        self._place, self._spot_at_s = None, time.monotonic() + seconds

    def next_document(self, is_over: Callable[[], bool], waits: Say) -> TaskDocument:
        """The document as the next attempt is to run it; returns once there is a place for it.

        Args:
            is_over: True where nobody waits for it any more.
            waits: Told why it waits, at every decision.
        """
        self._place = None
        while self._course and (move := self._decide()):
            if move.place is not None:
                self._place, self._since = move.place, move.seen.at
                place = self._course.places[move.place]
                return replace(self._document, envs={**self._document.envs, **place.envs})
            waits(move.reason)
            if not self._sleep(is_over):
                break
        return self._document

    def _sleep(self, is_over: Callable[[], bool]) -> bool:
        """Until the next decision is due, or spot is back. False where nobody waits any more."""
        until_s = self._ask_at_s
        if self._spot_at_s > time.monotonic():
            until_s = min(until_s, self._spot_at_s)
        while time.monotonic() < until_s:
            if is_over():
                return False
            time.sleep(_POLL_S)
        return True

    def is_to_move(self) -> bool:
        """True if the machine that is held has to be left, once a decision is due."""
        if self._course is None or self._place is None or time.monotonic() < self._ask_at_s:
            return False
        move = self._decide()
        if move is None or not move.leaves:
            return False
        self._say(f"{move.action.replace('_', ' ')}: {move.reason}")
        return True

    def _decide(self) -> Move | None:
        assert self._course is not None
        now, is_up = datetime.now(UTC), time.monotonic() >= self._spot_at_s
        seen = Seen(at=now, place=self._place, held_since=None if self._place is None else self._since,
                    looks=dict.fromkeys(self._course.spot, is_up))
        self._ask_at_s = time.monotonic() + self._course.tick_s
        try:
            move = decide_next(self._run, self._course, Limits.of(self._document.envs), seen)
        except LdlmError as error:
            self._say(f"no decision between spot and on demand: {error}")
            return None
        if move:
            self._ask_at_s = time.monotonic() + max(_POLL_S, (move.again_at - now).total_seconds())
        return move
