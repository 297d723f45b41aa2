"""What attempts cost by the contracts of the machines that they ran on, as their provider bills (pure)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from launcher.cost import price_for
from launcher.rentals import HOURS_OF_MONTH, RENTED_AT, Price, Rental
from launcher.vast_credit import Credit
from trainer.contract import CLOCK_SKEW
from trainer.rental_terms import RentalTerms
from trainer.run_folder import AttemptFiles, Event, Traffic
from trainer.spent import attempt_usd, controller_usd, later_prices

_MOST_TOLD = 30  # of a run's earlier machines: Vast takes some 4,000 characters of first commands (guess)


@dataclass(frozen=True)
class OnRental:
    """One attempt, as the contract of its machine has it.

    Attributes:
        until: When its machine was no longer billed for it: to shut down and give back takes a while, too.
        gpu_usd: From its start until then, at the prices of its contract and those that its nodes have heard;
            None: it had one price, and no contract.
        disk_usd, network_usd: Of its machine; of several attempts on one, the last has them. Its address is
            part of its network.
    """

    until: datetime
    gpu_usd: Decimal | None = None
    disk_usd: Decimal = Decimal(0)
    network_usd: Decimal = Decimal(0)


def on_rentals(attempts: Sequence[AttemptFiles], untils: Sequence[datetime], rentals: Sequence[Rental],
               now: datetime) -> list[OnRental]:
    """Each attempt by the contract of its machine.

    Args:
        untils: Until when each attempt was at work.
        rentals: In the order in which they were rented.
    """
    owners = [rental_of(files, rentals) for files in attempts]
    found = []
    for index, (files, until, rental) in enumerate(zip(attempts, untils, owners, strict=True)):
        if rental is None:
            found.append(_as_told(attempts, files, until))
            continue
        is_last = owners[index + 1:index + 2] != [rental]
        # One that came back may have run all the time.
        given_back = rental.ended_at or (now if rental.lives_on else None)
        if is_last and given_back and (rental.returned_at or _ended_by_itself(files)):
            until = max(until, given_back)
        on = [files for files, owner in zip(attempts, owners, strict=True) if owner is rental]
        gpu_usd = _as_heard(rental, on).gpu_usd(files.attempt.billed_from, until)
        if is_last:
            seen = _traffic(on)
            found.append(OnRental(until, gpu_usd, rental.disk_usd(now), rental.network_usd(
                seen.received_bytes, seen.sent_bytes)))
        else:
            found.append(OnRental(until, gpu_usd))
    return found


def _as_heard(rental: Rental, on: Iterable[AttemptFiles]) -> Rental:
    """With the prices that the nodes of attempts on it have heard, too: one counts from when either side
    first knew it. Who noted the contract may have missed a raise, or a node may hear of it later."""
    begin = rental.prices[0].at  # nothing is heard before
    heard = (Price(at=max(price.at, begin), usd_per_hour=price.usd_per_hour)
             for files in on for price in later_prices(files))
    return rental.model_copy(update={"prices": (*rental.prices, *heard)})


def _as_told(attempts: Sequence[AttemptFiles], files: AttemptFiles, until: datetime) -> OnRental:
    """An attempt whose machine nobody has noted down: by what the machine was told, of later prices too."""
    is_repriced = files.heartbeat is not None and bool(files.heartbeat.prices)
    billed_s = (until - files.attempt.billed_from).total_seconds()
    gpu_usd = attempt_usd(files, billed_s) if is_repriced else None
    if (terms := files.attempt.terms) is None:
        return OnRental(until, gpu_usd)
    on = [other for other in attempts
          if other.attempt.terms and other.attempt.terms.rented_at == terms.rented_at]
    if on[-1] is not files:
        return OnRental(until, gpu_usd)
    seen = _traffic(on)
    network_usd = terms.network_usd(seen.received_bytes, seen.sent_bytes) + terms.address_usd(until)
    return OnRental(until, gpu_usd, terms.disk_usd(until), network_usd)


def total_usd(attempts: Sequence[AttemptFiles], untils: Sequence[datetime], rentals: Sequence[Rental],
              now: datetime, events: Sequence[Event] = ()) -> Decimal:
    """Dollars of a run: contracts where they are known, else time at the price of each attempt; unrounded.

    Args:
        events: Of the run: they tell what its supervision costs.
    """
    unused = sum((alone_usd(rental, now) for rental in unused_rentals(attempts, rentals)), Decimal(0))
    total = unused + controller_usd(events, now)
    for files, held in zip(attempts, on_rentals(attempts, untils, rentals, now), strict=True):
        by_the_second = price_for(held.until - files.attempt.billed_from, files.attempt.price_usd_per_hour)
        total += (by_the_second if held.gpu_usd is None else held.gpu_usd) + held.disk_usd + held.network_usd
    return total


class Parts(NamedTuple):
    """Dollars of one machine by what its provider bills them for."""

    gpu_usd: Decimal = Decimal(0)
    disk_usd: Decimal = Decimal(0)
    network_usd: Decimal = Decimal(0)

    @property
    def usd(self) -> Decimal:
        """All of it."""
        return self.gpu_usd + self.disk_usd + self.network_usd

    def __add__(self, other: "Parts") -> "Parts":  # type: ignore[override]
        """Sum, part by part."""
        return Parts(*(one + two for one, two in zip(self, other, strict=True)))


def parts_by_instance(attempts: Sequence[AttemptFiles], untils: Sequence[datetime],
                      rentals: Sequence[Rental], now: datetime) -> dict[str, Parts]:
    """Dollars of each machine that was rented, by its provider's id of the contract: they add up to
    `total_usd` where every attempt was on one of them; unrounded."""
    owners = [rental_of(files, rentals) for files in attempts]
    found = {rental.instance_id: Parts() if rental in owners
             else Parts(rental.alone_gpu_usd(now), rental.disk_usd(now)) for rental in rentals}
    for owner, held in zip(owners, on_rentals(attempts, untils, rentals, now), strict=True):
        if owner:
            found[owner.instance_id] += Parts(held.gpu_usd or Decimal(0), held.disk_usd, held.network_usd)
    return found


def usd_by_instance(attempts: Sequence[AttemptFiles], untils: Sequence[datetime], rentals: Sequence[Rental],
                    now: datetime) -> dict[str, Decimal]:
    """The sums of `parts_by_instance`."""
    return {name: parts.usd for name, parts in parts_by_instance(attempts, untils, rentals, now).items()}


def unused_rentals(attempts: Sequence[AttemptFiles], rentals: Sequence[Rental]) -> list[Rental]:
    """Machines on which no attempt has begun: they did not start, or were taken before."""
    used = [rental_of(files, rentals) for files in attempts]
    newest = rentals[-1] if rentals else None  # while it is there, its attempt may still come
    return [rental for rental in rentals if rental not in used and (rental is not newest or rental.ended_at)]


def alone_usd(rental: Rental, now: datetime) -> Decimal:
    """Dollars of a machine on which no attempt has begun: of its disk, and of its GPUs while it ran."""
    return rental.disk_usd(now) + rental.alone_gpu_usd(now)


def node_terms(rental: Rental, known: Iterable[Rental], credit: Credit | None = None) -> RentalTerms:
    """What a machine that is being rented is to be told: the cap of its run is about this as well.

    Args:
        known: All that were rented before, in order; those of its run count.
        credit: Of the account before it; None: not known.
    """
    terms, now = rental.terms, rental.rented_at
    before = [one for one in known if rental.run_id and one.run_id == rental.run_id]
    return RentalTerms(
        rented_at=now, gpu_usd_per_hour=_short(rental.prices[-1].usd_per_hour).normalize(),
        disk_usd_per_hour=_short(terms.disk_gb * terms.disk_usd_per_gb_month / HOURS_OF_MONTH),
        received_usd_per_gb=terms.received_usd_per_gb, sent_usd_per_gb=terms.sent_usd_per_gb,
        earlier=tuple((one.told_at or one.rented_at, _short(alone_usd(one, now)))
                      for one in before[-_MOST_TOLD:]),
        older_usd=sum((_short(alone_usd(one, now)) for one in before[:-_MOST_TOLD]), Decimal(0)),
        credit_usd=credit.usd if credit else None,
        others_usd_per_hour=_short(credit.others_usd_per_hour) if credit else Decimal(0))


def _short(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.000001"))


def rental_of(files: AttemptFiles, rentals: Sequence[Rental]) -> Rental | None:
    """The machine that says of itself, on the attempt's side, when it was rented; else, since a run has one
    at a time, the last that was rented when the attempt began.

    None at home, and on other clouds, whose machines nobody has noted down.
    """
    if files.attempt.cloud not in ("", RENTED_AT):
        return None
    began, terms = files.attempt.billed_from, files.attempt.terms
    told = [rental for rental in rentals
            if terms and (rental.told_at or rental.rented_at) == terms.rented_at]
    held = [rental for rental in rentals if rental.held(began)]
    # The next one may have been rented within that minute: an attempt can be short.
    near = [rental for rental in rentals if rental.rented_at <= began + CLOCK_SKEW
            and (rental.ended_at is None or began - CLOCK_SKEW < rental.ended_at)]
    return next(reversed(told or held or near), None)


def _ended_by_itself(files: AttemptFiles) -> bool:
    return files.end is not None and not files.end.preempted and files.end.exit_code is not None


def _traffic(attempts: Sequence[AttemptFiles]) -> Traffic:
    """The counters only grow while a machine runs, so the last word counts."""
    def words() -> Iterator[Traffic]:
        for files in attempts:
            yield from (part.traffic for part in (files.heartbeat, files.end) if part)
    return Traffic(received_bytes=max((word.received_bytes for word in words()), default=0),
                   sent_bytes=max((word.sent_bytes for word in words()), default=0))
