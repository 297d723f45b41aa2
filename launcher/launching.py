"""Launch, resume and benchmark, as they are typed: plan, keep it as a quote, ask, carry out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from launcher import commands, console, plan_screen, quotes, runs
from launcher.ask_market import with_market
from launcher.carry_out import ask, carry_out
from launcher.commands import PlanOptions
from launcher.errors import LdlmError, NoOfferError, UsageError
from launcher.git_state import git_sha
from launcher.preempt_at import PreemptAt
from launcher.proposal import Proposal
from launcher.quotes import Command, Order, Quote
from launcher.refusals import check_usable, refusals
from launcher.stale import has_expired, moved


@dataclass(frozen=True)
class Manner:
    """How a plan is to be carried out, whatever it is."""

    yes: bool = False
    detach: bool = False
    allow_dirty: bool = False
    preempt_at: PreemptAt | None = None
    dry_run: bool = False


def start(command: Command, what: str | None, options: PlanOptions, digest: str | None,
          manner: Manner) -> None:
    """Carry out what is typed: a plan of now once it is approved, or the one that a digest approves.

    Args:
        what: Recipe or run; None only beside a digest.

    Raises:
        UsageError: Neither or too much of it was typed.
        NoOfferError: The plan of the digest is stale.
        LdlmError: It is refused, or has not ended as it should.
    """
    order, proposal = _wanted(command, what, options, digest)
    if manner.dry_run:
        plan_screen.show_dry_run(proposal, list(refusals(
            proposal, allow_dirty=manner.allow_dirty, preempt_at=manner.preempt_at)))
        return
    _check(proposal, order, manner)
    if digest is None and not manner.yes:
        proposal = _approved(proposal, order, manner)
    else:
        plan_screen.show_plan(proposal)
    begin: Callable[[Proposal, PreemptAt | None], None] = (
        commands.submit if command == "launch" else commands.resume)
    carry_out(proposal, lambda: begin(proposal, manner.preempt_at), manner.detach)


def _wanted(command: Command, what: str | None, options: PlanOptions,
            digest: str | None) -> tuple[Order, Proposal]:
    if digest is None and what is not None:
        order = Order(command=command, what=what, options=options)
        return order, propose(order)
    if digest is None:
        raise UsageError("what to launch is missing", fix="name a recipe, or a plan: --plan DIGEST")
    if options != PlanOptions():
        raise UsageError("carries out a plan as it is, and what else was typed would change it",
                         place=f"--plan {digest}", fix="leave out --plan, or the other options")
    quote = quotes.find(digest, command, what)
    return quote.order, still_holding(quote, datetime.now(UTC))


def propose(order: Order) -> Proposal:
    """Plan an order as of now, with what Vast has for it."""
    if order.command == "launch":
        return with_market(commands.propose(order.what, order.options))
    store, _ = runs.open_run(order.what, order.options.store)
    plan_it = commands.propose_bench if order.command == "bench" else commands.propose_resume
    return with_market(plan_it(store, order.what, order.options))


def quoted(order: Order, proposal: Proposal) -> Quote:
    """The quote of a proposal, kept for a launch by its digest; that it could not be kept is said."""
    quote = Quote.of(order, proposal, git_sha())
    try:
        quotes.keep(quote, datetime.now(UTC))
    except OSError as error:
        console.talk(f"this plan cannot be kept ({error.strerror}), so --plan will not find it", "note")
    return quote


def still_holding(quote: Quote, now: datetime) -> Proposal:
    """The proposal of a quote, as it was shown: planned anew only to see whether anything has moved.

    Raises:
        NoOfferError: It is stale.
    """
    if expired := has_expired(quote, now):
        raise _stale(quote, expired)
    options = quote.order.options
    if quote.order.command == "launch":
        options = replace(options, run_id=quote.plan.run_id)
    try:
        fresh = propose(quote.order.model_copy(update={"options": options}))
    except LdlmError as error:
        raise _stale(quote, f"it could not be made now, {error.problem}") from error
    proposal = replace(fresh, plan=quote.plan)
    reasons = list(moved(quote, fresh, git_sha(), now))
    if not reasons and proposal.task.digest != quote.task_digest:
        reasons.append("its task would not be the same, for a template in sky/ or ldlm has changed")
    if reasons:
        raise _stale(quote, "; ".join(reasons))
    return proposal


def _stale(quote: Quote, why: str) -> NoOfferError:
    return NoOfferError(f"this plan is stale: {why}", place=f"--plan {quote.short_digest}",
                        fix=f"a new one comes from: {quote.order.to_plan_anew}")


def _check(proposal: Proposal, order: Order, manner: Manner) -> None:
    check_usable(proposal, resuming=order.command != "launch", allow_dirty=manner.allow_dirty,
                 preempt_at=manner.preempt_at)


def _approved(proposal: Proposal, order: Order, manner: Manner) -> Proposal:
    """Show a plan and ask, until one is approved that still holds when the answer comes. Raises Refused."""
    while True:
        quote = quoted(order, proposal)
        plan_screen.show_plan(proposal, quote)
        ask("Start it?", yes=False)
        if not (expired := has_expired(quote, datetime.now(UTC))):
            return proposal
        console.talk(f"the answer came too late for this plan: {expired}. This is the plan of now:\n", "note")
        proposal = propose(order)
        _check(proposal, order, manner)
