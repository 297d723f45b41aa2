"""Bills as CSV: one row an attempt, and one of a run for what no attempt has cost. Pure."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal

from launcher.attempt_cost import AttemptCost, Category
from launcher.report import CostReport

_COLUMNS = ("run_id", "attempt", "document", "cloud", "region", "hardware", "market", "price_usd_per_hour",
            "began_at", "ended_at", "end", "reason", "usd")


def as_csv(reports: Iterable[CostReport]) -> str:
    """A heading and rows. Dollars have six decimals; `usd` is the sum of a row's categories, which come after
    it, and all rows of a run add up to what it has spent. Times are UTC."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(category.value for category in Category)])
    for report in reports:
        writer.writerows(_rows(report))
    return text.getvalue()


def _rows(report: CostReport) -> Iterator[list[str]]:
    *rows, beside = report.rows()
    for cost, usd in zip(report.attempts, rows, strict=True):
        yield [report.run_id, *_words(cost), *_dollars(usd)]
    if any(beside.values()):
        yield [report.run_id, *[""] * (len(_COLUMNS) - 2), *_dollars(beside)]


def _words(cost: AttemptCost) -> list[str]:
    return [str(cost.number), cost.document, cost.cloud, cost.region, cost.hardware, cost.market,
            f"{cost.price_usd_per_hour:f}", cost.began_at.isoformat(),
            cost.ended_at.isoformat() if cost.ended_at else "", cost.end, cost.reason]


def _dollars(usd: Mapping[Category, Decimal]) -> list[str]:
    return [f"{amount:.6f}" for amount in (sum(usd.values(), Decimal(0)), *usd.values())]
