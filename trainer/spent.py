"""What a run has cost so far, by its record. No torch."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from trainer.contract import LdlmError
from trainer.run_folder import CONTROLLER_PRICE, STARTS, AttemptFiles, Event


def charged_until(attempts: Sequence[AttemptFiles], now: datetime) -> list[datetime]:
    """Until when each attempt is charged: its end; else, its successor's start; else `now`.

    A machine that vanished leaves no end. Attempts of a run follow each other, so the start of the
    next one bounds it from above: a cap must not be passed because a record is missing.
    """
    starts = [files.attempt.billed_from for files in attempts[1:]]
    return [files.end.at if files.end else following
            for files, following in zip(attempts, [*starts, now], strict=False)]


def spent_usd(attempts: Sequence[AttemptFiles], now: datetime) -> Decimal:
    """Add up what a run has cost so far, each attempt at the price of its own offer.

    Set-up counts: the cloud bills it, although an engine's own job duration may leave it out.

    Args:
        attempts: Every attempt of one run, in order.
        now: Current time, UTC.

    Returns:
        US dollars, unrounded. Round only when printing.

    Raises:
        LdlmError: An attempt ends before it begins (a clock is wrong).
    """
    total = Decimal(0)
    for files, until in zip(attempts, charged_until(attempts, now), strict=True):
        seconds = (until - files.attempt.billed_from).total_seconds()
        if seconds < 0:
            raise LdlmError(f"attempt {files.attempt.number} ends {-seconds:.0f} s before it begins",
                            fix="set the clock of the machine that wrote it (chronyc, ntpdate)")
        total += files.attempt.price_usd_per_hour * Decimal(seconds) / 3600
    return total


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
