"""What a plan looks like: hardware, model, time, dollars as ranges, and why it could not be launched."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from launcher import console
from launcher.cost import Range
from launcher.errors import LdlmError
from launcher.model_screen import model_facts, show_memory
from launcher.offers import Offer
from launcher.plan import Plan
from launcher.proposal import Proposal
from launcher.quotes import Quote
from launcher.ranking_screen import show_ranking
from trainer.contract import Document

_PURPOSES = {Document.TRAIN: "to train", Document.BENCH: "to benchmark"}
_WORTH_A_WORD = 0.05  # of losses: fewer are one in twenty runs


def show_plan(proposal: Proposal, quote: Quote | None = None) -> None:
    """Hardware, model, memory, time, dollars as ranges, limits and warnings.

    Args:
        quote: As it is kept; None: it is not.
    """
    plan = proposal.plan
    console.answer(f"Plan for {plan.recipe}", "title")
    console.answer_text(proposal.recipe.summary)
    console.answer()
    store = proposal.recipe.store or "not set: a launch needs --store"
    holds = [("holds", quote.words)] if quote else []
    console.answer_facts([*_plan_facts(plan, store), *_course_facts(proposal), *holds, *_bid_facts(plan),
                          *_market_facts(proposal), *model_facts(plan)])
    console.answer()
    if plan.sizes and plan.sizes.memory:
        show_memory(plan.sizes.memory)
        console.answer()
    show_ranking(plan.ranking)
    _show_estimate(plan)
    if plan.warnings:
        console.answer()
        console.answer_notes(plan.warnings)
    console.answer()


def show_dry_run(proposal: Proposal, reasons: Sequence[LdlmError]) -> None:
    """The task on stdout, as it is; before and after it, on stderr, the plan and what has not happened.

    Args:
        reasons: Why a launch would be refused now.
    """
    with console.aside():
        show_plan(proposal)
    print(proposal.task.text, end="", flush=True)
    with console.aside():
        if reasons:
            console.answer("a launch would be refused now:")
            console.answer_reasons(reasons)
        console.answer("dry run: nothing was rented, started or written", "title")


def show_next(reasons: Sequence[LdlmError], lead: str, command: str) -> None:
    """The last lines of a plan; a command is never folded, so that it can be copied.

    Args:
        reasons: Why a launch would be refused now.
    """
    if reasons:
        console.answer("nothing was started, and a launch would be refused now:")
        console.answer_reasons(reasons)
    console.answer_text(lead)
    console.answer(f"  {command}")


def _show_estimate(plan: Plan) -> None:
    in_hours, digits = plan.hours.high > 3, 2 if plan.usd and plan.usd.high >= 10 else 4
    rows = [_estimate_row(part.name, part.hours, part.usd, in_hours, digits) for part in plan.parts]
    if plan.controller_usd:
        rows.append(["controller", "", "", *_usd_cells(plan.controller_usd, digits)])
    total = "total" if not plan.done_steps and not plan.spent_usd else "left to do"
    last = _estimate_row(f"{total} (median)", plan.hours, plan.usd, in_hours, digits)
    if plan.without_encoder:
        for row in rows:
            row[0] += " (no encoder)" if row[0].startswith("training") else ""
        last = _at_least(total, last)
    console.answer_table(
        ["estimate", "hours" if in_hours else "minutes", "p10 - p90", "dollars", "p10 - p90"], rows,
        right=[1, 2, 3, 4], total=last, spare=[4, 2])


def _at_least(name: str, total: list[str]) -> list[str]:
    """A total that leaves something out: bounds from below, no range."""
    _, time, _, usd, _ = total
    return [f"{name}, at least", time.replace("~", "> "), "", usd.replace("~", "> "), ""]


def _plan_facts(plan: Plan, store: str) -> list[tuple[str, str]]:
    tokens = f"{plan.tokens / 1e6:.2f} M" if plan.tokens < 1e8 else f"{plan.tokens / 1e9:.2f} B"
    reserve = console.dollars(plan.bench_reserve_usd)
    stops = f"${plan.max_cost_usd:,.2f}, of which ~{reserve} are kept for the benchmark"
    if plan.uncounted_usd:
        stops += (f" and ~{console.dollars(plan.uncounted_usd)} for uploads (list price), which several "
                  "nodes cannot count")
    training = [("training", "done: no machine is taken for it")] if plan.only_benchmark else _places(
        "training", plan.candidates(Document.TRAIN), plan.planned_at)
    facts = [("run", plan.run_id), ("store", store), *training,
             *_places("benchmark", plan.candidates(Document.BENCH), plan.planned_at),
             ("steps", f"{plan.steps:,} of {plan.tokens_per_step:,} tokens: {tokens} tokens")]
    if plan.predicted_micro_batch and not plan.only_benchmark:
        facts.append(("micro-batch", f"~{plan.predicted_micro_batch} sequences, the most that fits by "
                                     "arithmetic; a first start on such hardware tries others for a minute"))
    if plan.done_steps or plan.spent_usd:
        facts.append(("so far", f"already spent {console.dollars(plan.spent_usd)}, "
                                f"step {plan.done_steps:,} of {plan.steps:,} is durable"))
    if not plan.only_benchmark:
        facts.append(("speed", f"~{plan.tokens_per_s:,.0f} tokens/s ({plan.speed_source})"))
    facts += _machine_facts(plan)
    if plan.controller_usd_per_hour is not None:
        price = console.dollars(plan.controller_usd_per_hour)
        facts.append(("controller", f"elsewhere, always on, {price}/h"))
    facts += _expected(plan)
    facts.append(("stops at", stops))
    if plan.max_hours is not None:
        facts.append(("", f"{plan.max_hours:g} paid hours, of which ~{plan.bench_reserve_hours:.2f} are kept "
                          "for the benchmark"))
    return facts + ([("", f"{plan.deadline:%Y-%m-%d %H:%M} UTC")] if plan.deadline else [])


def _machine_facts(plan: Plan) -> list[tuple[str, str]]:
    """How long rented machines live, and how long it takes until there is another."""
    believed = plan.availability
    if believed is None or plan.offers[Document.TRAIN].is_local:
        return []
    lives, waits = (f"~{mid} h ({low} - {high})" for low, mid, high in
                    (map(_two_digits, hours) for hours in (believed.life_h, believed.wait_h)))
    return [("machines", f"live {lives}, the next comes after {waits}: {plan.availability_source}")]


def _two_digits(hours: float) -> str:
    """`0.036`, `12`, `2,800`."""
    return f"{float(f'{hours:.2g}'):,g}"


def _expected(plan: Plan) -> list[tuple[str, str]]:
    """What offers are compared by, when it ends, and how likely it keeps within its limits."""
    odds, ends = plan.odds, plan.planned_at + timedelta(hours=float(plan.hours.mid))
    of_tokens = plan.ranking[0].usd_per_billion_tokens if plan.ranking else None
    words = [f"ends ~{ends:%Y-%m-%d %H:%M} UTC"]
    if odds.expected_usd is not None:
        words.insert(0, f"~{console.dollars(odds.expected_usd)}" + (
            f", ${of_tokens:,.2f} per B tokens" if of_tokens is not None else ""))
    if odds.losses >= _WORTH_A_WORD:
        often = odds.losses_range
        words.append(f"~{odds.losses:.1f} machines lost" + (
            f" ({often.low:.0f} - {often.high:.0f})" if often and often.high else ""))
    words += [f"in time {odds.in_time:.0%}"] if plan.deadline else []
    words += [f"within the cap {odds.within_cap:.0%}"] if odds.within_cap is not None else []
    means = ["dollars"] if odds.expected_usd is not None else []
    means += ["losses"] if odds.losses >= _WORTH_A_WORD else []
    words += [f"{' and '.join(means)} are {'means' if len(means) > 1 else 'a mean'}"] if means else []
    return [("expected", "; ".join(words)), *([("chosen", plan.choice)] if plan.choice else [])]


def _course_facts(proposal: Proposal) -> list[tuple[str, str]]:
    """Between spot and on demand, where a deadline decides."""
    course = proposal.course
    return [] if course is None else [
        ("course", f"spot; on-demand from {course.on_demand_at:%Y-%m-%d %H:%M} UTC at the latest")]


def _places(name: str, offers: Sequence[Offer], now: datetime) -> list[tuple[str, str]]:
    """Where something may run: the first choice, and where SkyPilot goes when that has no machine."""
    return [("or" if index else name, _offer_words(offer, now)) for index, offer in enumerate(offers)]


def _bid_facts(plan: Plan) -> list[tuple[str, str]]:
    """What is advised of bids at Vast, once for offers of which the same is."""
    told = dict[str, dict[str, None]]()
    for which in Document:
        for offer in plan.candidates(which):
            if offer.advice and not (which is Document.TRAIN and plan.only_benchmark):
                told.setdefault(offer.advice.reason, {})[f"{_PURPOSES[which]} on {offer.hardware}"] = None
    return [("" if index else "bid", f"advised {' and '.join(machines)}: {reason}")
            for index, (reason, machines) in enumerate(told.items())]


def _market_facts(proposal: Proposal) -> list[tuple[str, str]]:
    """Who pays, what there is now, and how long it waits for machines, where it has to ask for them."""
    limits, plan = proposal.recipe.limits, proposal.plan
    asks = [which for which in Document
            if not plan.offers[which].is_local and not (which is Document.TRAIN and plan.only_benchmark)]
    markets = [f"{_PURPOSES[which]}: {market.words}" for which, market in proposal.markets.items()]
    markets += [proposal.market_problem] if proposal.market_problem else []
    if proposal.course:
        asks = [which for which in asks if which is Document.BENCH]  # to train it waits as its course says
    waits = [f"{limits.wait_hours_for(which):g} h {_PURPOSES[which]}"
             + (" (never past the deadline)" if plan.deadline_of(which) else "") for which in asks]
    credits = [("credits", proposal.payment.words)] if proposal.payment else []
    return [*credits, *zip(("market", ""), markets, strict=False),
            *([("waits", f"for a machine up to {', '.join(waits)}")] if waits else [])]


def _offer_words(offer: Offer, now: datetime) -> str:
    price = offer.price_usd_per_hour
    if price is None:
        return f"{offer.label}, price not known"
    said = f"{offer.label}, ${price:,.2f}/h" + (" (simulated)" if offer.price_is_simulated else "")
    if offer.listed is None:
        return said if offer.price_is_simulated else f"{said} (by the recipe alone)"
    listed, instead = offer.listed, offer.on_demand_usd_per_hour if offer.spot else None
    least = "" if offer.bid_usd_per_hour is None else f", wins from ${listed.price_usd_per_hour:,.2f}"
    beside = "" if instead is None else f", on demand ${instead:,.2f}"
    return f"{said}{least}{beside} ({listed.source}, {console.age(listed.age(now))} old)"


def plan_json(proposal: Proposal, quote: Quote, reasons: Sequence[LdlmError]) -> dict[str, Any]:
    """Stable form of `plan --json`.

    Args:
        quote: Of the proposal.
        reasons: Why a launch would be refused now.
    """
    return {**proposal.plan.model_dump(mode="json"), "store": proposal.recipe.store,
            "plan_digest": quote.digest, "holds_until": quote.holds_until.isoformat(),
            "task_digest": proposal.task.digest if proposal.recipe.store else None,
            "market": {document: market.model_dump(mode="json")
                       for document, market in proposal.markets.items()},
            "market_problem": proposal.market_problem,
            "out_of_pocket_usd": str(proposal.payment.out_of_pocket_usd) if proposal.payment else None,
            "refusals": [{"place": reason.place, "problem": reason.problem, "fix": reason.fix}
                         for reason in reasons]}


def _estimate_row(name: str, hours: Range, usd: Range | None, in_hours: bool, digits: int) -> list[str]:
    low, mid, high = (f"{float(value) * (1 if in_hours else 60):,.1f}"
                      for value in (hours.low, hours.mid, hours.high))
    time = [f"~{mid}", f"{low} - {high}"] if hours.high else ["", ""]
    if usd is None:
        return [name, *time, "not known", ""]
    return [name, *time, *(_usd_cells(usd, digits) if usd.high else ("", ""))]


def _usd_cells(usd: Range, digits: int) -> list[str]:
    return [f"~{console.dollars(usd.mid, digits)}", f"{usd.low:,.{digits}f} - {usd.high:,.{digits}f}"]
