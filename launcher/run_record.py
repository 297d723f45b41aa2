"""One record per run, in the object store: recipe, plan, task, attempts, events. Status is computed.

Nothing here is stored twice and nothing is changed after the fact: what a run "is" follows from what
its engine and its nodes have written.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from launcher.engine import EnginePhase, EngineState
from launcher.errors import RunRecordError
from launcher.forgiving import ForgivingFolder
from launcher.mended import mended, not_ahead
from launcher.recorded import RecordedPlan
from launcher.rental_cost import total_usd
from launcher.rentals import Rental, Rentals
from launcher.stand_ins import outcome_told, with_stand_ins
from launcher.vast_credit import credit_words, lacked_credit
from trainer.contract import FIX, Document, Name, Outcome
from trainer.run_folder import STARTS, AttemptFiles, Event, RunFolder, RunOutcome
from trainer.spent import charged_until
from trainer.store import AlreadyExistsError, DamagedError, Store

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.recipe import Recipe
    from launcher.render import Task


# Guess: a rented machine may install for ten minutes before its first heartbeat.
_SILENCE = timedelta(minutes=15)


class Status(StrEnum):
    """Where a run is now."""

    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    BENCHMARKING = "benchmarking"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunRecord:
    """Everything the store knows of one run, at one moment.

    Attributes:
        store_address: Opens its store again.
        plan: `plan.json` as written at launch; None while the launch is writing.
        rentals: Machines that were rented for it, as far as their provider's side was asked.
        num_torn: See `launcher.rentals.Rentals`.
        bench: `bench/result.json`, checked to hold a `Bench`; None before the benchmark is done.
        written: See `launcher.mended.mended`.
        torn: What is wrong with records that cannot be read, and are not in it.
    """

    run_id: str
    url: str
    store_address: str
    plan: RecordedPlan | None
    attempts: Sequence[AttemptFiles]
    events: Sequence[Event]
    outcome: RunOutcome | None
    bench: dict[str, Any] | None
    rentals: Sequence[Rental] = ()
    num_torn: int = 0
    written: Mapping[int, datetime] = field(default_factory=dict)
    torn: Sequence[DamagedError] = ()

    @property
    def torn_names(self) -> list[str]:
        """What cannot be read, by its name in the run's folder."""
        return [str(problem.place).removeprefix(f"{self.url}/") for problem in self.torn]

    @property
    def infra(self) -> str:
        """Where it was last started: `local`, or a cloud in SkyPilot's language."""
        starts = [event for event in self.events if event.kind in STARTS]
        return str(starts[-1].detail.get("infra") or "local") if starts else "local"

    @property
    def may_have_rentals(self) -> bool:
        """True while the side that rents its machines may know of them what is not written here."""
        clouds = set(self.plan.clouds) if self.plan else set()
        clouds.update(*(event.detail.get("clouds", ()) for event in self.events))
        rents_no_more = self.has_ended or self.infra == "local"
        is_complete = rents_no_more and bool(self.rentals) and all(found.ended_at for found in self.rentals)
        return "vast" in clouds and not is_complete

    @property
    def has_deadline(self) -> bool:
        """True where time may decide what it holds, and where its plan cannot say so."""
        told = [event.detail["limits"] for event in self.events if "limits" in event.detail]
        return (self.plan is None or self.plan.deadline is not None
                or any(limits.get("deadline") or limits.get("deadline_hours") for limits in told))

    @property
    def training(self) -> AttemptFiles | None:
        """The newest training attempt that knows its step; else the newest with a heartbeat.

        An attempt that resumes says step 0 until its checkpoint is loaded.
        """
        beating = [files for files in self.attempts
                   if files.attempt.document is Document.TRAIN and files.heartbeat]
        placed = [files for files in beating if files.heartbeat and files.heartbeat.step > 0]
        return next(reversed(placed or beating), None)

    @property
    def num_preemptions(self) -> int:
        """How often the machine was taken back."""
        return sum(1 for files in self.attempts if files.end and files.end.preempted)

    @property
    def has_ended(self) -> bool:
        """True once its engine has closed it; a later `resume` opens it again."""
        return self.outcome is not None and bool(self.events) and self.events[-1].kind == "ended"

    @property
    def bench_end(self) -> RunOutcome | None:
        """How the benchmark ended if it came to no result; `outcome` tells of the training alone."""
        if self.outcome is None or not self.has_ended:
            return None
        last = self.events[-1]
        said = last.detail.get("bench", Outcome.FINISHED)
        if said == Outcome.FINISHED or said not in list(Outcome):
            return None
        return RunOutcome(outcome=Outcome(said), at=last.at, step=self.outcome.step,
                          reason=str(last.detail.get("reason", "")))

    @property
    def has_failed(self) -> bool:
        """True if training or benchmark ended as nobody wanted it."""
        good = {Outcome.FINISHED, Outcome.LIMIT, Outcome.STOPPED}
        if self.bench_end and self.bench_end.outcome not in good | {Outcome.NO_CAPACITY}:
            return True
        return self.outcome is not None and self.outcome.outcome not in good

    @property
    def lacks_credit(self) -> bool:
        """True if its last machine was stopped since its account had prepaid nothing more."""
        ends = [files.end for files in self.attempts if files.end]
        return bool(ends) and lacked_credit(ends[-1]) and self.open_attempt is None

    @property
    def failure_fix(self) -> str | None:
        """What to do about its end, where that is known; of the newest attempt its node says so."""
        if self.outcome and self.outcome.outcome is Outcome.NO_CAPACITY:
            if self.lacks_credit:
                return f"{credit_words()}, then ldlm resume {self.run_id}"
            return f"ldlm resume {self.run_id}, or elsewhere: ldlm resume {self.run_id} --infra CLOUD"
        end = self.attempts[-1].end if self.attempts else None
        return end.reason.partition(FIX)[2] or None if end else None

    @property
    def open_attempt(self) -> AttemptFiles | None:
        """The newest attempt if nobody has written its end."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].end else None

    @property
    def last_seen(self) -> datetime | None:
        """When the open attempt last gave a sign of life; None without one."""
        files = self.open_attempt
        if files is None:
            return None
        return files.heartbeat.at if files.heartbeat else files.attempt.billed_from


@dataclass(frozen=True)
class RunView:
    """A run as one look at its record, its engine and the clock shows it.

    Attributes:
        charged_to: Until when an open attempt is charged. The processes of a run die with their
            supervisor, so a run that is lost costs nothing after its last sign of life.
        spent_usd: Over all attempts, with their supervision; unrounded.
        doubts: What of the record cannot be true, or was not there, and what its bill is made by.
    """

    record: RunRecord
    engine: EngineState
    status: Status
    charged_to: datetime
    spent_usd: Decimal
    doubts: Sequence[str] = ()


def look_at(record: RunRecord, engine: EngineState, now: datetime) -> RunView:
    """Judge a run (pure). Moments in its record that cannot be true are mended first."""
    events, ahead = not_ahead(record.events, now)
    attempts, doubts = mended(record.attempts, events, record.rentals, record.written, now,
                              has_ended=record.has_ended)
    record = replace(record, attempts=attempts, events=events)
    status = status_of(record, engine, now)
    is_lost = status in (Status.UNKNOWN, Status.ENDED)
    charged_to = record.last_seen or now if is_lost else now
    spent = total_usd(record.attempts, charged_until(record.attempts, charged_to), record.rentals, charged_to,
                      record.events)
    return RunView(record, engine, status, charged_to, spent, [*ahead, *doubts])


def create_record(folder: RunFolder, recipe: "Recipe", plan: "Plan", task: "Task", now: datetime,
                  git_sha: str | None = None) -> None:
    """Write what was approved. The recipe comes first and claims the run id.

    Args:
        git_sha: Commit of the code that the task carries; None when it is not known.

    Raises:
        RunRecordError: There is a run of this id.
        StoreError: The store cannot be written.
    """
    try:
        folder.write(Name.RECIPE, recipe, create=True)
    except AlreadyExistsError as error:
        raise _exists_already(folder) from error
    folder.write(Name.PLAN, plan)
    folder.write_bytes(Name.TASK, task.text.encode())
    folder.add_event("submitted", now, task_digest=task.digest, git_sha=git_sha,
                     infra=plan.offers[Document.TRAIN].infra, **plan.supervision)


def check_free(folder: RunFolder) -> None:
    """Raise RunRecordError if there is a run of this id."""
    if folder.exists():
        raise _exists_already(folder)


def _exists_already(folder: RunFolder) -> RunRecordError:
    run_id = folder.run_id
    return RunRecordError(f"a run {run_id!r} exists already", place=folder.url,
                          fix=f"look at it with `ldlm status {run_id}`, or give another --run-id")


def find_folder(store: Store, run_id: str) -> RunFolder:
    """The folder of a run that exists.

    Raises:
        RunRecordError: There is no such run; the message names some that there are.
    """
    folder = RunFolder(store, run_id)
    if not folder.exists():
        known = list_run_ids(store)
        raise RunRecordError(f"no run {run_id!r}", place=store.url,
                             fix=_take_one_of(run_id, known) if known else "launch one: `ldlm launch smoke`")
    return folder


def _take_one_of(run_id: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(run_id, known, n=3) or known[-3:]
    return f"take one of: {', '.join(near)}" + (" (all: `ldlm status`)" if len(near) < len(known) else "")


def load_record(store: Store, run_id: str) -> RunRecord:
    """Read one run, whole: what goes on from it needs all of it.

    Raises:
        RunRecordError: There is no such run.
        StoreError: Something in its folder cannot be read or understood.
    """
    record = read_record(find_folder(store, run_id))
    if record.torn:
        raise record.torn[0]
    return record


def read_record(folder: RunFolder) -> RunRecord:
    """Read what is whole of a run that is known to exist; other records of it stand in for the rest.

    Raises:
        StoreError: The store cannot be read.
    """
    folder = ForgivingFolder(folder)
    rentals = folder.find(Name.RENTALS, Rentals) or Rentals(rentals=())
    plan, whole, events = folder.find_part(Name.PLAN, RecordedPlan), folder.attempts(), folder.events()
    attempts = with_stand_ins(whole, folder.remains, events, plan.prices if plan else (), rentals.rentals)
    outcome = folder.find(Name.OUTCOME, RunOutcome) or outcome_told(events, attempts)
    return RunRecord(run_id=folder.run_id, url=folder.url, store_address=folder.store.address, plan=plan,
                     attempts=attempts, events=events, outcome=outcome, bench=folder.find_bench(),
                     rentals=rentals.rentals, num_torn=rentals.num_torn, torn=folder.torn,
                     written=folder.written(attempts))


def list_run_ids(store: Store) -> list[str]:
    """Ids of the runs in a store, oldest name first."""
    return [name for name in store.folders() if RunFolder(store, name).exists()]


def status_of(record: RunRecord, engine: EngineState, now: datetime) -> Status:
    """Where a run is, from its record and from what its engine says of the machines (pure)."""
    if engine.phase is EnginePhase.STOPPING:
        return Status.STOPPING
    if engine.phase is EnginePhase.RUNNING:
        return Status.RECOVERING if engine.word == "RECOVERING" else _running_status(record)
    if record.has_ended:
        return Status.ENDED
    # Whether or not SkyPilot can be asked from here, the nodes of a rented run say themselves that they live.
    is_elsewhere = engine.phase is EnginePhase.NONE or record.infra != "local"
    if is_elsewhere and is_alive_elsewhere(record, now):
        return _running_status(record)
    return Status.UNKNOWN


def is_alive_elsewhere(record: RunRecord, now: datetime) -> bool:
    """True if some machine has lately given a sign of life (pure)."""
    return not record.has_ended and record.last_seen is not None and now - record.last_seen < _SILENCE


def _running_status(record: RunRecord) -> Status:
    if not record.attempts:
        return Status.STARTING
    last = record.attempts[-1]
    if last.attempt.document is Document.BENCH:
        return Status.BENCHMARKING
    if last.heartbeat and last.heartbeat.phases.train_s > 0 and not last.end:
        return Status.RUNNING
    beats = (files.heartbeat for files in record.attempts)
    has_trained = any(beat.phases.train_s > 0 for beat in beats if beat)
    return Status.RECOVERING if has_trained else Status.STARTING  # set-up alone leaves nothing to recover


def outcome_words(outcome: RunOutcome) -> str:
    """How a run ended, for people."""
    words = {Outcome.FINISHED: "finished", Outcome.LIMIT: "stopped at its limit",
             Outcome.STOPPED: "stopped by you", Outcome.DIVERGED: "failed: diverged or broke",
             Outcome.BAD_CONFIG: "failed: bad recipe or data", Outcome.NO_CAPACITY: "no machine to be had",
             Outcome.LOST: "failed: gave up after crashes"}
    return f"{words[outcome.outcome]} ({outcome.reason})"


def ending_words(record: RunRecord) -> str:
    """How training and benchmark of a run ended, for people; empty before the end."""
    training, bench = record.outcome, record.bench_end
    if training is None or bench is None:
        again = f": {record.failure_fix}" if training and training.outcome is Outcome.NO_CAPACITY else ""
        return f"{outcome_words(training)}{again}" if training else ""
    is_trained = training.outcome is Outcome.FINISHED
    words = {Outcome.STOPPED: "stopped by you", Outcome.LIMIT: "stopped at the run's limit",
             Outcome.NO_CAPACITY: "found no machine"}
    how = words.get(bench.outcome, "failed")
    return (f"{'trained' if is_trained else outcome_words(training)}; benchmark {how} ({bench.reason}): "
            f"ldlm {'bench' if is_trained else 'resume'} {record.run_id}")
