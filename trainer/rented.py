"""What a node does itself where no engine of ours looks after the run: under SkyPilot's managed jobs.

SkyPilot knows exit codes and nothing else: 75 starts the task again without end, 0 goes on to the next
document, all others end the job. So a node closes the attempts of machines that vanished, asks for another
attempt after a crash (`trainer.node` counts those) and for another machine where this one is wrong, looks for
a wish to stop, and writes how the run ended. No torch.
"""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from trainer.contract import (
    MAX_WRONG_MACHINES,
    AwayError,
    Document,
    ExitCode,
    LdlmError,
    Name,
    Outcome,
    RankEnd,
)
from trainer.lease import await_free, owner_here
from trainer.limits import LimitError
from trainer.machine import MachineError
from trainer.notices import ASKED, MOVED, Notice
from trainer.run_folder import Event, RunFolder, RunOutcome, StopWish, last_start
from trainer.wrong_machine import say_wrong

_LOOK_EVERY_S = 5.0  # for a wish: one small read, $0.007 a day on S3 (list price)
# A recovered run that ends has to be started again by hand; ten minutes of a machine are cheaper (guess).
_STORE_S, _ASK_AGAIN_S = 600.0, 10.0
# Nodes start together and see within seconds what they have been given; to give their machines back, rent
# others and set these up takes longer (guess).
_NODES_WITHIN = timedelta(minutes=2)
_ENDS = {ExitCode.STOPPED: Outcome.STOPPED, ExitCode.BROKEN: Outcome.DIVERGED,
         ExitCode.BAD_CONFIG: Outcome.BAD_CONFIG}


def await_store(folder: RunFolder, is_over: Callable[[], bool]) -> None:
    """Return once the store of a run answers.

    Args:
        is_over: True where nobody waits for it any more.

    Raises:
        AwayError: It has not in ten minutes.
        StoreError: It refuses.
    """
    give_up = time.monotonic() + _STORE_S
    while True:
        try:
            folder.exists()
        except AwayError as error:
            if is_over() or time.monotonic() >= give_up:
                raise
            print(f"warning: the store does not answer, trying again: {error.problem}", flush=True)
            time.sleep(_ASK_AGAIN_S)
        else:
            return


def code_without_store() -> int:
    """What a node tells SkyPilot that cannot reach the store: it asks for another machine where wrong ones
    say so to who rents, and are counted there (`launcher/waits.py`). Elsewhere that might have no end."""
    return ExitCode.RECOVER if say_wrong(Path.home()) else 1


def wrong_rentals(events: Iterable[Event]) -> int:
    """How often machines were rented of which one or more were wrong.

    Each node that finds its machine wrong says so in an event. Those of one rental come within two minutes,
    each from a node of another number.

    Args:
        events: Oldest first.
    """
    nodes, began = set[int](), datetime.min.replace(tzinfo=UTC)
    num_rentals = 0
    for event in (event for event in events if event.kind == "wrong_machine"):
        node = event.detail.get("node", 0)
        if node in nodes or event.at - began > _NODES_WITHIN:
            nodes, began = set(), event.at
        num_rentals += not nodes
        nodes.add(node)
    return num_rentals


class _Wish:
    """Somebody's wish in the run's record, of after a moment. It is looked for every five seconds."""

    def __init__(self, folder: RunFolder, name: str, since: datetime, clock: Callable[[], float]) -> None:
        self._folder, self._name, self._since, self._clock = folder, name, since, clock
        self._looked, self._is_there = float("-inf"), False

    def __call__(self) -> bool:
        """True once it is there."""
        if not self._is_there and self._clock() - self._looked >= _LOOK_EVERY_S:
            self._looked = self._clock()
            self._is_there = self.look()
        return self._is_there

    def look(self) -> bool:
        """True if it is there now."""
        try:
            wish = self._folder.find(self._name, StopWish)
        except LdlmError:  # a store that is away for a moment says nothing
            return self._is_there
        return self._is_there or (wish is not None and wish.at > self._since)


