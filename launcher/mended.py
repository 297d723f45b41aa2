"""Attempts whose record lacks a moment, or has one that cannot be, as the bill of their run takes them. Pure.

Who wrote it may be gone, and its clock with it: nothing can be set right there. Each repair is a sentence.
"""

from collections.abc import Sequence
from datetime import datetime

from trainer.contract import CLOCK_SKEW
from trainer.run_folder import AttemptEnd, AttemptFiles, Event


def mended(attempts: Sequence[AttemptFiles], events: Sequence[Event], *,
           has_ended: bool) -> tuple[list[AttemptFiles], list[str]]:
    """The attempts as they are billed, and a sentence for each that was written otherwise.

    Args:
        attempts: Of the run, in order.
        events: Of the run, oldest first.
        has_ended: Nobody will write the end of an attempt any more.
    """
    submitted = next((event.at for event in events if event.kind == "submitted"), None)
    told = {event.detail.get("attempt"): event.at for event in events if event.kind == "attempt_ended"}
    found, doubts = [], list[str]()
    for files in attempts:
        files = _begun(files, submitted, doubts)
        number = files.attempt.number
        if files.end is None and number in told:
            files = _ended(files, told[number])
            doubts.append(f"attempt {number} left no end: it is billed to the one that the run's events tell")
        found.append(files)
    last = found[-1] if found else None
    if last and has_ended and last.end is None and last.heartbeat is None and last.attempt.lease_until:
        found[-1] = _ended(last, min(last.attempt.lease_until, events[-1].at))
        doubts.append(f"attempt {last.attempt.number} left no end: it is billed to the end of its lease, or "
                      "of the run")
    return found, doubts


def _begun(files: AttemptFiles, submitted: datetime | None, doubts: list[str]) -> AttemptFiles:
    """From the submission on, if it is dated before: no machine is paid before there is a run."""
    if submitted is None or (early := submitted - files.attempt.billed_from) <= CLOCK_SKEW:
        return files
    doubts.append(f"attempt {files.attempt.number} begins {early.total_seconds():.0f} s before its run was "
                  "submitted: a clock was wrong; it is billed from the submission on")
    return files.model_copy(update={"attempt": files.attempt.model_copy(update={"billed_from": submitted})})


def _ended(files: AttemptFiles, at: datetime) -> AttemptFiles:
    return files.model_copy(update={"end": AttemptEnd(at=at, exit_code=None, preempted=False, reason="")})
