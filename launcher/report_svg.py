"""The charts of a run's bill as SVG, for one page that has no scripts. Pure.

Widths are percentages of whatever the page gives, so that letters keep their size on a telephone; only the
line of spending is stretched. Colours are classes of the page: `c-useful`, `line`, `cap`.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from html import escape

from launcher import console
from launcher.attempt_cost import AttemptCost, Category
from launcher.cost import Range
from launcher.cost_screen import part_words
from launcher.report import CostReport, amounts_that_add_up

_LANE, _BAR, _TEXT = 38, 16, 14  # heights, in pixels
_CURVE = 240
_AXIS = 20
_NEAR = 2  # a cap within so many times what was spent and planned is in the frame


def css_class(category: Category) -> str:
    """The page's name for the colour of a category."""
    return f"c-{category.value.replace(' ', '-')}"


def category_words(report: CostReport, digits: int) -> list[str]:
    """Dollars of every category, as they add up."""
    found = report.by_category().values()
    shown = amounts_that_add_up([*found], Decimal(1).scaleb(-digits))
    return [part_words(usd, rounded, digits) for usd, rounded in zip(found, shown, strict=True)]


def category_rows(report: CostReport, digits: int) -> str:
    """Every category: name, a bar by its share of the largest, dollars. Rows of a table."""
    found = report.by_category()
    largest = max(found.values())
    return "\n".join(
        f'<tr><th scope="row">{escape(category)}</th><td class="bar"><svg height="{_BAR}" width="100%" '
        f'aria-hidden="true"><rect class="{css_class(category)}" width="{_percent(usd, largest)}" '
        f'height="{_BAR}" rx="2"/></svg></td><td class="num">{escape(words)}</td></tr>'
        for (category, usd), words in zip(found.items(), category_words(report, digits), strict=True))


def timeline(report: CostReport, digits: int, now: datetime) -> str:
    """When each attempt was at work, one lane each; its parts by category, not in their order in time."""
    first, last = bounds(report, now)
    shown, _ = report.shown_usd(digits)
    lanes = "".join(_lane(cost, console.dollars(usd, digits), index * _LANE, (first, last, now))
                    for index, (cost, usd) in enumerate(zip(report.attempts, shown, strict=True)))
    height = _LANE * len(report.attempts) + _AXIS
    return (f'<svg width="100%" height="{height}" role="img" aria-label="Timeline of attempts">{lanes}'
            f"{_time_axis(first, last, height)}</svg>")


def spending(report: CostReport, cap_usd: Decimal | None, digits: int, now: datetime) -> str:
    """Dollars over time, against the range that was planned and the cap."""
    first, last = bounds(report, now)
    points = list(spent_over_time(report, now))
    planned, top = report.planned_usd, top_usd(report, cap_usd)
    has_cap = cap_usd is not None and 0 < cap_usd <= top
    line = " ".join(f"{_share(at, first, last) * 100:.3f},{100 - usd / top * 100:.3f}" for at, usd in points)
    inner = (f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" height="{_CURVE}">'
             f"{_band(planned, top) if planned else ''}"
             f'<polyline class="line" points="{line}" vector-effect="non-scaling-stroke"/>'
             f"{_level('cap', cap_usd, top) if cap_usd and has_cap else ''}</svg>")
    words = "".join(_level_words(f"{name} {console.dollars(usd, digits)}", usd, top) for name, usd in (
        ("cap", cap_usd if has_cap else None), ("planned", planned.mid if planned else None))
        if usd is not None)
    if cap_usd and not has_cap:
        words += (f'<text x="100%" y="12" text-anchor="end">cap {console.dollars(cap_usd, digits)}, '
                  "above this frame</text>")
    height = _CURVE + _AXIS
    return (f'<svg width="100%" height="{height}" role="img" aria-label="Dollars over time">{inner}{words}'
            f"{_time_axis(first, last, height)}</svg>")


def top_usd(report: CostReport, cap_usd: Decimal | None) -> Decimal:
    """How high the chart of spending is: a cap far above what was spent and planned would flatten both."""
    told = max(report.spent_usd, report.planned_usd.high if report.planned_usd else Decimal(0))
    if cap_usd is not None and (not told or cap_usd <= _NEAR * told):
        told = max(told, cap_usd)
    return (told or Decimal(1)) * Decimal("1.08")


