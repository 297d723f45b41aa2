"""By what, and since when, this machine is billed for its run. No torch."""

import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from pydantic import ValidationError

from trainer.at_most import UNBILLED, standing_of
from trainer.contract import CLOCK_SKEW, ConfigError, Document, Env, TaskOffer
from trainer.guard import headroom
from trainer.limits import Limits
from trainer.machine import booted_at, cluster_info, traffic
from trainer.rental_terms import MOST_USD, ListPrices, RentalTerms, terms_here
from trainer.run_folder import Attempt, AttemptFiles, RunFolder

_RENDERED = "start it through `ldlm launch`, which renders the task that tells it"


def terms_of_run(folder: RunFolder, environ: Mapping[str, str] = os.environ) -> RentalTerms | None:
    """By which this machine is billed beside its hours, as far as that is known.

    Raises:
        ConfigError: The task's list prices cannot be read.
    """
    terms = terms_here(Path.home())
    if terms is None:
        return _by_list(folder, environ)
    events = folder.events()
    return terms.since(events[0].at - CLOCK_SKEW) if events else terms


def _by_list(folder: RunFolder, environ: Mapping[str, str]) -> RentalTerms | None:
    """By the list prices that the task tells, since this machine was booted."""
    text, booted = environ.get(Env.LIST_PRICES), booted_at(environ)
    if not text or booted is None:
        return None
    try:
        prices = ListPrices.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"list prices cannot be read: {error.errors()[0]['msg']}", place=Env.LIST_PRICES,
                          fix=_RENDERED) from error
    # A boot is computed from now, and comes out a little differently each time.
    here = [files.attempt.terms.rented_at for files in folder.attempts()
            if files.attempt.terms and files.attempt.host == socket.gethostname()]
    return prices.since(next((at for at in reversed(here) if abs(at - booted) < CLOCK_SKEW), booted))


def billed_from(folder: RunFolder, started_at: datetime) -> datetime:
    """When the bill of an attempt that begins now begins, see `Attempt`."""
    booted = booted_at(os.environ)
    # One that is yet to come was written by a wrong clock, and tells nothing of when this machine was free.
    ends = [files.end.at for files in folder.attempts() if files.end and files.end.at <= started_at]
    return min(started_at, max([booted, *ends])) if booted else started_at


def own_price(environ: Mapping[str, str] = os.environ) -> Decimal:
    """Dollars an hour of this machine: as it was rented, where it was told, else as the task says. One whose
    price is missing is taken for the dearest that it may be; nobody rents out a machine for nothing.

    Raises:
        ConfigError: It has none, or one that is no amount, and the run has a cap.
    """
    is_rented = cluster_info(environ).get("cloud", "") not in UNBILLED
    try:
        told = next((price for price in _prices_told(environ) if price or not is_rented), None)
    except (ValueError, InvalidOperation):
        told = Decimal("NaN")
    price = told or Decimal(0)
    is_price = price.is_finite() and 0 <= price <= MOST_USD
    if not is_price or (told is None and is_rented and environ.get(Env.MAX_COST)):
        raise ConfigError(f"the price of this machine is {environ.get(Env.PRICE) or 'missing'}, so the run "
                          "could not stop at its cap", place=Env.PRICE,
                          fix=_RENDERED)
    return price


def _prices_told(environ: Mapping[str, str]) -> Iterator[Decimal]:
    """The price of this machine, by who knows it best first. Raises ValueError, InvalidOperation."""
    terms = terms_here(Path.home())
    if terms and terms.gpu_usd_per_hour is not None:
        yield terms.gpu_usd_per_hour
    if told := environ.get(Env.PRICE):
        yield Decimal(told)
    yield TaskOffer.dearest(environ)


def set_up_left_s(folder: RunFolder, now: datetime, environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds until a limit of the run is reached on this machine, which has no attempt yet; None: none is.

    Args:
        environ: Of this node, its own offer included.

    Raises:
        StoreError: The record of the run cannot be read.
    """
    attempts = folder.attempts()
    own = Attempt(number=len(attempts) + 1, document=Document.TRAIN, billed_from=billed_from(folder, now),
                  price_usd_per_hour=own_price(environ), offer="", host="",
                  cloud=cluster_info(environ).get("cloud", ""), terms=terms_of_run(folder, environ))
    standing = standing_of([*attempts, AttemptFiles(attempt=own)], folder.events(), now, traffic(),
                           TaskOffer.dearest(environ))
    found = headroom(Limits.of(environ), Document.TRAIN, standing)
    return found.left_s if found else None
