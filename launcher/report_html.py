"""The bill of a run as one page: no scripts, nothing fetched, readable by day and by night. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from html import escape

from launcher import console
from launcher.attempt_cost import AttemptCost, Category
from launcher.cost_screen import comparisons, digits_of, kept_words
from launcher.report import CostReport
from launcher.report_svg import category_rows, css_class, legend, spending, timeline

# By day and by night: what moved training forward is green, what was lost is red, what is beside is brown.
_COLOURS = {
    Category.PROVISIONING: ("#8a63b8", "#b392da"), Category.SETUP: ("#a98bcf", "#9474c0"),
    Category.RESTORE: ("#c6b3e0", "#6f549b"), Category.USEFUL: ("#2e8b57", "#4cb57c"),
    Category.RECOMPUTED: ("#c8453b", "#e2695f"), Category.CHECKPOINT: ("#d39b2a", "#dcae4c"),
    Category.EVALUATION: ("#3f7fbf", "#6aa5df"), Category.WAITING: ("#8d98a5", "#76818d"),
    Category.CRASHED: ("#8e2f4f", "#bb5478"), Category.BENCHMARK: ("#2a9aa6", "#4fc0cb"),
    Category.DISK: ("#8a6a4a", "#b08d69"), Category.NETWORK: ("#b48f68", "#8f7050"),
    Category.CONTROLLER: ("#5c5348", "#a89c8c")}
_DAY = "--paper:#fff;--ink:#1c2126;--quiet:#5b6570;--rule:#d9dee3;--band:#e8eef5;--cap:#c8453b"
_NIGHT = "--paper:#14181c;--ink:#e4e8ec;--quiet:#9aa5b0;--rule:#333b43;--band:#222c37;--cap:#e2695f"
_STYLE = """
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .quiet { color: var(--quiet); fill: var(--quiet); }
.spent { font-size: 2rem; font-weight: 600; margin: .5rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; }
table { border-collapse: collapse; width: 100%; } th { font-weight: 400; text-align: left; }
td, th { padding: .2rem .6rem .2rem 0; vertical-align: top; } thead th { color: var(--quiet); }
thead, tfoot { border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 0; }
.bar { width: 90%; vertical-align: middle; } .shares th { white-space: nowrap; }
.wide { overflow-x: auto; margin-top: 1rem; } .wide td, .wide th { white-space: nowrap; }
.wide td:last-child { white-space: normal; min-width: 10rem; }
@media (max-width: 45rem) { .wide thead { display: none; } .wide tr { display: block; padding: .4rem 0; }
  .wide tr + tr { border-top: 1px solid var(--rule); }
  .wide td { display: flex; white-space: normal; padding: 0; }
  .wide td::before { content: attr(data-name); flex: 0 0 7rem; color: var(--quiet); } }
svg { display: block; } svg text { font-size: 12px; fill: var(--ink); } svg text.quiet { fill: var(--quiet); }
.key { display: inline-block; margin: 0 1rem .3rem 0; font-size: 13px; } .key svg { display: inline-block; }
.band { fill: var(--band); } .line { fill: none; stroke: var(--c-useful); stroke-width: 2; }
.planned { stroke: var(--quiet); stroke-dasharray: 4 4; } .cap { stroke: var(--cap); stroke-width: 1.5; }
"""


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        cap_usd: Of the run; None: not known.
        now: Until when an attempt that runs is drawn, and when this was made.
    """

    report: CostReport
    cap_usd: Decimal | None
    now: datetime


def as_html(page: Page) -> str:
    """The whole page."""
    report = page.report
    title = f"Cost of {report.run_id}"
    return (f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
            f"<style>{_style()}</style>\n<body>\n" + "\n".join(_sections(page, title))
            + "\n</body>\n</html>\n")


def _sections(page: Page, title: str) -> Iterator[str]:
    report, digits = page.report, digits_of(page.report.spent_usd)
    simulated = ", at a simulated price" if report.price_is_simulated else ""
    yield f"<h1>{escape(title)}</h1>"
    yield f'<p class="quiet">{report.status}{simulated}; made {page.now:%Y-%m-%d %H:%M} UTC by ldlm</p>'
    yield f'<p class="spent">{console.dollars(report.spent_usd, digits)}</p>'
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
                    for name, text in comparisons(report, digits))
    yield f"<dl>{facts}</dl>"
    yield from (f"<p>{escape(doubt)}</p>" for doubt in report.doubts)
    yield "<h2>Where it went</h2>"
    yield (f'<table class="shares">{category_rows(report, digits)}<tfoot><tr><th>total</th><td></td>'
           f'<td class="num">{console.dollars(report.spent_usd, digits)}</td></tr></tfoot></table>')
    if not report.attempts:
        return
    yield "<h2>Dollars over time, against plan and cap</h2>"
    yield spending(report, page.cap_usd, digits, page.now)
    if report.planned_usd:
        yield '<p class="quiet">The band is what was planned, p10 to p90.</p>'
    yield "<h2>Attempts</h2>"
    used = [category for category in Category if any(category in cost.seconds for cost in report.attempts)]
    yield f"<p>{legend(used)}</p>"
    yield timeline(report, digits, page.now)
    yield f'<div class="wide">{_table(report, digits)}</div>'


def _table(report: CostReport, digits: int) -> str:
    heads = ("attempt", "", "where", "hardware", "an hour", "from (UTC)", "to", "steps kept", "dollars",
             "end")
    head = "".join(f"<th>{name}</th>" for name in heads)
    shown, beside = report.shown_usd(digits)
    lines = [_cells(cost, console.dollars(usd, digits))
             for cost, usd in zip(report.attempts, shown, strict=True)]
    if report.beside:
        lines.append(["-", *[""] * 7, console.dollars(beside, digits), "beside attempts"])
    rows = "".join(f"<tr>{''.join(_named(*cell) for cell in zip(heads, line, strict=True))}</tr>"
                   for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _named(head: str, cell: str) -> str:
    """A cell that says beside which name it stands on a page too narrow for columns."""
    return f'<td data-name="{head}">{escape(cell)}</td>'


def _cells(cost: AttemptCost, dollars: str) -> list[str]:
    ended = f"{cost.ended_at:%m-%d %H:%M:%S}" if cost.ended_at else "-"
    why = f"{cost.end}: {cost.reason}" if cost.reason and cost.reason != cost.end else cost.end
    return [str(cost.number), cost.document, cost.where, cost.machine,
            f"${cost.price_usd_per_hour:.2f}", f"{cost.began_at:%m-%d %H:%M:%S}", ended, kept_words(cost),
            dollars, why]


def _style() -> str:
    day, night = (";".join(f"--{css_class(category)}:{pair[index]}" for category, pair in _COLOURS.items())
                  for index in (0, 1))
    fills = "".join(f".{css_class(category)}{{fill:var(--{css_class(category)})}}" for category in Category)
    return (f":root{{color-scheme:light dark;{_DAY};{day}}}"
            f"@media (prefers-color-scheme:dark){{:root{{{_NIGHT};{night}}}}}{_STYLE}{fills}")
