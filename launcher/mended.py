"""Attempts whose record lacks a moment, or has one that cannot be, as the bill of their run takes them. Pure.

Who wrote it may be gone, and its clock with it: nothing can be set right there. Each repair is a sentence.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest

from launcher import console
from launcher.rental_cost import rental_of
from launcher.rentals import Rental
from trainer.contract import CLOCK_SKEW
from trainer.run_folder import AttemptEnd, AttemptFiles, Event
from trainer.spent import ended_by, told_by

_FAR = timedelta(hours=1)  # behind all that others know: no last upload takes so long unheard (guess)


def mended(attempts: Sequence[AttemptFiles], events: Sequence[Event], rentals: Sequence[Rental],
           written: Mapping[int, datetime], now: datetime, *,
           has_ended: bool) -> tuple[list[AttemptFiles], list[str]]:
    """The attempts as they are billed, and a sentence for each that was written otherwise.

    Args:
        attempts: Of the run, in order.
        events: Of the run, oldest first.
        rentals: Of the run.
        written: When ends were written that are suspicious, by the store's clock and the attempt's number.
        now: UTC.
        has_ended: Nobody will write the end of an attempt any more.
    """
    submitted = next((event.at for event in events if event.kind == "submitted"), None)
    told = {event.detail.get("attempt"): event.at for event in events if event.kind == "attempt_ended"}
    following = [files.attempt.billed_from for files in attempts[1:]]
    found, doubts = [], list[str]()
    for files, next_from in zip_longest(attempts, following):
        files = _not_seen_ahead(_begun(files, next_from, submitted, doubts), now, doubts)
        files = _not_far_behind(files, list(_bounds(files, events, rentals, written)), doubts)
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


def not_ahead(events: Sequence[Event], now: datetime) -> tuple[list[Event], list[str]]:
    """Events as they count, and a sentence if some are dated behind `now`: what they tell has happened."""
    num_ahead = sum(event.at - now > CLOCK_SKEW for event in events)
    if not num_ahead:
        return list(events), []
    found = [event.model_copy(update={"at": min(event.at, now)}) for event in events]
    return found, [f"{num_ahead} of the run's events {'are' if num_ahead > 1 else 'is'} dated later than "
                   "now: a clock was wrong; they count as of now"]


def is_unheard(files: AttemptFiles) -> bool:
    """True where an attempt's end lies far behind what its own steady clock has told."""
    told = told_by(files.heartbeat) if files.heartbeat else timedelta(0)
    return files.end is not None and files.end.at - files.attempt.billed_from - told > _FAR


def _begun(files: AttemptFiles, next_from: datetime | None, submitted: datetime | None,
           doubts: list[str]) -> AttemptFiles:
    """From the submission on, if it is dated before: no machine is paid before there is a run. One that also
    ended before, or was followed by another, is as long as that says."""
    if submitted is None or (early := submitted - files.attempt.billed_from) <= CLOCK_SKEW:
        return files
    until = files.end.at if files.end else next_from
    is_before = until is not None and until < submitted and not is_unheard(files)
    how = "for as long as it says" if is_before else "from the submission on"
    doubts.append(f"attempt {files.attempt.number} begins {console.duration(early)} before its run was "
                  f"submitted: a clock was wrong; it is billed {how}")
    if is_before:
        return files
    return files.model_copy(update={"attempt": files.attempt.model_copy(update={"billed_from": submitted})})


def _not_seen_ahead(files: AttemptFiles, now: datetime, doubts: list[str]) -> AttemptFiles:
    """Heard of when its steady clock says, if its heartbeat is yet to come."""
    beat = files.heartbeat
    if beat is None or (ahead := beat.at - now) <= CLOCK_SKEW:
        return files
    doubts.append(f"attempt {files.attempt.number} gave a sign of life {console.duration(ahead)} "
                  "from now: a clock was wrong; it counts by what it tells of its age")
    at = min(now, files.attempt.billed_from + told_by(beat))
    return files.model_copy(update={"heartbeat": beat.model_copy(update={"at": at})})


def _bounds(files: AttemptFiles, events: Sequence[Event], rentals: Sequence[Rental],
            written: Mapping[int, datetime]) -> Iterator[tuple[datetime, str]]:
    """When others know that an attempt was over, and how."""
    attempt, rental = files.attempt, rental_of(files, rentals)
    yield from ((event.at, "its run had ended") for event in events
                if event.kind == "ended" and event.at >= attempt.billed_from)
    if rental and rental.ended_at:
        yield rental.ended_at, "its machine was given back"
    if attempt.number in written:
        yield written[attempt.number], "its record was written"


def _not_far_behind(files: AttemptFiles, bounds: Sequence[tuple[datetime, str]],
                    doubts: list[str]) -> AttemptFiles:
    """Ended by the first of some bounds, if its own end lies far behind that."""
    at, what = min(bounds, default=(None, ""))
    if files.end is None or at is None or files.end.at - at <= _FAR:
        return files
    ended_at = ended_by(files, at)
    if files.end.at - ended_at <= _FAR:  # all of it is ahead, and as long as it says
        return files
    doubts.append(f"attempt {files.attempt.number} ends {console.duration(files.end.at - at)} "
                  f"after {what}: a clock was wrong; it is billed for "
                  f"{console.duration(ended_at - files.attempt.billed_from)}")
    return files.model_copy(update={"end": files.end.model_copy(update={"at": ended_at})})


def _ended(files: AttemptFiles, at: datetime) -> AttemptFiles:
    return files.model_copy(update={"end": AttemptEnd(at=at, exit_code=None, preempted=False, reason="")})
