"""The user's credits as they are now, after what earlier runs of a store have spent of them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal

from launcher.attempt_cost import Category
from launcher.credits import Charge, Payment, balances, expected, out_of_pocket
from launcher.errors import LdlmError
from launcher.plan import Plan
from launcher.rentals import RENTED_AT
from launcher.report import cost_report
from launcher.run_record import RunView
from launcher.runs import view_all_runs
from launcher.settings import own_wallets
from launcher.wallets import Wallet
from trainer.store import may_exist, open_store


def payment_of(plan: Plan, wallets: Sequence[Wallet]) -> Payment | None:
    """Who pays for a plan; None where there are no credits, or a price is not known (pure)."""
    if plan.usd is None or not wallets:
        return None
    controller = plan.controller_usd.mid if plan.controller_usd else Decimal(0)
    charges = expected(plan.parts, plan.offers, plan.usd.mid, controller, plan.planned_at)
    return out_of_pocket(charges, wallets)


def wallets_now(url: str | None, now: datetime) -> tuple[list[Wallet], list[str]]:
    """The wallets that have not expired, with what is left in them.

    Args:
        url: Of the store whose runs have spent of them; None: of none.

    Returns:
        Also what keeps that from being known, a sentence each.
    """
    wallets = [wallet for wallet in own_wallets() if wallet.expires > now]
    if not wallets or url is None:
        return wallets, []
    try:
        views, problems = view_all_runs(open_store(url)) if may_exist(url) else ([], [])
    except LdlmError as error:
        return wallets, [f"what runs have spent of your credits is not known: {error.problem}"]
    torn = [error for view in views for error in view.record.torn]  # of which cloud they were is lost
    told = [f"what run records that cannot be read have spent of your credits is not known: {error.place}"
            for error in (*problems, *torn)]
    return balances(wallets, [charge for view in views for charge in spent_by(view)]), told


def spent_by(view: RunView) -> Iterator[Charge]:
    """What a run has been charged for so far, by who charges it; nothing where no bill is sent (pure)."""
    report = cost_report(view)
    if report.price_is_simulated:
        return
    for attempt in report.attempts:
        yield Charge(attempt.cloud, attempt.usd, attempt.began_at, attempt.ended_at or view.charged_to)
    # Machines on which no attempt began: only those of Vast are noted down.
    unused = sum((usd for name, usd in report.beside.items() if name is not Category.CONTROLLER), Decimal(0))
    began = view.record.rentals[0].rented_at if view.record.rentals else view.charged_to
    if unused > 0:
        yield Charge(RENTED_AT, unused, began, view.charged_to)
