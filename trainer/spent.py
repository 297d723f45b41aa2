"""What a run has cost so far, by its record. No torch."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from trainer.contract import CLOCK_SKEW
from trainer.rental_terms import PriceFrom, RentalTerms
from trainer.run_folder import CONTROLLER_PRICE, STARTS, AttemptFiles, Event, Heartbeat, Traffic

_LONGEST_S = 366 * 86400.0  # that a heartbeat is believed


def charged_until(attempts: Sequence[AttemptFiles], now: datetime) -> list[datetime]:
    """Until when each attempt is charged: its end; else, its successor's start; else `now`. Never before it
    begins, and never long behind `now`, whatever a clock was set to.

    A machine that vanished leaves no end. Attempts of a run follow each other, so the start of the
    next one bounds it from above: a cap must not be passed because a record is missing.
    """
    starts = [files.attempt.billed_from for files in attempts[1:]]
    return [_not_before_it_begins(files, ended_at(files, now) or following)
            for files, following in zip(attempts, [*starts, now], strict=False)]


def ended_at(files: AttemptFiles, now: datetime) -> datetime | None:
    """When an attempt ended; None: it has not. An end that is yet to come was written by a wrong clock."""
    if files.end is None:
        return None
    return ended_by(files, now) if files.end.at - now > CLOCK_SKEW else files.end.at


def ended_by(files: AttemptFiles, latest: datetime) -> datetime:
    """The end of an attempt that was over by some moment, whatever its record says.

    Where it began behind that moment, its clock was wrong from the beginning: then it is as long as its own
    steady clock tells, or without a heartbeat as its record says.
    """
    begin, end = files.attempt.billed_from, files.end.at if files.end else latest
    if files.heartbeat is None:
        return end if begin > latest else min(end, latest)
    return min(end, max(latest, begin + told_by(files.heartbeat)))


def _not_before_it_begins(files: AttemptFiles, until: datetime) -> datetime:
    """The same, or where two clocks disagree, as long as its heartbeat tells: that is by one clock."""
    begin, beat = files.attempt.billed_from, files.heartbeat
    if until >= begin or beat is None:
        return max(begin, until)
    return max(begin + told_by(beat), beat.at)


def told_by(beat: Heartbeat) -> timedelta:
    """How old its attempt was by one clock that never goes back."""
    return timedelta(seconds=min(max(0.0, beat.phases.total_s), _LONGEST_S))


def spent_usd(attempts: Sequence[AttemptFiles], now: datetime, seen: Traffic | None = None) -> Decimal:
    """Add up what the machines of a run have cost so far, as far as its record tells.

    Args:
        attempts: Every attempt of one run, in order.
        now: Current time, UTC.
        seen: What has gone over the network of the newest attempt's machine until now; None: what it has
            written of that counts.

    Returns:
        US dollars, unrounded. Round only when printing.
    """
    return hours_usd(attempts, now) + beside_hours_usd(attempts, now, seen)


def hours_usd(attempts: Sequence[AttemptFiles], now: datetime) -> Decimal:
    """Dollars of the hours of attempts, each at the price of its own offer.

    Set-up counts: the cloud bills it, although an engine's own job duration may leave it out.

    Args:
        attempts: Every attempt of one run, in order.
        now: Current time, UTC.

    Returns:
        US dollars, unrounded. Round only when printing.
    """
    return sum((attempt_usd(files, (until - files.attempt.billed_from).total_seconds())
                for files, until in zip(attempts, charged_until(attempts, now), strict=True)), Decimal(0))


def attempt_usd(files: AttemptFiles, seconds: float) -> Decimal:
    """Dollars of an attempt's first seconds from `billed_from` on, each at the price of its time."""
    usd, price, left_s = Decimal(0), files.attempt.price_usd_per_hour, seconds
    for later in later_prices(files):
        since_s = min(seconds, max(0.0, (later.at - files.attempt.billed_from).total_seconds()))
        passed_s = max(0.0, since_s - (seconds - left_s))
        usd += price * Decimal(passed_s) / 3600
        price, left_s = later.usd_per_hour, left_s - passed_s
    return usd + price * Decimal(left_s) / 3600


def price_now(files: AttemptFiles) -> Decimal:
    """The newest price of an hour of an attempt's machines."""
    later = later_prices(files)
    return later[-1].usd_per_hour if later else files.attempt.price_usd_per_hour


def later_prices(files: AttemptFiles) -> tuple[PriceFrom, ...]:
    """What its machine has heard of changes since the attempt began, oldest first."""
    return files.prices or (files.heartbeat.prices if files.heartbeat else ())


def beside_hours_usd(attempts: Sequence[AttemptFiles], now: datetime, seen: Traffic | None = None) -> Decimal:
    """Dollars that contracts bill beside these hours: disks, networks, machines on which none has begun.

    Args: as of `spent_usd`. Of attempts whose machines' terms are not known, nothing is.
    """
    machines: dict[datetime, _Machine] = {}
    for files, until in zip(attempts, charged_until(attempts, now), strict=True):
        if terms := files.attempt.terms:
            # Counters only grow while a machine runs: of several attempts on one, the last word counts.
            words = [machines[terms.rented_at].traffic] if terms.rented_at in machines else []
            words += [part.traffic for part in (files.heartbeat, files.end) if part]
            machines[terms.rented_at] = _Machine(terms, until, max(words, key=_all_bytes, default=Traffic()))
    if not machines:
        return Decimal(0)
    newest = list(machines.values())[-1]
    if seen and attempts[-1].attempt.terms:
        machines[newest.terms.rented_at] = newest._replace(traffic=seen)
    told = [machine.terms for machine in machines.values() if not machine.terms.by_list][-1:]
    unused = [usd for terms in told for rented_at, usd in terms.earlier if rented_at not in machines]
    return sum((machine.usd for machine in machines.values()), Decimal(0)) + sum(unused, Decimal(0))


class _Machine(NamedTuple):
    """One that attempts ran on, until the last of them is charged."""

    terms: RentalTerms
    until: datetime
    traffic: Traffic

    @property
    def usd(self) -> Decimal:
        """Dollars of its disk, its address and its network."""
        network = self.terms.network_usd(self.traffic.received_bytes, self.traffic.sent_bytes)
        return self.terms.held_usd(self.until) + network


def _all_bytes(traffic: Traffic) -> int:
    return traffic.received_bytes + traffic.sent_bytes


def controller_usd(events: Sequence[Event], now: datetime) -> Decimal:
    """What supervising a run has cost: its hours from each start to its end, at the price told at the start.

    A controller that has several runs at once costs each of them its full price; hours in which it has none
    are no run's.

    Args:
        events: Of the run, oldest first.
        now: Until when a run without an end is charged.

    Returns:
        US dollars, unrounded; zero where who supervises has no price.
    """
    bounds = [event for event in events if event.kind in (*STARTS, "ended")]
    total = Decimal(0)
    for event, until in zip(bounds, [*(later.at for later in bounds[1:]), now], strict=False):
        hours = Decimal(max(0.0, (until - event.at).total_seconds())) / 3600
        total += hours * Decimal(event.detail.get(CONTROLLER_PRICE, 0))  # an end has none
    return total
