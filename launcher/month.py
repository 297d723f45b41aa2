"""What all runs of a store may cost in a calendar month (UTC), and whether one more would pass that.

Each run that goes on counts with all that its own cap leaves, and its nodes hold that. So the sum holds with
every laptop off, over a month's end, too: what runs may still spend never passes what one month may cost.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from launcher.bills import is_over_before
from launcher.engines import view
from launcher.errors import LdlmError, Refused
from launcher.history import newest_limits, recorded_recipe
from launcher.plan import Plan
from launcher.proposal import Proposal
from launcher.run_record import RunView, Status, read_record
from launcher.runs import view_all_runs
from launcher.settings import read_settings
from trainer.contract import Document, Outcome
from trainer.run_folder import RunFolder
from trainer.spent import attempt_usd, charged_until
from trainer.store import AlreadyExistsError, Store, may_exist, open_store

_CENT = Decimal("0.01")
# Folder of a store, and of no run: what runs had cost in the month in which they were deleted.
_REMOVED = "_removed"


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
    """Add up a month (pure). Nobody sends a bill for simulated prices, so they do not count; a run whose plan
    is gone counts, for nobody knows.

    Args:
        runs: All that may have cost something in it, each with its cap. One whose state nobody knows may run.
        now: UTC, in that month.
    """
    spent = promised = Decimal(0)
    for run, cap_usd in runs:
        if _is_billed(run):
            spent += run.spent_usd * share_since(run, month_start(now))
            promised += Decimal(0) if run.status is Status.ENDED else max(Decimal(0), cap_usd - run.spent_usd)
    return Month(spent, promised)


def _is_billed(run: RunView) -> bool:
    plan = run.record.plan
    return plan is None or not plan.offers[Document.TRAIN].price_is_simulated  # without a plan nobody knows


def month_start(now: datetime) -> datetime:
    """Midnight of the first, UTC."""
    return now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def share_since(run: RunView, start: datetime) -> Decimal:
    """What part of a run's dollars falls behind a moment, by what its hours cost: disk and network go with
    them."""
    attempts = run.record.attempts
    total = before = Decimal(0)
    for files, until in zip(attempts, charged_until(attempts, run.charged_to), strict=True):
        began = files.attempt.billed_from
        total += attempt_usd(files, (until - began).total_seconds())
        before += attempt_usd(files, max(0.0, (min(until, start) - began).total_seconds()))
    return (total - before) / total if total > 0 else Decimal(1)


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


def month_warning(plan: Plan) -> str | None:
    """What a plan says whose dollars the monthly cap does not count; None: it does, or there is none."""
    cap = read_settings().monthly_cap_usd
    if cap is None or not plan.offers[Document.TRAIN].price_is_simulated:
        return None
    return f"the monthly cap of ${cap} does not count this run: its price is simulated"


def check_month(proposal: Proposal, now: datetime) -> None:
    """Refuse a run that would pass the monthly cap, if its user has set one.

    Raises:
        Refused: It would, by so much.
        StoreError: The other runs cannot be read.
    """
    cap, url, plan = read_settings().monthly_cap_usd, proposal.recipe.store, proposal.plan
    if cap is None or url is None or plan.offers[Document.TRAIN].price_is_simulated:
        return
    month = Month(Decimal(0), Decimal(0))
    if may_exist(url):
        store = open_store(url)
        month = month_of(_runs(store, plan.run_id, now), now)
        month = replace(month, spent_usd=month.spent_usd + _removed_usd(store, now))
    # What a resumed run has cost is behind it; what it may still spend is asked for here.
    if refusal := over_month(month, Decimal(cap), plan.max_cost_usd - plan.spent_usd):
        raise refusal


def hold_month(proposal: Proposal, folder: RunFolder) -> None:
    """Look once more when the record of a start stands: another terminal may have started a run meanwhile.

    Each writes before it looks, so that of two at least one sees the other.

    Raises:
        Refused: Together they would pass the cap; the record is closed.
        StoreError: The other runs cannot be read.
    """
    try:
        check_month(proposal, datetime.now(UTC))
    except Refused as refusal:
        document = Document.BENCH if proposal.plan.only_benchmark else Document.TRAIN
        folder.close(Outcome.LIMIT, datetime.now(UTC), refusal.problem, document)
        raise Refused(f"another run was started meanwhile: {refusal.problem}", place=refusal.place,
                      fix=f"{refusal.fix}; the run is recorded and does not run: ldlm resume {folder.run_id} "
                          f"or ldlm rm {folder.run_id} --all") from refusal


def keep_spent(folder: RunFolder, now: datetime) -> None:
    """Note what a run that will be deleted has cost in this month, as far as its record can be read.

    Raises:
        StoreError: It cannot be written.
    """
    try:
        run = view(read_record(folder), folder.store)
    except LdlmError:
        return
    usd = run.spent_usd * share_since(run, month_start(now)) if _is_billed(run) else Decimal(0)
    if usd > 0:
        first = run.record.events[0].at if run.record.events else now
        key = f"{_month_folder(now)}/{folder.run_id}-{first:%Y%m%dT%H%M%S}.json"
        with suppress(AlreadyExistsError):  # by a deletion that was interrupted
            folder.store.put(key, json.dumps({"usd": f"{usd:.6f}"}).encode(), create=True)


def _removed_usd(store: Store, now: datetime) -> Decimal:
    notes = (json.loads(store.get(found.key)) for found in store.objects(_month_folder(now)))
    return sum((Decimal(note["usd"]) for note in notes), Decimal(0))


def _month_folder(now: datetime) -> str:
    return f"{_REMOVED}/{now.astimezone(UTC):%Y-%m}"


def _runs(store: Store, own: str, now: datetime) -> list[tuple[RunView, Decimal]]:
    """Runs of this month with their caps; the own one, which does not run, with nothing left of its own.

    Raises:
        StoreError: One of them cannot be read: it may have cost anything.
    """
    start = month_start(now)
    views, problems = view_all_runs(store, lambda folder: not is_over_before(folder, start))
    if missing := [*problems, *(problem for run in views for problem in run.record.torn)]:
        raise missing[0]
    return [(run, Decimal(0) if run.record.run_id == own else _cap_usd(store, run)) for run in views]


def _cap_usd(store: Store, run: RunView) -> Decimal:
    recipe = recorded_recipe(RunFolder(store, run.record.run_id))
    return newest_limits(run.record, recipe).max_cost_usd
