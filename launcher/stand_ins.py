"""Stands in for records of a run that are torn or gone, as far as its other records tell. Pure.

What is not known errs on the dear side: a bill that is too high is found by who compares it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from launcher.rentals import Rental
from trainer.contract import CLOCK_SKEW, Document, Outcome
from trainer.rental_terms import MOST_USD
from trainer.run_folder import STARTS, Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, RunOutcome
from trainer.spent import told_by


class Remains(NamedTuple):
    """What is left of an attempt whose own record is torn or gone."""

    number: int
    heartbeat: Heartbeat | None
    end: AttemptEnd | None


def with_stand_ins(attempts: Sequence[AttemptFiles], remains: Iterable[Remains], events: Sequence[Event],
                   prices: Iterable[Decimal], rentals: Sequence[Rental] = ()) -> list[AttemptFiles]:
    """All attempts of a run in order, those that remain at the dearest price that is known, on a machine as
    an attempt beside them had it.

    Args:
        attempts: Those that can be read.
        remains: Of the others; one of which nothing says when it began stays out.
        events: Of the run, oldest first.
        prices: Of an hour, that the run may have paid beside those of its attempts and rentals.
        rentals: Of the run.
    """
    rented = (price.usd_per_hour for rental in rentals for price in rental.prices)
    dearest = max((*prices, *rented, *(files.attempt.price_usd_per_hour for files in attempts)), default=None)
    found = list(attempts)
    for one in remains:
        before = [files for files in found if files.attempt.number < one.number]
        if (begin := _begin(one, before, events)) is None:
            continue
        price = _told_usd_per_hour(one.heartbeat) if dearest is None else dearest
        attempt = Attempt(number=one.number, document=_document(one, before), billed_from=begin,
                          price_usd_per_hour=price, offer="", host="")
        if not any(rental.held(begin) for rental in rentals):  # a contract tells of disk and network
            attempt = _by_list(attempt, before[-1:], found[len(before):len(before) + 1])
        found.append(AttemptFiles(attempt=attempt, heartbeat=one.heartbeat, end=one.end))
        found.sort(key=lambda files: files.attempt.number)
    return found


def _begin(one: Remains, before: Sequence[AttemptFiles], events: Sequence[Event]) -> datetime | None:
    """By its heartbeats; else, when the one before it was heard of last, or the run was started."""
    if one.heartbeat:
        return one.heartbeat.at - told_by(one.heartbeat)
    if before:
        last = before[-1]
        words = [word.at for word in (last.end, last.heartbeat) if word]
        return words[0] if words else last.attempt.billed_from
    return next((event.at for event in events if event.kind in STARTS), one.end.at if one.end else None)


def _by_list(attempt: Attempt, before: Sequence[AttemptFiles], after: Sequence[AttemptFiles]) -> Attempt:
    """With the list prices of an attempt beside it: on its machine, if that was there already and the next
    attempt ran on it, too; else on one that is billed since it began."""
    for beside in (files.attempt for files in (*after, *before)):
        if (terms := beside.terms) is None or not terms.by_list:
            continue
        if beside.number < attempt.number or terms.rented_at - attempt.billed_from > CLOCK_SKEW:
            terms = terms.model_copy(update={"rented_at": attempt.billed_from})
        return attempt.model_copy(update={"cloud": beside.cloud, "terms": terms})
    return attempt


def _document(one: Remains, before: Sequence[AttemptFiles]) -> Document:
    benched = one.heartbeat is not None and one.heartbeat.phases.bench_s > 0
    follows = any(files.attempt.document is Document.BENCH for files in before)
    return Document.BENCH if benched or follows else Document.TRAIN


def _told_usd_per_hour(beat: Heartbeat | None) -> Decimal:
    """What the whole run had cost by the hours of this attempt; zero where nothing tells."""
    hours = Decimal(told_by(beat).total_seconds()) / 3600 if beat else Decimal(0)
    usd = beat.spent_usd / hours if beat and hours else Decimal(0)
    return min(usd, Decimal(MOST_USD)).quantize(Decimal("0.0001"))


def outcome_told(events: Sequence[Event], attempts: Sequence[AttemptFiles]) -> RunOutcome | None:
    """How a run ended, by the event of its end; None where that is not the last, or does not say."""
    if not events or events[-1].kind != "ended":
        return None
    last = events[-1]
    said = last.detail.get("outcome")
    if said not in list(Outcome):
        return None
    durable = (files.heartbeat.durable_step for files in attempts if files.heartbeat)
    return RunOutcome(outcome=Outcome(said), at=last.at, step=max(durable, default=0),
                      reason=str(last.detail.get("reason", "")))
