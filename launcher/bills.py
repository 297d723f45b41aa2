"""The bills of all runs of a store, added up (pure, but for `is_over_before`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from launcher.attempt_cost import Category
from launcher.report import CostReport, added_up
from trainer.contract import Name
from trainer.run_folder import EVENT_STAMP, RunFolder

# By which the clock of who closes a run may be behind those of its nodes: no zone is further away (guess).
_CLOCKS = timedelta(days=1)


@dataclass(frozen=True)
class Bills:
    """What all runs together have cost.

    Attributes:
        reports: Of the runs that have cost something, or may.
        unreadable: Runs whose bills are missing here, with what is wrong.
        since: Only attempts that began then or later, and machines that were rented then or later, count,
            and supervision from then on; None: all.
    """

    reports: Sequence[CostReport]
    unreadable: Sequence[str]
    since: datetime | None

    @property
    def spent_usd(self) -> Decimal:
        """Total of all runs that can be read."""
        return sum((report.spent_usd for report in self.reports), Decimal(0))

    @property
    def simulated_usd(self) -> Decimal:
        """The part of it that nobody sends a bill for."""
        return sum((report.spent_usd for report in self.reports if report.price_is_simulated), Decimal(0))

    def by_category(self) -> dict[Category, Decimal]:
        """Dollars of every category, zeros included; adds up to `spent_usd`, exactly."""
        return added_up([report.by_category() for report in self.reports])

    def to_json(self) -> dict[str, Any]:
        """The stable form that `ldlm cost --json` prints.

        since: ISO 8601, UTC, or null
        spent_usd: text with six decimals; `usd_by_category` and the `spent_usd` of runs add up to it
        simulated_usd: the part of it at prices that nobody sends a bill for
        usd_by_category: all categories, zeros included
        runs: what `launcher.report.CostReport.to_json` says of each
        unreadable: sentences about runs whose bills are not in it
        """
        runs = [report.to_json() for report in self.reports]
        parts = [{category: Decimal(run["usd_by_category"][category]) for category in Category}
                 for run in runs]
        total = added_up(parts)
        return {"since": self.since.isoformat() if self.since else None,
                "spent_usd": f"{sum(total.values(), Decimal(0)):.6f}",
                "simulated_usd": f"{self.simulated_usd:.6f}",
                "usd_by_category": {category.value: f"{usd:.6f}" for category, usd in total.items()},
                "runs": runs, "unreadable": list(self.unreadable)}


def is_over_before(folder: RunFolder, since: datetime) -> bool:
    """True for a run whose record was closed well before a moment, and not opened again: one listing tells,
    since events are named by time."""
    names = [found.key.rpartition("/")[2] for found in folder.store.objects(folder.key(Name.EVENTS))]
    stamp, _, kind = names[-1].partition("-") if names else ("", "", "")
    try:
        at = datetime.strptime(stamp, EVENT_STAMP).replace(tzinfo=UTC)
    except ValueError:
        return False
    return kind == "ended.json" and at < since - _CLOCKS
