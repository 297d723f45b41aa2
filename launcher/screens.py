"""What each command shows: from records to lines and tables of 80 columns. Decides nothing."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from launcher import console
from launcher.commands import Proposal
from launcher.cost import Range
from launcher.engine import EngineState
from launcher.follow import describe, seconds_left
from launcher.recipe import RecipeSummary
from launcher.report import Category, CostReport, amounts_that_add_up
from launcher.run_record import RunRecord, Status, outcome_words, status_of
from trainer.contract import Document


def show_recipes(recipes: Sequence[RecipeSummary]) -> None:
    """One line per recipe; a broken one says where."""
    console.answer_table("", ["recipe", "what it trains"],
                         [[recipe.name, recipe.summary or f"broken: {recipe.problem}"] for recipe in recipes])


def show_plan(proposal: Proposal) -> None:
    """Hardware, time, dollars as ranges, limits and warnings."""
    plan = proposal.plan
    console.answer(f"Plan for {plan.recipe}: {proposal.recipe.summary}", "title")
    rows = [["run", plan.run_id], ["store", proposal.recipe.store or ""]]
    for document, offer in plan.offers.items():
        price = offer.price_usd_per_hour
        simulated = " (simulated)" if offer.price_is_simulated else ""
        rows.append([document, f"{offer.label}, " + (f"${price}/h{simulated}" if price is not None else "no price")])
    tokens = f"{plan.tokens / 1e6:.2f} M" if plan.tokens < 1e8 else f"{plan.tokens / 1e9:.2f} B"
    rows += [["steps", f"{plan.steps} of {plan.tokens_per_step:,} tokens, {tokens} in all"],
             ["speed", f"~{plan.tokens_per_s:,.0f} tokens/s ({plan.speed_source})"]]
    console.answer_table("", ["", ""], rows)
    console.answer()
    in_hours = plan.hours.high > 3
    costs = [_cost_row(part.name, part.hours, part.usd, in_hours) for part in plan.parts]
    console.answer_table("", ["estimated", "hours" if in_hours else "minutes", "p10 - p90", "dollars", "p10 - p90"],
                         costs, right=[1, 2, 3, 4], total=_cost_row("total", plan.hours, plan.usd, in_hours))
    console.answer()
    deadline = f", or at {plan.deadline:%Y-%m-%d %H:%M} UTC" if plan.deadline else ""
    console.answer(f"stops itself at ${plan.max_cost_usd} (keeps ~{console.dollars(plan.bench_reserve_usd)} "
                   f"for the benchmark){deadline}")
    for warning in plan.warnings:
        console.answer(f"note: {warning}", "note")
    show_problems(proposal)


def show_problems(proposal: Proposal) -> None:
    """Known traps in the task, as talk: a launch would be refused for them."""
    for found in proposal.problems:
        console.talk(f"warning: {found.place}: {found.problem}; {found.fix}", "note")


def plan_json(proposal: Proposal) -> dict[str, Any]:
    """Stable form of `plan --json`."""
    return {**proposal.plan.model_dump(mode="json"), "store": proposal.recipe.store,
            "plan_digest": proposal.plan.digest(), "task_digest": proposal.task.digest}


def show_runs(rows: Sequence[tuple[RunRecord, Status]]) -> None:
    """One line per run."""
    console.answer_table("", ["run", "status", "step", "durable", "spent", "preempted"], [
        [record.run_id, record.outcome.outcome if status is Status.ENDED and record.outcome else status,
         *_steps(record), console.dollars(spent(record)), str(record.num_preemptions)]
        for record, status in rows], right=[2, 3, 4, 5])


def show_status(record: RunRecord, engine: EngineState) -> None:
    """Where one run is: step, what is durable, dollars, what comes next."""
    status = status_of(record, engine)
    beat = record.training.heartbeat if record.training else None
    step, durable = _steps(record)
    rows = [["status", f"{status}" + (f": {engine.detail}" if engine.detail and status is not Status.ENDED else "")],
            ["step", f"{step} (durable: {durable})"],
            ["attempts", f"{len(record.attempts)}, {record.num_preemptions} preempted"],
            ["spent", console.dollars(spent(record))], ["store", record.url]]
    if beat and status is Status.RUNNING:
        left = seconds_left(beat)
        rows.insert(2, ["now", describe(beat)])
        rows.insert(3, ["time left", console.duration(left) if left is not None else "not known yet"])
    if status is Status.ENDED:
        rows.insert(1, ["outcome", outcome_words(record.outcome)])
    console.answer_table(f"run {record.run_id}", ["", ""], rows)
    if status is Status.UNKNOWN:
        console.answer(f"nobody supervises this run any more; continue it: ldlm resume {record.run_id}", "note")


def status_json(record: RunRecord, engine: EngineState) -> dict[str, Any]:
    """Stable form of `status --json`."""
    beat = record.training.heartbeat if record.training else None
    return {
        "run_id": record.run_id, "status": status_of(record, engine).value, "store": record.url,
        "outcome": record.outcome.outcome.value if record.outcome else None,
        "reason": record.outcome.reason if record.outcome else None,
        "step": beat.step if beat else 0, "total_steps": beat.total_steps if beat else None,
        "durable_step": beat.durable_step if beat else 0, "attempts": len(record.attempts),
        "preemptions": record.num_preemptions,
        "resumed_from_steps": [files.heartbeat.resumed_from_step for files in record.attempts
                               if files.heartbeat and files.attempt.document is Document.TRAIN],
        "spent_usd": f"{spent(record):.6f}", "metrics": beat.metrics if beat else {}, "bench": record.bench,
    }


def show_bench(record: RunRecord) -> None:
    """Reconstructions first, then samples, then the speed, each with what it is not."""
    bench = record.bench
    if bench is None:
        return
    scores, speed = bench["scores"], bench["throughput"]
    console.answer(f"What it learned by step {bench['step']} (held-out text)", "title")
    console.answer(f"  reconstruction: {scores['reconstruction_accuracy']:.1%} of tokens, "
                   f"{scores['reconstruction_accuracy_noisy']:.1%} under noise")
    console.answer(f"  L_diff {scores['diffusion_loss']:.3f}, trivial predictor {scores['diffusion_loss_trivial']:.3f}")
    for truth, guess in bench["reconstructions"]:
        console.answer(f"  text   {_one_line(truth)}", "quiet")
        console.answer(f"  model  {_one_line(guess)}")
    console.answer("Generated from noise, unselected", "title")
    for sample in bench["samples"]:
        console.answer(f"  > {_one_line(sample)}")
    console.answer("A few CPU minutes do not make language: these samples show that the path works, no more."
                   if speed["device"].startswith("CPU") else "", "note")
    console.answer(f"Benchmark on {speed['device']}: {speed['tokens_per_s']:,.0f} tokens/s "
                   f"({speed['denoiser_steps']} steps, batch 1, {speed['tokens']} tokens, {speed['dtype']}; median of "
                   f"{speed['num_generations']}, {speed['seconds_p10'] * 1e3:.0f} to "
                   f"{speed['seconds_p90'] * 1e3:.0f} ms)", "title")
    if not speed["is_rtx5090"]:
        console.answer("This is not an RTX 5090 figure.", "note")


def show_cost(report: CostReport) -> None:
    """The bill: by category, by attempt, planned beside spent."""
    simulated = " (simulated price)" if report.price_is_simulated else ""
    categories = report.by_category()
    shown = amounts_that_add_up([*categories.values()])
    rows = [[category, console.dollars(usd), _share(usd, report.spent_usd)]
            for category, usd in zip(categories, shown, strict=True)]
    console.answer_table(f"Cost of {report.run_id}{simulated}", ["category", "dollars", "share"], rows, right=[1, 2],
                         total=["total", console.dollars(sum(shown, Decimal(0))), ""])
    console.answer()
    console.answer_table("", ["attempt", "document", "steps kept", "set-up", "lost", "dollars", "end"], [
        [str(cost.number), cost.document, _kept(cost.from_step, cost.durable_step, cost.document),
         console.duration(cost.seconds.get(Category.SETUP, 0)), console.duration(cost.seconds.get(Category.LOST, 0)),
         console.dollars(cost.usd()), cost.end] for cost in report.attempts], right=[0, 3, 4, 5])
    console.answer()
    for line in _comparisons(report):
        console.answer(line)


def _comparisons(report: CostReport) -> list[str]:
    lines = []
    if report.planned_usd:
        low, mid, high = (console.dollars(value) for value in report.planned_usd)
        lines.append(f"planned ~{mid} ({low} - {high}), spent {console.dollars(report.spent_usd)}")
    if report.on_demand_usd is not None:
        lines.append(f"the same work undisturbed on demand: ~{console.dollars(report.on_demand_usd)}")
    if report.goodput is not None:
        per_billion = f", ${report.spent_usd / report.tokens * 10**9:,.2f} per B tokens" if report.tokens else ""
        lines.append(f"goodput {report.goodput:.0%} of the training time{per_billion}")
    return lines


def spent(record: RunRecord) -> Decimal:
    """What a run has cost up to now."""
    from trainer.run_folder import spent_usd

    return spent_usd(record.attempts, datetime.now(UTC))


def _steps(record: RunRecord) -> tuple[str, str]:
    beat = record.training.heartbeat if record.training else None
    return (f"{beat.step}/{beat.total_steps}", str(beat.durable_step)) if beat else ("-", "-")


def _kept(first: int, last: int, document: Document) -> str:
    return f"{first} - {last}" if document is Document.TRAIN else ""


def _cost_row(name: str, hours: Range, usd: Range | None, in_hours: bool) -> list[str]:
    low, mid, high = (f"{float(value) * (1 if in_hours else 60):.1f}" for value in (hours.low, hours.mid, hours.high))
    row = [name, f"~{mid}", f"{low} - {high}"]
    if usd is None:
        return [*row, "not known", ""]
    digits = 2 if usd.high >= 10 else 4
    return [*row, f"~${usd.mid:.{digits}f}", f"{usd.low:.{digits}f} - {usd.high:.{digits}f}"]


def _share(part: Decimal, whole: Decimal) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _one_line(text: str, width: int = 68) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
