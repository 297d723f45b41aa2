"""Closes the record of a run that ended at a cloud without a node that could say so.

A node writes how training and benchmark ended (`trainer/rented.py`). What it cannot write: that no machine
was to be had, that somebody took the machines away, that the controller gave up.
"""

from datetime import datetime, timedelta

from launcher.engine import EnginePhase, EngineState
from launcher.run_record import RunRecord
from trainer.contract import CLOCK_SKEW, Document, Outcome
from trainer.lease import newest_lease
from trainer.run_folder import RunFolder, last_start

_OUTCOMES = {"SUCCEEDED": Outcome.FINISHED, "CANCELLED": Outcome.STOPPED,
             "FAILED_NO_RESOURCE": Outcome.NO_CAPACITY, "FAILED_PRECHECKS": Outcome.NO_CAPACITY}

# From the record of a start until SkyPilot has its job: a checkout is sent, a server answers (guess).
_HAND_OVER = timedelta(minutes=10)


def settle(folder: RunFolder, record: RunRecord, state: EngineState, now: datetime) -> bool:
    """Write the end of a run if its engine says that it is over and nobody has. Returns True if it wrote.

    Raises:
        StoreError: The record cannot be written.
    """
    if state.phase is not EnginePhase.ENDED or record.has_ended or _is_of_the_job_before(record, state, now):
        return False
    outcome = state.outcome or _OUTCOMES.get(state.word, Outcome.LOST)
    # Another machine is looked for once an attempt has said that it ends, or its machine has vanished.
    folder.close_open_attempts(record.attempts, f"SkyPilot says {state.word}",
                               preempted=outcome is Outcome.NO_CAPACITY or _had_vanished(record))
    folder.close(outcome, min(now, state.ended_at or now), state.detail, state.document or Document.TRAIN)
    return True


def _is_of_the_job_before(record: RunRecord, state: EngineState, now: datetime) -> bool:
    """True while another terminal hands a resumed run over: SkyPilot has its old job alone."""
    started = last_start(record.events)
    return (started is not None and state.ended_at is not None and state.ended_at < started
            and now - started < _HAND_OVER)


def _had_vanished(record: RunRecord) -> bool:
    """True if the newest machine had been silent for longer than its lease when a person stopped the run."""
    lease = newest_lease(record.attempts)
    return lease is not None and any(event.kind == "stop_requested" and event.at > lease.until + CLOCK_SKEW
                                     for event in record.events)
