"""Run folders of which there is something to tell, as nodes and engines leave them. No torch."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from trainer.contract import Document
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, Phases, RunFolder
from trainer.store import local_store_url, open_store

BEGAN = datetime(2026, 11, 28, 8, tzinfo=UTC)


def minute(number: float) -> datetime:
    """So many minutes after the run was submitted."""
    return BEGAN + timedelta(minutes=number)


def started(number: float = 0, kind: str = "submitted") -> Event:
    """The run is given to an engine."""
    return Event(at=minute(number), kind=kind)


def beat(step: int, *, resumed_from: int = 0, trains: bool = True, usd: str = "0.5",
         **metrics: float) -> Heartbeat:
    """The newest word of an attempt; `trains`: it has done its first step."""
    return Heartbeat(at=minute(5), step=step + 3, total_steps=360, resumed_from_step=resumed_from,
                     durable_step=step, durable_train_s=0, durable_evaluate_s=0, phases=Phases(),
                     tokens_per_s=0, spent_usd=Decimal(usd), start_s={"imports": 2.0} if trains else {},
                     metrics=metrics)


def attempt(number: int, heartbeat: Heartbeat | None = None, *, at: float | None = None,
            document: Document = Document.TRAIN, **end: Any) -> AttemptFiles:
    """One that began at this minute, and has ended where something is said of its end."""
    began = minute(number if at is None else at)
    return AttemptFiles(
        attempt=Attempt(number=number, document=document, billed_from=began, price_usd_per_hour=Decimal(1),
                        offer="", host="h"), heartbeat=heartbeat,
        end=AttemptEnd(**{"at": began, "exit_code": None, "preempted": False} | end) if end else None)


def folder_with(path: Path, *attempts: AttemptFiles, events: tuple[Event, ...] = (started(),)) -> RunFolder:
    """These attempts in a store on this disk."""
    folder = RunFolder(open_store(local_store_url(path)), "run")
    for event in events:
        folder.add_event(event.kind, event.at)
    for files in attempts:
        number = files.attempt.number
        folder.write(f"attempts/{number}/attempt.json", files.attempt)
        if files.heartbeat:
            folder.write(f"attempts/{number}/heartbeat.json", files.heartbeat)
        if files.end:
            folder.write(f"attempts/{number}/end.json", files.end)
    return folder
