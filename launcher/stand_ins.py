"""Stands in for records of a run that are torn or gone, as far as its other records tell. Pure.

What is not known errs on the dear side: a bill that is too high is found by who compares it.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from trainer.contract import Document, Outcome
from trainer.rental_terms import MOST_USD
from trainer.run_folder import STARTS, Attempt, AttemptEnd, AttemptFiles, Event, Heartbeat, RunOutcome
from trainer.spent import told_by


class Remains(NamedTuple):
    """What is left of an attempt whose own record is torn or gone."""

    number: int
    heartbeat: Heartbeat | None
    end: AttemptEnd | None


def with_stand_ins(attempts: Sequence[AttemptFiles], remains: Iterable[Remains], events: Sequence[Event],
                   prices: Iterable[Decimal]) -> list[AttemptFiles]:
    """All attempts of a run in order, those that remain at the dearest price that is known.

    Args:
        attempts: Those that can be read.
        remains: Of the others; one of which nothing says when it began stays out.
        events: Of the run, oldest first.
        prices: Of an hour, that the run may have paid beside those of its attempts.
    """
    dearest = max((*prices, *(files.attempt.price_usd_per_hour for files in attempts)), default=None)
    found = list(attempts)
    for one in remains:
        before = [files for files in found if files.attempt.number < one.number]
        if (begin := _begin(one, before, events)) is None:
            continue
        price = _told_usd_per_hour(one.heartbeat) if dearest is None else dearest
        attempt = Attempt(number=one.number, document=_document(one, before), billed_from=begin,
                          price_usd_per_hour=price, offer="", host="")
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
