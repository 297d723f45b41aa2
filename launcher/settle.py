"""Closes the record of a run that ended at a cloud without a node that could say so.

A node writes how training and benchmark ended (`trainer/rented.py`). What it cannot write: that no machine
was to be had, that somebody took the machines away, that the controller gave up.
"""

from datetime import datetime

from launcher.engine import EnginePhase, EngineState
from launcher.run_record import RunRecord
from trainer.contract import Document, Outcome
from trainer.run_folder import RunFolder

_OUTCOMES = {"SUCCEEDED": Outcome.FINISHED, "CANCELLED": Outcome.STOPPED,
             "FAILED_NO_RESOURCE": Outcome.NO_CAPACITY, "FAILED_PRECHECKS": Outcome.NO_CAPACITY}


def settle(folder: RunFolder, record: RunRecord, state: EngineState, now: datetime) -> bool:
    """Write the end of a run if its engine says that it is over and nobody has. Returns True if it wrote.

    Raises:
        StoreError: The record cannot be written.
    """
    if state.phase is not EnginePhase.ENDED or record.has_ended:
        return False
    outcome = state.outcome or _OUTCOMES.get(state.word, Outcome.LOST)
    folder.close_open_attempts(record.attempts, f"SkyPilot says {state.word}", preempted=False)
    folder.close(outcome, min(now, state.ended_at or now), state.detail, state.document or Document.TRAIN)
    return True
