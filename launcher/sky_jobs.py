"""What the rows of SkyPilot's queue of managed jobs say of a run. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from launcher.engine import EnginePhase, EngineState
from launcher.sky_errors import in_one_line
from launcher.waits import end_in
from trainer.contract import Document

FIELDS = ("job_id", "task_id", "job_name", "task_name", "status", "recovery_count", "failure_reason",
          "cloud", "region", "details", "end_at")
# SkyPilot 0.14.1, sky/jobs/state.py.
_ALIVE = {"PENDING", "SUBMITTED", "STARTING", "RUNNING", "WINDING_DOWN", "RECOVERING"}
_STOPPING = {"CANCELLING"}
_SUCCEEDED = "SUCCEEDED"
ENDED = {_SUCCEEDED, "CANCELLED", "FAILED", "FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE",
         "FAILED_CONTROLLER"}
Row = Mapping[str, Any]  # of SkyPilot's queue: one task of one job


def job_state(rows: Sequence[Row]) -> EngineState:
    """The state of a job from the rows of its tasks, in their order (pure)."""
    if not rows:
        return EngineState(EnginePhase.NONE)
    row = next((row for row in rows if row["status"] != _SUCCEEDED), rows[-1])
    word = row["status"]
    # SkyPilot calls the only task of a job as the job; alone is submitted a benchmark. Else it may be edited.
    name = Document.BENCH if len(rows) == 1 and row["task_name"] == row["job_name"] else row["task_name"]
    document = Document(name) if name in list(Document) else None
    phase = (EnginePhase.RUNNING if word in _ALIVE else EnginePhase.STOPPING if word in _STOPPING
             else EnginePhase.ENDED if word in ENDED else EnginePhase.UNKNOWN)
    end = end_in(row.get("details")) if phase in (EnginePhase.STOPPING, EnginePhase.ENDED) else None
    detail = end.reason if end else _in_words(row, document)
    ended = row.get("end_at") if phase is EnginePhase.ENDED else None
    return EngineState(phase, document, detail=detail, word=word, outcome=end.outcome if end else None,
                       ended_at=datetime.fromtimestamp(ended, UTC) if ended else None)


def _in_words(row: Row, document: Document | None) -> str:
    # On Vast our plugin takes the cheapest machine of the world, whatever region SkyPilot has written down.
    region = None if row.get("cloud") == "Vast" else row.get("region")
    where = "/".join(filter(None, (row.get("cloud"), region)))
    times = int(row.get("recovery_count") or 0)
    return "".join((f"{document or row['task_name']}: {row['status']}",
                    f" on {where}" if where and where != "-" else "",
                    f", recovered {times} time{'s' * (times > 1)}" if times else "",
                    f": {in_one_line(row['failure_reason'])}" if row.get("failure_reason") else ""))
