"""One record per run, in the object store: recipe, plan, task, attempts, events. Status is computed.

Nothing here is stored twice and nothing is changed after the fact: what a run "is" follows from what
its engine and its nodes have written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from launcher.errors import RunRecordError
from trainer.contract import Document, Name, Outcome
from trainer.run_folder import AttemptFiles, Event, RunFolder, RunOutcome
from trainer.store import AlreadyExistsError, NotFoundError, Store

if TYPE_CHECKING:
    from launcher.engine import EngineState
    from launcher.plan import Plan
    from launcher.recipe import Recipe
    from launcher.render import Task


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
        plan: `plan.json` as written at launch.
        bench: `bench/result.json`, None before the benchmark is done.
    """

    run_id: str
    url: str
    plan: dict[str, Any]
    attempts: Sequence[AttemptFiles]
    events: Sequence[Event]
    outcome: RunOutcome | None
    bench: dict[str, Any] | None

    @property
    def training(self) -> AttemptFiles | None:
        """The newest training attempt that has sent a heartbeat."""
        beating = [files for files in self.attempts
                   if files.attempt.document is Document.TRAIN and files.heartbeat]
        return beating[-1] if beating else None

    @property
    def num_preemptions(self) -> int:
        """How often the machine was taken back."""
        return sum(1 for files in self.attempts if files.end and files.end.preempted)


def create_record(folder: RunFolder, recipe: "Recipe", plan: "Plan", task: "Task", now: datetime) -> None:
    """Write what was approved. The recipe comes first and claims the run id.

    Raises:
        RunRecordError: There is a run of this id.
        StoreError: The store cannot be written.
    """
    try:
        folder.write(Name.RECIPE, recipe, create=True)
    except AlreadyExistsError as error:
        raise RunRecordError(
            f"a run {folder.run_id!r} exists already", place=folder.url,
            fix=f"`ldlm resume {folder.run_id}` continues it; or launch with another --run-id") from error
    folder.write(Name.PLAN, plan)
    folder.write_bytes(Name.TASK, task.text.encode())
    folder.add_event("submitted", now, task_digest=task.digest)


def load_record(store: Store, run_id: str) -> RunRecord:
    """Read one run.

    Raises:
        RunRecordError: There is no such run; the message names those there are.
    """
    folder = RunFolder(store, run_id)
    if not folder.exists():
        known = list_run_ids(store)
        raise RunRecordError(
            f"no run {run_id!r}", place=store.url,
            fix=f"take one of: {', '.join(known[-5:])}" if known else "launch one: `ldlm launch smoke`")
    return RunRecord(run_id=run_id, url=folder.url, plan=_json_or_none(folder, Name.PLAN) or {},
                     attempts=folder.attempts(), events=folder.events(),
                     outcome=folder.find(Name.OUTCOME, RunOutcome), bench=_json_or_none(folder, Name.BENCH))


def list_run_ids(store: Store) -> list[str]:
    """Ids of the runs in a store, oldest name first."""
    return [name for name in store.folders() if RunFolder(store, name).exists()]


def status_of(record: RunRecord, engine: "EngineState") -> Status:
    """Where a run is, from its record and from what its engine says of the machines (pure)."""
    from launcher.engine import EnginePhase

    if engine.phase is EnginePhase.STOPPING:
        return Status.STOPPING
    if engine.phase is EnginePhase.RUNNING:
        return _running_status(record)
    if record.outcome is not None and record.events and record.events[-1].kind == "ended":
        return Status.ENDED
    return Status.UNKNOWN


def _running_status(record: RunRecord) -> Status:
    if not record.attempts:
        return Status.STARTING
    last = record.attempts[-1]
    if last.attempt.document is Document.BENCH:
        return Status.BENCHMARKING
    if last.heartbeat and not last.end:
        return Status.RUNNING
    return Status.STARTING if len(record.attempts) == 1 and not last.end else Status.RECOVERING


def outcome_words(outcome: RunOutcome | None) -> str:
    """How a run ended, for people."""
    if outcome is None:
        return "not ended"
    words = {Outcome.FINISHED: "finished", Outcome.LIMIT: "stopped at its limit", Outcome.STOPPED: "stopped by you",
             Outcome.DIVERGED: "failed: diverged or broke", Outcome.BAD_CONFIG: "failed: bad recipe or data",
             Outcome.NO_CAPACITY: "no machine to be had", Outcome.LOST: "failed: gave up after crashes"}
    return f"{words[outcome.outcome]} ({outcome.reason})"


def _json_or_none(folder: RunFolder, name: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(folder.read_bytes(name))
    except NotFoundError:
        return None
    except ValueError as error:
        raise RunRecordError(f"is not JSON: {error}", place=f"{folder.url}/{name}",
                             fix="restore the object from a backup") from error
    return value