def bounds(report: CostReport, now: datetime) -> tuple[datetime, datetime]:
    """The time that charts cover: from the first attempt to the end of the last, or until `now`."""
    if not report.attempts:
        return now - timedelta(hours=1), now
    first = min(cost.began_at for cost in report.attempts)
    return first, max(first + timedelta(seconds=1), *(cost.ended_at or now for cost in report.attempts))


def spent_over_time(report: CostReport, now: datetime) -> Iterator[tuple[datetime, Decimal]]:
    """Corners of the line of all dollars: each attempt spends evenly, and so does what is beside them."""
    first, last = bounds(report, now)
    beside = sum(report.beside.values(), Decimal(0))
    spans = [(cost.began_at, cost.ended_at or now, cost.usd) for cost in report.attempts]
    spans.append((first, last, beside))
    for at in sorted({moment for begins, ends, _ in spans for moment in (begins, ends)}):
        yield at, sum((usd * Decimal(str(_share(at, begins, ends))) for begins, ends, usd in spans),
                      Decimal(0))


def _lane(cost: AttemptCost, dollars: str, y: int, times: tuple[datetime, datetime, datetime]) -> str:
    first, last, now = times
    begins, ends = (_share(at, first, last) * 100 for at in (cost.began_at, cost.ended_at or now))
    is_left = begins < 50
    words = f"{cost.number} {cost.document} · {cost.end} · {dollars}"
    text = (f'<text x="{begins if is_left else ends:.2f}%" y="{y + _TEXT}" '
            f'text-anchor="{"start" if is_left else "end"}">{escape(words)}</text>')
    seconds, x = sum(cost.seconds.values()), begins
    bars = []
    for category, part in cost.seconds.items():
        width = (ends - begins) * part / seconds
        told = escape(f"{category}: {console.duration(part)}")
        bars.append(f'<rect class="{css_class(category)}" x="{x:.3f}%" y="{y + _TEXT + 4}" '
                    f'width="{max(width, 0.05):.3f}%" height="{_BAR}"><title>{told}</title></rect>')
        x += width
    return text + "".join(bars)


def _band(planned: Range, top: Decimal) -> str:
    y, height = 100 - planned.high / top * 100, (planned.high - planned.low) / top * 100
    return (f'<rect class="band" x="0" y="{y:.3f}" width="100" height="{height:.3f}"/>'
            + _level("planned", planned.mid, top))


def _level(name: str, usd: Decimal, top: Decimal) -> str:
    y = 100 - usd / top * 100
    return (f'<line class="{name}" x1="0" x2="100" y1="{y:.3f}" y2="{y:.3f}" '
            'vector-effect="non-scaling-stroke"/>')


def _level_words(words: str, usd: Decimal, top: Decimal) -> str:
    y = max(12.0, float(1 - usd / top) * _CURVE - 4)
    return f'<text x="0" y="{y:.1f}">{words}</text>'


def _time_axis(first: datetime, last: datetime, height: int) -> str:
    form = "%m-%d %H:%M" if last - first > timedelta(hours=1) else "%H:%M:%S"
    return (f'<text class="quiet" x="0" y="{height - 4}">{first:{form}}</text>'
            f'<text class="quiet" x="100%" y="{height - 4}" text-anchor="end">{last:{form}} UTC</text>')


def _share(at: datetime, first: datetime, last: datetime) -> float:
    """Where a moment lies between two, in [0, 1]; those of no length are over when they begin."""
    length_s = (last - first).total_seconds()
    return min(1.0, max(0.0, (at - first).total_seconds() / length_s)) if length_s > 0 else float(at >= first)


def _percent(part: Decimal, whole: Decimal) -> str:
    return f"{part / whole * 100:.2f}%" if whole else "0%"


def legend(categories: Sequence[Category]) -> str:
    """Names beside their colours."""
    return "".join(f'<span class="key"><svg width="10" height="10" aria-hidden="true"><rect width="10" '
                   f'height="10" class="{css_class(one)}"/></svg> {escape(one)}</span>' for one in categories)
