"""What a run has cost at most, as far as its record can tell: its limits are held against this. Pure.

`trainer/spent.py` tells what the record shows. A bill may show more: a machine that vanished was billed
after its last heartbeat; a node may have been alive, and without a store; a machine stands still with its
disk until it is given back; clocks differ. Wherever two readings differ, the dearer one counts here.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import zip_longest

from trainer.guard import SHUTDOWN_S, Standing
from trainer.rental_terms import RentalTerms
from trainer.run_folder import CONTROLLER_PRICE, STARTS, AttemptFiles, Event, Traffic
from trainer.spent import attempt_usd, controller_usd, ended_at, price_now

UNBILLED = ("", "slurm")  # nobody bills machines that SkyPilot has not rented


def standing_of(attempts: Sequence[AttemptFiles], events: Sequence[Event], now: datetime,
                seen: Traffic | None = None, dearest_usd_per_hour: Decimal = Decimal(0)) -> Standing:
    """Where a run stands now.

    Args:
        attempts: Every attempt, in order.
        events: Of the run, oldest first.
        now: UTC, by a clock that is never behind.
        seen: What has gone over the network of the newest attempt's machine until now; None: what it has
            written of that counts.
        dearest_usd_per_hour: Of the places where its task may run: one without a price may have had it.
    """
    following = [files.attempt.billed_from for files in attempts[1:]]
    seconds = [_most_s(files, next_from, now) for files, next_from in zip_longest(attempts, following)]
    dearest = max(dearest_usd_per_hour, *map(price_now, attempts), Decimal(0))
    usd = [attempt_usd(files, billed_s) or _unknown(files, dearest) * Decimal(billed_s) / 3600
           for files, billed_s in zip(attempts, seconds, strict=True)]
    own = attempts[-1] if attempts and attempts[-1].end is None else None
    per_hour = price_now(own) or _unknown(own, dearest) if own else Decimal(0)
    if own and own.attempt.terms:
        per_hour += own.attempt.terms.held_usd_per_hour
    total = _by_machine(attempts, usd, seconds, now, seen) + controller_usd(events, now)
    return Standing(now, total, sum(seconds), per_hour + controller_usd_per_hour(events))


def controller_usd_per_hour(events: Sequence[Event]) -> Decimal:
    """What supervising the run costs since it was last started; zero where who supervises has no price."""
    prices = [event.detail.get(CONTROLLER_PRICE, 0) for event in events if event.kind in STARTS]
    return Decimal(prices[-1]) if prices else Decimal(0)


def _unknown(files: AttemptFiles, dearest: Decimal) -> Decimal:
    """The price of an attempt that names none: on a rented machine the dearest that is known."""
    return Decimal(0) if files.attempt.cloud in UNBILLED else dearest


def _most_s(files: AttemptFiles, next_from: datetime | None, now: datetime) -> float:
    """The longest that an attempt may be billed for."""
    attempt, beat, end = files.attempt, files.heartbeat, files.end
    if end is None and (next_from is None or attempt.cloud in UNBILLED):
        until = next_from or now
    else:
        seen = ended_at(files, now) or (beat.at if beat else attempt.billed_from)
        until = max(seen, min(_given_back(files, seen), next_from or now))
    told_s = beat.phases.total_s if beat else 0.0  # what was written by another clock may say less
    return max((until - attempt.billed_from).total_seconds(), told_s)


def _given_back(files: AttemptFiles, seen: datetime) -> datetime:
    """When a machine was billed no more, at the latest. A rented one that vanished may have lived for as long
    as its lease: a node that cannot reach the store goes on."""
    if files.attempt.cloud in UNBILLED:
        return seen
    is_told = files.end is not None and files.end.exit_code is not None
    lease = (files.heartbeat and files.heartbeat.lease_until) or files.attempt.lease_until
    return max(seen + timedelta(seconds=SHUTDOWN_S), seen if is_told or lease is None else lease)


def _by_machine(attempts: Sequence[AttemptFiles], usd: Sequence[Decimal], seconds: Sequence[float],
                now: datetime, seen: Traffic | None) -> Decimal:
    """Dollars of all machines: by what nodes have written, or by what who rents them says, which is more."""
    total, on = Decimal(0), dict[datetime, list[int]]()
    for index, files in enumerate(attempts):
        if terms := files.attempt.terms:
            on.setdefault(terms.rented_at, []).append(index)
        else:
            total += usd[index]
    if not on:
        return total
    newest = _newest_told(attempts)
    told, older_usd = dict(newest.earlier) if newest else {}, Decimal(0)
    for rented_at, indices in on.items():
        here = [attempts[index] for index in indices]
        terms, is_newest = here[-1].attempt.terms, indices[-1] == len(attempts) - 1
        assert terms is not None, "they are grouped by it"
        until = now if is_newest else here[-1].attempt.billed_from + timedelta(seconds=seconds[indices[-1]])
        by_nodes = sum((usd[index] for index in indices), terms.held_usd(until))
        traffic = _most_traffic(here, [seconds[index] for index in indices], seen if is_newest else None)
        total += terms.network_usd(traffic.received_bytes, traffic.sent_bytes)
        if terms.by_list or rented_at in told or terms is newest:
            total += max(by_nodes, told.pop(rented_at, Decimal(0)))
        else:
            older_usd += by_nodes
    return total + max(older_usd, newest.older_usd if newest else older_usd) + sum(told.values(), Decimal(0))


def _newest_told(attempts: Sequence[AttemptFiles]) -> RentalTerms | None:
    """The newest contract, which tells of those before it; None: all are billed by lists."""
    terms = [files.attempt.terms for files in attempts]
    return next((one for one in reversed(terms) if one and not one.by_list), None)


def _most_traffic(here: Sequence[AttemptFiles], seconds: Sequence[float], seen: Traffic | None) -> Traffic:
    """Of one machine, whose counters only grow while it runs: its last word, or what is seen now.

    A machine that vanished may have gone on as fast as its saves did, from its last word on.
    """
    if seen:
        return seen
    words = [part.traffic for files in here for part in (files.heartbeat, files.end) if part]
    last = max(words, key=lambda word: word.received_bytes + word.sent_bytes, default=Traffic())
    files, beat = here[-1], here[-1].heartbeat
    if not beat or not beat.pace or (files.end and files.end.exit_code is not None):
        return last
    unseen_s = max(0.0, seconds[-1] - (beat.at - files.attempt.billed_from).total_seconds())
    sent = int(unseen_s * beat.pace.num_bytes / max(beat.pace.save_s, 1e-3))
    return last.model_copy(update={"sent_bytes": last.sent_bytes + sent})
