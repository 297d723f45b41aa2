"""What `ldlm cost` shows of one run: from its bill to tables of 80 columns. Decides nothing."""

from collections.abc import Mapping
from decimal import Decimal

from launcher import console
from launcher.attempt_cost import NO_CREDIT, AttemptCost, Category
from launcher.cost import Range
from launcher.report import CostReport, amounts_that_add_up
from launcher.vast_credit import credit_words
from trainer.contract import Document

_BAR_WIDTH = 24
_PARTS_SHOWN = 4  # of the longest start


def show_cost(report: CostReport) -> None:
    """The bill: by category, by attempt, planned beside spent."""
    simulated = " (simulated price)" if report.price_is_simulated else ""
    digits = digits_of(report.spent_usd)
    console.answer(f"Cost of {report.run_id}{simulated}", "title")
    if report.attempts or report.spent_usd:
        console.answer()
        show_categories(report.by_category(), digits)
        console.answer()
    if report.attempts:
        _show_attempts(report, digits)
        console.answer()
        _show_machines(report)
        console.answer()
    else:
        console.answer("No attempt has begun, so nothing was spent on one.")
    console.answer_facts(comparisons(report, digits))
    if report.doubts:
        console.answer()
        console.answer_notes(report.doubts)


def show_last(report: CostReport, word: str) -> None:
    """The last line of a bill: where the run is, in a word or two, and what it has cost."""
    since = " since then" if report.before_usd else ""
    usd = console.dollars(report.spent_usd, digits_of(report.spent_usd))
    console.answer()
    console.answer_text(f"{report.run_id}: {word}; {usd} spent{since}")


def digits_of(usd: Decimal) -> int:
    """Cents; below ten dollars hundredths of them, since a demo costs cents."""
    return 2 if usd >= 10 else 4


def show_categories(usd_by_category: Mapping[Category, Decimal], digits: int) -> None:
    """Every category with its share; they add up to the total as they are shown."""
    spent = sum(usd_by_category.values(), Decimal(0))
    shown = amounts_that_add_up([*usd_by_category.values()], Decimal(1).scaleb(-digits))
    shares = [usd / spent * 100 if spent else Decimal(0) for usd in usd_by_category.values()]
    percents = amounts_that_add_up(shares, Decimal(1))
    rows = [[category, part_words(usd_by_category[category], usd, digits), f"{percent}%",
             console.bar(percent / 100, _BAR_WIDTH)]
            for category, usd, percent in zip(usd_by_category, shown, percents, strict=True)]
    console.answer_table(["where it went", "dollars", "share", ""], rows, right=[1, 2], spare=[3, 2],
                         total=["total", console.dollars(sum(shown, Decimal(0)), digits), "", ""])


def part_words(exact: Decimal, shown: Decimal, digits: int) -> str:
    """A part of a sum as it is shown; what is too small for that is not called nothing."""
    return console.dollars(shown, digits) if shown or not exact else f"<${Decimal(1).scaleb(-digits)}"


def _show_attempts(report: CostReport, digits: int) -> None:
    shown, beside = report.shown_usd(digits)
    rows = [[str(cost.number), cost.document, kept_words(cost), console.duration(cost.starting_s),
             console.duration(cost.wasted_s), console.dollars(usd, digits), cost.end]
            for cost, usd in zip(report.attempts, shown, strict=True)]
    if report.beside:
        rows.append(["-", "", "-", "", "", console.dollars(beside, digits), "beside attempts"])
    console.answer_table(["attempt", "", "steps kept", "start", "lost", "dollars", "end"], rows,
                         right=[0, 2, 3, 4, 5], spare=[3, 4, 2])
    slowest = max(report.attempts, key=lambda cost: sum(cost.start_s.values()))
    longest = sorted(slowest.start_s.items(), key=lambda part: -part[1])[:_PARTS_SHOWN]
    if parts := [f"{part} {console.duration(seconds)}" for part, seconds in longest if seconds >= 1]:
        console.answer()
        console.answer_text(f"Most of the longest start, of attempt {slowest.number}: {', '.join(parts)}")


def _show_machines(report: CostReport) -> None:
    rows = [[str(cost.number), cost.where or "-", cost.machine or "-", f"${cost.price_usd_per_hour:.2f}",
             f"{cost.began_at:%m-%d %H:%M:%S}", _until(cost)] for cost in report.attempts]
    console.answer_table(["attempt", "where", "hardware", "an hour", "from (UTC)", "to"], rows,
                         right=[0, 3], spare=[5, 4])


def _until(cost: AttemptCost) -> str:
    """With its day, if that is another."""
    if cost.ended_at is None:
        return "-"
    is_same_day = cost.ended_at.date() == cost.began_at.date()
    return f"{cost.ended_at:%H:%M:%S}" if is_same_day else f"{cost.ended_at:%m-%d %H:%M:%S}"


def kept_words(cost: AttemptCost) -> str:
    """From which step to which it has trained for good."""
    if cost.document is not Document.TRAIN or cost.durable_step <= cost.from_step:
        return "-"
    return f"{cost.from_step} - {cost.durable_step}"


def comparisons(report: CostReport, digits: int) -> list[tuple[str, str]]:
    """Planned, spent, what on-demand would have cost, and what the money did: names and words."""
    spent, planned, facts = report.spent_usd, report.planned_usd, []
    if planned:
        low, mid, high = (console.dollars(usd, digits) for usd in (planned.low, planned.mid, planned.high))
        facts.append(("planned", f"~{mid} (median; p10 - p90: {low} - {high})"))
    if report.attempts:
        beside = f", {_against(spent, planned)}" if planned and report.has_finished else ""
        facts.append(("spent", console.dollars(spent, digits) + beside))
    if report.before_usd:
        facts.append(("not in it", f"{console.dollars(report.before_usd, digits)} of what began before"))
    if report.unsaved_usd:
        unsaved = console.dollars(report.unsaved_usd, digits)
        facts.append(("at risk", f"{unsaved} of it is in no checkpoint yet"))
    if report.on_demand_usd is not None:
        undisturbed = (f"~{console.dollars(report.on_demand_usd, digits)} for the same work undisturbed, "
                       f"training at ${report.on_demand_usd_per_hour:,.2f}/h")
        facts.append(("on demand", undisturbed + _saved(spent, report.on_demand_usd)))
    if any(cost.end == NO_CREDIT for cost in report.attempts):
        facts.append(("credit", credit_words()))
    if report.preemptions_usd:
        facts.append(("preemptions", f"{console.dollars(report.preemptions_usd, digits)}: work done again, "
                                     "and starts after a loss"))
    if report.goodput is not None:
        facts.append(("goodput", f"{report.goodput:.0%} of the training time moved training forward"))
    if (price := report.usd_per_billion_tokens) is not None:
        facts.append(("price", f"${price:,.2f} per B tokens"))
    if (each := report.generation_usd_per_million_tokens) is not None:
        facts.append(("generation", f"${each:,.4f} per M tokens at batch 1, by the benchmark"))
    return facts


def _against(spent: Decimal, planned: Range) -> str:
    if planned.low <= spent <= planned.high:
        return "within the planned range"
    return f"{'above' if spent > planned.high else 'below'} the planned range"


def _saved(spent: Decimal, on_demand: Decimal) -> str:
    if not on_demand:
        return ""
    percent = round((1 - spent / on_demand) * 100)
    return f": {percent}% saved" if percent >= 0 else f": {-percent}% more was paid"
