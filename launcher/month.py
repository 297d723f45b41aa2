"""What all runs of a store may cost in a calendar month (UTC), and whether one more would pass that."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from launcher.bills import is_over_before
from launcher.errors import Refused
from launcher.history import newest_limits, recorded_recipe
from launcher.proposal import Proposal
from launcher.run_record import RunView, Status
from launcher.runs import view_all_runs
from launcher.settings import read_settings
from trainer.contract import Document
from trainer.run_folder import RunFolder
from trainer.spent import charged_until
from trainer.store import Store, may_exist, open_store

_CENT = Decimal("0.01")


@dataclass(frozen=True)
class Month:
    """One calendar month of a store, until now.

    Attributes:
        spent_usd: Of all runs, what falls into it.
        promised_usd: What those that run may still spend by their own caps.
    """

    spent_usd: Decimal
    promised_usd: Decimal


def month_of(runs: Iterable[tuple[RunView, Decimal]], now: datetime) -> Month:
    """Add up a month (pure). Nobody sends a bill for simulated prices, so they do not count.

    Args:
        runs: All that may have cost something in it, each with its cap. One whose state nobody knows may run.
        now: UTC, in that month.
    """
    spent = promised = Decimal(0)
    for view, cap_usd in runs:
        if view.record.plan is None or view.record.plan.offers[Document.TRAIN].price_is_simulated:
            continue
        spent += view.spent_usd * share_since(view, month_start(now))
        promised += Decimal(0) if view.status is Status.ENDED else max(Decimal(0), cap_usd - view.spent_usd)
    return Month(spent, promised)


def month_start(now: datetime) -> datetime:
    """Midnight of the first, UTC."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def share_since(view: RunView, start: datetime) -> Decimal:
    """What part of a run's dollars falls behind a moment, by its hours: disk and network go with them."""
    attempts = view.record.attempts
    spans = [(files.attempt.billed_from, until) for files, until in
             zip(attempts, charged_until(attempts, view.charged_to), strict=True)]
    total_s = sum((until - began).total_seconds() for began, until in spans)
    since_s = sum(max(0.0, (until - max(began, start)).total_seconds()) for began, until in spans)
    return Decimal(since_s / total_s) if total_s > 0 else Decimal(1)


def over_month(month: Month, cap_usd: Decimal, run_usd: Decimal) -> Refused | None:
    """Why a run may not begin under a monthly cap; None: it may (pure).

    Args:
        run_usd: What it may spend by its own cap.
    """
    over = month.spent_usd + month.promised_usd + run_usd - cap_usd
    if over <= 0:
        return None
    left, enough = run_usd - over, cap_usd + over
    lower = f"add --max-cost {left.quantize(_CENT, ROUND_DOWN):f}, or " if left >= _CENT else ""
    return Refused(
        f"runs of this month have cost ${month.spent_usd:.2f}, those that run may spend "
        f"${month.promised_usd:.2f} more and this one ${run_usd:.2f}: ${over:.2f} over your monthly cap of "
        f"${cap_usd:.2f}", place="monthly_cap",
        fix=f"{lower}ldlm config set monthly_cap {enough.quantize(_CENT, ROUND_UP):f}")


def check_month(proposal: Proposal, now: datetime) -> None:
    """Refuse a run that would pass the monthly cap, if its user has set one.

    Raises:
        Refused: It would, by so much.
        StoreError: The other runs cannot be read.
    """
    cap, url, plan = read_settings().monthly_cap_usd, proposal.recipe.store, proposal.plan
    if cap is None or url is None or plan.offers[Document.TRAIN].price_is_simulated:
        return
    runs = _runs(open_store(url), plan.run_id, now) if may_exist(url) else []
    # What a resumed run has cost is behind it; what it may still spend is asked for here.
    if refusal := over_month(month_of(runs, now), Decimal(cap), plan.max_cost_usd - plan.spent_usd):
        raise refusal


def _runs(store: Store, own: str, now: datetime) -> list[tuple[RunView, Decimal]]:
    """Runs of this month with their caps; the own one, which does not run, with nothing left of its own.

    Raises:
        StoreError: One of them cannot be read: it may have cost anything.
    """
    start = month_start(now)
    views, problems = view_all_runs(store, lambda folder: not is_over_before(folder, start))
    if missing := [*problems, *(problem for view in views for problem in view.record.torn)]:
        raise missing[0]
    return [(view, Decimal(0) if view.record.run_id == own else _cap_usd(store, view)) for view in views]


def _cap_usd(store: Store, view: RunView) -> Decimal:
    recipe = recorded_recipe(RunFolder(store, view.record.run_id))
    return newest_limits(view.record, recipe).max_cost_usd
