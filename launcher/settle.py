"""Closes the record of a run that ended at a cloud without a node that could say so.

A node writes how training and benchmark ended (`trainer/rented.py`). What it cannot write: that SkyPilot
found no machine, that somebody took the machines away, that the controller gave up.
"""

from contextlib import suppress
from datetime import datetime

from launcher.engine import EnginePhase, EngineState
from launcher.run_record import RunRecord
from trainer.contract import Document, Name, Outcome
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import AlreadyExistsError

_OUTCOMES = {"SUCCEEDED": Outcome.FINISHED, "CANCELLED": Outcome.STOPPED,
             "FAILED_NO_RESOURCE": Outcome.NO_CAPACITY, "FAILED_PRECHECKS": Outcome.NO_CAPACITY}


def settle(folder: RunFolder, record: RunRecord, state: EngineState, now: datetime) -> bool:
    """Write the end of a run if its engine says that it is over and nobody has. Returns True if it wrote.

    Raises:
        StoreError: The record cannot be written.
    """
    if state.phase is not EnginePhase.ENDED or record.has_ended:
        return False
    outcome = _OUTCOMES.get(state.word, Outcome.LOST)
    folder.close_open_attempts(record.attempts, f"SkyPilot says {state.word}", preempted=False)
    beats = [files.heartbeat for files in record.attempts if files.heartbeat]
    ours = RunOutcome(outcome=outcome, at=now, reason=state.detail,
                      step=max((beat.durable_step for beat in beats), default=0))
    with suppress(AlreadyExistsError):  # how training ended is told by the trainer
        folder.write(Name.OUTCOME, ours, create=True)
    stands = folder.read(Name.OUTCOME, RunOutcome).outcome
    bench = {"bench": str(outcome)} if state.document is Document.BENCH else {}
    folder.add_event("ended", now, outcome=str(stands), reason=state.detail, **bench)
    return True
