"""What `ldlm cost` shows of all runs. Decides nothing."""

from decimal import Decimal

from launcher import console
from launcher.attempt_cost import Category
from launcher.bills import Bills
from launcher.cost_screen import digits_of, show_categories
from launcher.report import CostReport


def show_bills(bills: Bills, url: str) -> None:
    """One line a run, then the categories of all."""
    since = f" since {bills.since:%Y-%m-%d %H:%M} UTC" if bills.since else ""
    if not bills.reports:
        console.answer(f"no run in {url} has cost anything{since}")
        return
    digits = digits_of(bills.spent_usd)
    console.answer(f"Cost of all runs{since}", "title")
    console.answer()
    _show_runs(bills, digits)
    console.answer()
    show_categories(bills.by_category(), digits)
    console.answer()
    simulated = (f", {console.dollars(bills.simulated_usd, digits)} of it at simulated prices"
                 if bills.simulated_usd else "")
    console.answer(f"{len(bills.reports)} run{'s' * (len(bills.reports) != 1)} in {url}{simulated}")
    if before_usd := sum((report.before_usd for report in bills.reports), Decimal(0)):
        console.answer(f"not in it: {console.dollars(before_usd, digits)} of what began before")
    if bills.unreadable:
        console.answer(f"not in it: {len(bills.unreadable)} of which the record cannot be read")
    console.answer_notes([f"{report.run_id}: {doubt}" for report in bills.reports for doubt in report.doubts])


def _show_runs(bills: Bills, digits: int) -> None:
    rows = [[report.run_id, report.status.value, _began(report), _planned(report, digits), _useful(report),
             console.dollars(report.spent_usd, digits)] for report in bills.reports]
    total = ["total", "", "", "", "", console.dollars(bills.spent_usd, digits)]
    console.answer_table(["run", "status", "began (UTC)", "p50 planned", "useful", "dollars"], rows,
                         right=[3, 4, 5], total=total, spare=[2, 4, 3])
    unit = Decimal(1).scaleb(-digits)
    rounded = sum((report.spent_usd.quantize(unit) for report in bills.reports), Decimal(0))
    if rounded != bills.spent_usd.quantize(unit):
        console.answer_text(f"  each line is rounded by itself: together they would be "
                            f"{console.dollars(rounded, digits)}")


def _began(report: CostReport) -> str:
    return f"{report.attempts[0].began_at:%Y-%m-%d %H:%M}" if report.attempts else "-"


def _planned(report: CostReport, digits: int) -> str:
    return f"~{console.dollars(report.planned_usd.mid, digits)}" if report.planned_usd else "-"


def _useful(report: CostReport) -> str:
    useful = report.by_category()[Category.USEFUL]
    return f"{useful / report.spent_usd:.0%}" if report.spent_usd else "-"