class Rented:
    """One node of one attempt, seen from the run's record.

    Args:
        folder: Of the run.
        document: That this node runs.
        node: Its number among its nodes, from 0. The first leads: it alone writes.
        has_course: Who supervises the run may move it to another machine.
        clock: Seconds that never go back.

    Raises:
        LeaseError: Somebody else trains this run.
        StoreError: The record cannot be read or written.
    """

    def __init__(self, folder: RunFolder, document: Document, *, node: int, has_course: bool = False,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._document, self._node, self._has_course = folder, document, node, has_course
        self._outcome: Outcome | None = None  # where the exit code alone does not tell it
        self._started_at = last_start(folder.events()) or datetime.min.replace(tzinfo=UTC)
        self.is_stop_wished = _Wish(folder, Name.STOP, self._started_at, clock)
        self._is_move_wished = _Wish(folder, Name.MOVE, datetime.now(UTC), clock)
        if node == 0:
            self._take_over()

    def _take_over(self) -> None:
        """Close what an earlier attempt left open, and an older end that must not pass for the new one."""
        await_free(self._folder, owner_here(), lambda text: print(text, flush=True))
        attempts = self._folder.attempts()
        self._folder.close_open_attempts(attempts, "the machine was taken back", preempted=True)
        found = self._folder.find(Name.OUTCOME, RunOutcome)
        if self._document is Document.TRAIN and found and found.outcome is not Outcome.FINISHED:
            self._folder.store.delete([self._folder.key(Name.OUTCOME)])

    def has_finished_before(self) -> bool:
        """True for training that is done: only what comes after it is left of the run."""
        found = self._folder.find(Name.OUTCOME, RunOutcome)
        return self._document is Document.TRAIN and found is not None and found.outcome is Outcome.FINISHED

    def wish(self) -> Notice | None:
        """Why this machine is to be left, if somebody wants that: a person, or who supervises the run."""
        if self.is_stop_wished():
            return ASKED
        return MOVED if self._has_course and self._is_move_wished() else None

    def refuse(self, error: MachineError) -> RankEnd:
        """How this attempt ends because of its machine: another one is asked for, three in all. Of several
        nodes each may say so, and one rental counts once.

        Raises:
            StoreError: It cannot be counted: without that, one machine after the other would be rented.
        """
        say_wrong(Path.home())
        self._folder.add_event("wrong_machine", datetime.now(UTC), problem=error.problem, host=error.place,
                               node=self._node)
        found = wrong_rentals(event for event in self._folder.events() if event.at > self._started_at)
        if found < MAX_WRONG_MACHINES:
            return RankEnd(ExitCode.RECOVER, f"wrong machine ({found} of {MAX_WRONG_MACHINES}): {error}")
        self._outcome = Outcome.NO_CAPACITY
        return RankEnd(ExitCode.BROKEN, f"{found} machines were wrong since this run was started; the last: "
                       f"{error.problem}")

    def end_at_limit(self, error: LimitError) -> RankEnd:
        """How an attempt ends that a limit of the run keeps from beginning.

        What was trained before is benchmarked, as after a training that reaches its limit in the middle.
        """
        beats = [files.heartbeat for files in self._folder.attempts() if files.heartbeat]
        step = max((beat.durable_step for beat in beats), default=0)
        if self._document is Document.TRAIN and step:
            if self._node == 0:
                self._folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.LIMIT, at=datetime.now(UTC),
                                                            step=step, reason=error.problem))
            return RankEnd(ExitCode.FINISHED, f"{Outcome.LIMIT}: {error.problem}")
        self._outcome = Outcome.LIMIT
        return RankEnd(error.node_exit_code, str(error))

    def conclude(self, end: RankEnd) -> int:
        """Write how the run ended, if it did. Returns what this node tells SkyPilot.

        Raises nothing: an exit code that is told is worth more than a record.
        """
        code = end.code
        if code == ExitCode.RECOVER and self.is_stop_wished.look():  # another node may have seen it
            code = ExitCode.STOPPED
        elif code not in list(ExitCode):
            return ExitCode.RECOVER
        is_last = code in _ENDS or (code == ExitCode.FINISHED and self._document is Document.BENCH)
        if is_last and self._node == 0:
            try:
                outcome = self._outcome or _ENDS.get(ExitCode(code), Outcome.FINISHED)
                self._folder.close(outcome, datetime.now(UTC), end.reason, self._document)
            except LdlmError as error:
                print(f"warning: the end of the run is not recorded: {error}", flush=True)
        return code
