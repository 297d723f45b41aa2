"""What a ranking of offers looks like: a row each, and what cannot be beneath."""

from collections.abc import Sequence

from launcher import console
from launcher.ranking import Ranked

_HEADINGS = ("offer", "$/h", "hours", "mean cost", "p10 - p90", "$/B tokens", "speed", "in time")


def show_ranking(rows: Sequence[Ranked]) -> None:
    """The offers in order, of which the first is planned for; nothing where there is only one."""
    if not rows[1:]:
        return
    possible = [row for row in rows if row.problem is None]
    if possible:
        console.answer_table(_HEADINGS, [_cells(row) for row in possible], right=[1, 2, 3, 4, 5, 7],
                             spare=[1, 4, 7, 2])
        _show_origins(possible)
    console.answer_notes([f"{row.offer.label} cannot be: {row.problem}" for row in rows if row.problem])
    console.answer()


def _show_origins(rows: Sequence[Ranked]) -> None:
    """On which measurements speeds rest; nothing where all are models."""
    told = dict.fromkeys(row.speed_source for row in rows if row.speed_source and row.speed_origin != "model")
    if told:
        console.answer_facts([("" if index else "speed", source) for index, source in enumerate(told)])


def _cells(row: Ranked) -> list[str]:
    price, usd, odds = row.offer.price_usd_per_hour, row.usd, row.odds
    unknown = "not known"
    each = row.usd_per_billion_tokens
    return [row.offer.label, unknown if price is None else f"{price:,.2f}",
            f"~{row.hours.mid:,.1f}" if row.hours else "",
            unknown if row.expected_usd is None else f"~${row.expected_usd:,.2f}",
            f"{usd.low:,.2f} - {usd.high:,.2f}" if usd else "",
            "" if each is None else f"{each:,.2f}", row.speed_origin or "",
            f"{odds.in_time:.0%}" if odds else ""]
