"""`python -m launcher.supervisor FOLDER --lock FD`: carries one run out on this machine, to its end.

Started by `launcher/local_engine.py`, in a session of its own. It plays the part that SkyPilot's
managed jobs play on a cloud: attempts one after the other, each judged by its exit code.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, TypeVar

import psutil

from launcher.attempt_runner import ENGINE_FOLDER, AttemptResult, AttemptRunner, StopRequests, attempt_env
from launcher.engine import EnginePhase, EngineState
from launcher.engine_folder import EngineFolder
from launcher.errors import EngineError, LdlmError, StoreError
from launcher.local_course import LocalCourse
from launcher.preempt_at import PreemptAt, parse_preempt_at
from launcher.process_tree import become_subreaper, processes_with
from launcher.task_documents import TaskDocument, parse_task
from launcher.verdict import Follows, Verdict, judge
from trainer.at_most import standing_of
from trainer.contract import STOP_GRACE_S, Document, Env, ExitCode, Name, Outcome, attempt_file
from trainer.guard import headroom
from trainer.lease import START_S, SupersededError, await_free, machine_here
from trainer.limits import Limits
from trainer.run_folder import (
    Attempt,
    AttemptEnd,
    AttemptFiles,
    Heartbeat,
    RunFolder,
    RunOutcome,
)
from trainer.store import AlreadyExistsError, open_store
from trainer.tell import tell_end

_STORE_PAUSES_S = (1.0, 2.0, 4.0)  # beyond what the store itself retries (guess)
_HEARTBEAT_POLL_S = 0.25
_RECORD_POLL_S = 30.0  # one small read; a run without a record costs no more than this (guess)

_T = TypeVar("_T")


class Supervisor:
    """One run, from its first attempt on this machine to its end."""

    def __init__(self, folder: EngineFolder, documents: Sequence[TaskDocument], stop: StopRequests,
                 preempt_at: PreemptAt | None) -> None:
        self._folder = folder
        self._documents = documents
        self._stop = stop
        self._preempt_at = preempt_at
        self._state = EngineState(EnginePhase.RUNNING, pid=os.getpid(), detail="starting")
        self._run = RunFolder(open_store(documents[0].envs[Env.STORE]), documents[0].run_id)
        self._is_record_gone = False
        self._record_seen = time.monotonic()

    def run(self) -> None:
        """Carry the run out. Every way to its end is told in state.json."""
        self._show(detail="starting")
        try:
            self._end(*self._run_documents())
        except LdlmError as error:
            say(str(error))
            self._show(phase=EnginePhase.ENDED, detail=f"{Outcome.LOST}: {error}")

    def _run_documents(self) -> tuple[Document, Verdict]:
        self._event("engine_started", pid=os.getpid(), host=socket.gethostname())
        self._wait_for_leftovers()
        self._close_open_attempts()
        last = Document.TRAIN
        verdict = Verdict(Follows.NEXT_DOCUMENT, Outcome.FINISHED, "it had finished before")
        for document in self._documents_left():
            last, verdict = document.document, self._run_document(document)
            if verdict.follows is Follows.END:
                break
            if document.document is Document.TRAIN:
                self._write_outcome(verdict)
        return last, verdict

    def _documents_left(self) -> Sequence[TaskDocument]:
        """Leave out training that finished. An older end of another kind must not pass for the new one."""
        found = patiently(lambda: self._run.find(Name.OUTCOME, RunOutcome), "read the outcome")
        if found and found.outcome is Outcome.FINISHED:
            return [document for document in self._documents if document.document is not Document.TRAIN]
        patiently(lambda: self._run.store.delete([self._run.key(Name.OUTCOME)]), "remove the old outcome")
        return self._documents

    # -- attempts -----------------------------------------------------------------------------

    def _run_document(self, document: TaskDocument) -> Verdict:
        retries_used = 0
        durable_step = self._durable_step()
        course = LocalCourse(document, self._run, say)
        while True:
            here = course.next_document(lambda: bool(self._stop.count), self._say_that_it_waits)
            if self._stop.count:
                return Verdict(Follows.END, Outcome.STOPPED, f"stopped on request before {document.document}")
            attempt = self._claim(here)
            result = self._run_attempt(here, attempt, course)
            if result.exit_code == ExitCode.SUPERSEDED:  # what the store holds is another's now
                raise SupersededError(f"attempt {attempt.number} was superseded by a later one elsewhere")
            if self._is_record_gone:
                return Verdict(Follows.END, Outcome.LOST,
                               f"somebody deleted the run's record: no {self._run.url}/{Name.RECIPE}")
            newest = self._durable_step()
            if newest > durable_step:
                durable_step, retries_used = newest, 0
            verdict = judge(result, document, retries_used=retries_used,
                            stop_requested=bool(self._stop.count), cause=self._cause(attempt, result))
            self._record_end(attempt, result, verdict)
            if verdict.follows in (Follows.END, Follows.NEXT_DOCUMENT):
                return verdict
            if limit := self._limit_reached(document):
                return Verdict(Follows.END, Outcome.LIMIT, f"{limit}; not started again: {verdict.reason}")
            retries_used += verdict.follows is Follows.RETRY

    def _limit_reached(self, document: TaskDocument) -> str | None:
        """Before an attempt is started again: its trainer looks at the limits only once it trains."""
        now = datetime.now(UTC)
        attempts = self._try(self._run.attempts, "read the attempts") or []
        events = self._try(self._run.events, "read the events") or []
        found = headroom(Limits.of(document.envs), document.document, standing_of(attempts, events, now))
        return found.words if found and found.is_reached else None

    def _claim(self, document: TaskDocument) -> Attempt:
        attempt = patiently(lambda: self._run.claim_attempt(
            document.document, billed_from=datetime.now(UTC), price_usd_per_hour=document.price_usd_per_hour,
            offer=document.envs.get(Env.OFFER, "local"), host=socket.gethostname(),
            owner=machine_here(), lease_until=datetime.now(UTC) + timedelta(seconds=START_S)),
            "claim an attempt")
        self._show(document=document.document, attempt=attempt.number, detail=f"{document.document} runs")
        return attempt

    def _run_attempt(self, document: TaskDocument, attempt: Attempt, course: LocalCourse) -> AttemptResult:
        try:
            with self._folder.attempt_log(attempt.number).open("ab", buffering=0) as log:
                injection = Injection(self._preempt_at, lambda: self._heartbeat(attempt.number), log)
                env = attempt_env(document, attempt.number, self._folder.path)
                result = AttemptRunner(document, env, log, self._stop, on_poll=self._look_for_record,
                                       on_stop=self._stop_was_requested, is_preempted=injection.is_due,
                                       is_to_move=course.is_to_move).run()
                if result.in_setup:
                    say(f"setup failed with exit code {result.exit_code}", log)
        except OSError as error:
            raise EngineError(f"attempt {attempt.number} cannot be started: {error}",
                              place=str(self._folder.path),
                              fix="free disk space, or make the folder and bash usable") from error
        if result.preempted:
            course.withdraw_spot(self._preempt_at.away_s if self._preempt_at else 0.0)
            self._preempt_at = None  # once per run
        return result

    def _stop_was_requested(self, in_setup: bool) -> None:
        saves = self._state.document is Document.TRAIN and not in_setup
        what = "set-up" if in_setup else "the benchmark"
        self._show(phase=EnginePhase.STOPPING,
                   detail="waiting for a last checkpoint" if saves else f"{what} has nothing to save")
        self._event("stop_requested", attempt=self._state.attempt)

    def _look_for_record(self) -> None:
        """Stop a run that somebody deleted while it runs: it costs money, and nobody would find its work."""
        if self._stop.count or time.monotonic() - self._record_seen < _RECORD_POLL_S:
            return
        self._record_seen = time.monotonic()
        with suppress(StoreError):  # unreadable is not gone
            self._is_record_gone = not self._run.exists()
        if self._is_record_gone:
            self._stop.ask()

    def _record_end(self, attempt: Attempt, result: AttemptResult, verdict: Verdict) -> None:
        number, reason = attempt.number, verdict.reason
        self._write_end(number, AttemptEnd(at=datetime.now(UTC), exit_code=result.exit_code,
                                           preempted=result.preempted, reason=reason))
        if result.preempted:
            self._event("preempted", attempt=number)
        self._event("attempt_ended", attempt=number, exit_code=result.exit_code,
                    in_setup=result.in_setup, follows=str(verdict.follows), reason=reason)
        say(f"attempt {number}: {reason}; {verdict.follows}")

    def _cause(self, attempt: Attempt, result: AttemptResult) -> str | None:
        """The first line of what the node wrote about its own end; the others say how to put it right."""
        name = attempt_file(attempt.number, "end.json")
        end = self._try(lambda: self._run.find(name, AttemptEnd), "read what the node says of its end")
        if end is None or end.exit_code != result.exit_code:
            return None
        return next(iter(end.reason.splitlines()), None)

    def _write_end(self, number: int, end: AttemptEnd) -> None:
        """Record an end, unless the node did so itself: it knows more."""
        def write() -> None:
            with suppress(AlreadyExistsError):
                self._run.write(attempt_file(number, "end.json"), end, create=True)
        self._try(write, f"record the end of attempt {number}")

    # -- what an earlier supervisor left ------------------------------------------------------

    def _wait_for_leftovers(self) -> None:
        """Two trainers of one run must never live at once. A killed supervisor's got SIGTERM when it died."""
        deadline = time.monotonic() + STOP_GRACE_S
        while leftovers := processes_with(ENGINE_FOLDER, str(self._folder.path)):
            self._show(detail=f"waiting for {len(leftovers)} processes of an earlier attempt to end")
            if self._stop.count or time.monotonic() > deadline:
                for process in leftovers:
                    with suppress(psutil.Error):
                        process.kill()
            time.sleep(0.1)

    def _close_open_attempts(self) -> None:
        """Also another machine's, once its lease is over."""
        patiently(lambda: await_free(self._run, machine_here(), self._say_that_it_waits),
                  "see who trains this run")
        attempts = patiently(self._run.attempts, "read the attempts")
        self._try(lambda: self._run.close_open_attempts(
            attempts, "its engine was killed; last seen then", preempted=False), "end what was left open")

    def _say_that_it_waits(self, text: str) -> None:
        say(text)
        self._show(detail=text)

    # -- the store and state.json -------------------------------------------------------------

    def _heartbeat(self, number: int) -> Heartbeat | None:
        try:
            return self._run.find(attempt_file(number, "heartbeat.json"), Heartbeat)
        except StoreError as error:
            say(str(error))
            return None

    def _durable_step(self) -> int:
        """By the checkpoints themselves too: a node may die between a commit and its next heartbeat."""
        told = _newest_step(self._try(self._run.attempts, "read the attempts") or [])
        prefix = self._run.key(Name.CHECKPOINTS)
        found = self._try(lambda: self._run.store.objects(prefix), "list the checkpoints") or []
        return max(told, _newest_commit(item.key for item in found))

    def _end(self, last: Document, verdict: Verdict) -> None:
        """Close the run. outcome.json tells how training ended; the event adds how the benchmark did."""
        found = self._write_outcome(verdict)
        detail = f"{verdict.outcome}: {verdict.reason}"
        bench = {"bench": str(verdict.outcome)} if last is Document.BENCH else {}
        self._event("ended", outcome=str(found.outcome), reason=verdict.reason, **bench)
        self._show(phase=EnginePhase.ENDED, detail=detail)
        say(detail)
        self._try(lambda: tell_end(self._run, found, os.environ), "tell of the end")

    def _write_outcome(self, verdict: Verdict) -> RunOutcome:
        """Write outcome.json unless the trainer did; returns the one that stands."""
        ours = RunOutcome(outcome=verdict.outcome, at=datetime.now(UTC), step=self._durable_step(),
                          reason=verdict.reason)

        def write() -> RunOutcome:
            try:
                self._run.write(Name.OUTCOME, ours, create=True)
                return ours
            except AlreadyExistsError:
                return self._run.read(Name.OUTCOME, RunOutcome)
        return self._try(write, "write the outcome") or ours

    def _event(self, kind: str, **detail: object) -> None:
        at = datetime.now(UTC)
        self._try(lambda: self._run.add_event(kind, at, **detail), f"record the event {kind}")

    def _try(self, action: Callable[[], _T], what: str) -> _T | None:
        """Do it patiently; a store that stays away costs a record, never the run.

        Does nothing once the record is gone: what was deleted must not come back in pieces.
        """
        if self._is_record_gone:
            return None
        try:
            return patiently(action, what)
        except StoreError as error:
            say(f"gave up: {error}")
            return None

    def _show(self, *, phase: EnginePhase | None = None, document: Document | None = None,
              attempt: int | None = None, detail: str) -> None:
        before = self._state
        self._state = EngineState(phase or before.phase, document or before.document,
                                  attempt or before.attempt, before.pid, detail)
        try:
            self._folder.write_state(self._state)
        except OSError as error:
            say(f"cannot write state.json: {error}")


class Injection:
    """Watches one attempt for the moment at which its machine is to vanish."""

    def __init__(self, preempt_at: PreemptAt | None, heartbeat: Callable[[], Heartbeat | None],
                 log: BinaryIO) -> None:
        self._preempt_at = preempt_at
        self._heartbeat = heartbeat
        self._log = log
        self._began = time.monotonic()
        self._asked = float("-inf")
        self._told = False

    def is_due(self) -> bool:
        """True at that moment. Looks into the store at most four times a second."""
        now = time.monotonic()
        if self._preempt_at is None or now - self._asked < _HEARTBEAT_POLL_S:
            return False
        self._asked = now
        heartbeat = self._heartbeat() if self._preempt_at.kind == "step" else None
        if self._preempt_at.waits_for_checkpoint(heartbeat) and not self._told:
            self._told = True
            say(f"preemption at {self._preempt_at} waits for a first durable checkpoint", self._log)
        due = self._preempt_at.is_due(now - self._began, heartbeat)
        if due:
            say(f"preemption at {self._preempt_at}: killing every process of this attempt", self._log)
        return due


def _newest_step(attempts: Sequence[AttemptFiles]) -> int:
    return max((files.heartbeat.durable_step for files in attempts if files.heartbeat), default=0)


def _newest_commit(keys: Iterable[str]) -> int:
    """Newest step with a manifest, which is what commits a checkpoint; 0 without one."""
    folders = (key.removesuffix(f"/{Name.MANIFEST}") for key in keys if key.endswith(f"/{Name.MANIFEST}"))
    steps = (folder.rpartition("-")[2] for folder in folders)
    return max((int(step) for step in steps if step.isdigit()), default=0)


def patiently(action: Callable[[], _T], what: str) -> _T:
    """Do something with the store, again after a pause when it fails. Raises the last StoreError."""
    for pause_s in _STORE_PAUSES_S:
        try:
            return action()
        except StoreError as error:
            say(f"cannot {what}, trying again in {pause_s:g} s: {error}")
            time.sleep(pause_s)
    return action()


def say(text: str, log: BinaryIO | None = None) -> None:
    """One line to supervisor.log, and to the attempt's log if given. A full disk is no reason to die."""
    with suppress(OSError):
        print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}", file=sys.stderr, flush=True)
    with suppress(OSError):
        if log:
            log.write(f"ldlm: {text}\n".encode())


def main(arguments: list[str] | None = None) -> None:
    """Supervise the task in an engine folder whose lock this process was given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the held lock file")
    parser.add_argument("--preempt-at", type=parse_preempt_at)
    options = parser.parse_args(arguments)
    os.set_inheritable(options.lock, False)  # the lock must end with this process, not with its children
    stop = StopRequests()
    stop.install()
    become_subreaper()
    folder = EngineFolder(options.folder)
    try:
        folder.write_supervisor()
        supervisor = Supervisor(folder, parse_task(folder.task.read_text()), stop, options.preempt_at)
    except (LdlmError, OSError) as error:
        sys.exit(f"error: {error}")
    supervisor.run()


if __name__ == "__main__":
    main()
