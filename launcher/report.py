"""Where the money of a run went, to the cent: by attempt, by category, planned beside spent (pure).

Every second that a machine is billed belongs to exactly one category, so that the categories of a
report add up to its total.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from trainer.contract import Document
from trainer.run_folder import AttemptFiles, charged_until

if TYPE_CHECKING:
    from launcher.run_record import RunRecord


class Category(StrEnum):
    """What a billed second went into."""

    USEFUL = "useful"  # training steps that are in a durable checkpoint
    SETUP = "set-up"  # install, start-up, restore, shut-down
    CHECKPOINT = "checkpointing"  # training stood still for a save
    EVALUATION = "evaluation"
    LOST = "lost to preemption"  # paid after the last durable checkpoint of an attempt that was cut off
    UNSAVED = "not yet saved"  # of a running attempt: useful once the next checkpoint is durable
    BENCHMARK = "benchmark"


@dataclass(frozen=True)
class AttemptCost:
    """One attempt of the report."""

    number: int
    document: Document
    seconds: dict[Category, float]
    price_usd_per_hour: Decimal
    from_step: int
    durable_step: int
    end: str

    def usd(self, category: Category | None = None) -> Decimal:
        """Dollars of one category, or of the whole attempt; unrounded."""
        seconds = sum(self.seconds.values()) if category is None else self.seconds.get(category, 0.0)
        return self.price_usd_per_hour * Decimal(seconds) / 3600


@dataclass(frozen=True)
class CostReport:
    """The bill of a run, in our own arithmetic; the provider's bill is the provider's word.

    Attributes:
        planned_usd: p10, p50, p90 of the plan; None if it had no prices.
        on_demand_usd: The same work on an on-demand machine that nobody takes away.
    """

    run_id: str
    attempts: Sequence[AttemptCost]
    planned_usd: tuple[Decimal, Decimal, Decimal] | None
    on_demand_usd: Decimal | None
    price_is_simulated: bool
    tokens: int

    @property
    def spent_usd(self) -> Decimal:
        """Total over all attempts, unrounded."""
        return sum((attempt.usd() for attempt in self.attempts), Decimal(0))

    def by_category(self) -> dict[Category, Decimal]:
        """Dollars by category over all attempts; adds up to `spent_usd`."""
        return {category: sum((attempt.usd(category) for attempt in self.attempts), Decimal(0))
                for category in Category
                if category is not Category.UNSAVED or any(Category.UNSAVED in a.seconds for a in self.attempts)}

    @property
    def goodput(self) -> float | None:
        """Share of the paid training time that moved training forward; None before there is any."""
        training = [attempt for attempt in self.attempts if attempt.document is Document.TRAIN]
        paid = sum(sum(attempt.seconds.values()) for attempt in training)
        useful = sum(attempt.seconds.get(Category.USEFUL, 0.0) for attempt in training)
        return useful / paid if paid else None

    def to_json(self) -> dict[str, Any]:
        """Stable form for `--json`: dollars as text with six decimals."""
        return {
            "run_id": self.run_id,
            "spent_usd": _text(self.spent_usd),
            "planned_usd": [_text(value) for value in self.planned_usd] if self.planned_usd else None,
            "on_demand_usd": _text(self.on_demand_usd) if self.on_demand_usd is not None else None,
            "price_is_simulated": self.price_is_simulated,
            "goodput": self.goodput,
            "tokens": self.tokens,
            "usd_by_category": {category.value: _text(usd) for category, usd in self.by_category().items()},
            "attempts": [
                {"attempt": cost.number, "document": cost.document.value, "end": cost.end,
                 "from_step": cost.from_step, "durable_step": cost.durable_step, "usd": _text(cost.usd()),
                 "price_usd_per_hour": str(cost.price_usd_per_hour),
                 "seconds_by_category": {name.value: round(value, 3) for name, value in cost.seconds.items()}}
                for cost in self.attempts],
        }


def cost_report(record: "RunRecord", now: datetime) -> CostReport:
    """Compute the bill of a run from its record.

    Args:
        record: The run.
        now: Current time, UTC; attempts that still run are charged up to it.
    """
    until = charged_until(record.attempts, now)
    costs = [attempt_cost(files, end, running=files.end is None and files is record.attempts[-1])
             for files, end in zip(record.attempts, until, strict=True)]
    offer = (record.plan.get("offers") or {}).get("train") or {}
    planned = record.plan.get("usd")
    steps = record.training.heartbeat.durable_step if record.training and record.training.heartbeat else 0
    return CostReport(
        run_id=record.run_id, attempts=costs, on_demand_usd=_on_demand_usd(costs, offer),
        planned_usd=(Decimal(planned["low"]), Decimal(planned["mid"]), Decimal(planned["high"])) if planned else None,
        price_is_simulated=bool(offer.get("price_is_simulated")),
        tokens=steps * int(record.plan.get("tokens_per_step") or 0))


def amounts_that_add_up(amounts: Sequence[Decimal], places: Decimal = Decimal("0.0001")) -> list[Decimal]:
    """Round amounts so that what is shown adds up to the rounded total, as a bill must.

    Everything is rounded down; the units that are then missing go to the largest remainders.
    """
    target = sum(amounts, Decimal(0)).quantize(places)
    rounded = [amount.quantize(places, rounding=ROUND_DOWN) for amount in amounts]
    missing = int((target - sum(rounded, Decimal(0))) / places)
    by_remainder = sorted(range(len(amounts)), key=lambda index: rounded[index] - amounts[index])
    for index in by_remainder[:missing]:
        rounded[index] += places
    return rounded


def attempt_cost(files: AttemptFiles, until: datetime, *, running: bool) -> AttemptCost:
    """Split one attempt's billed seconds into categories."""
    total_s = max(0.0, (until - files.attempt.billed_from).total_seconds())
    beat = files.heartbeat
    return AttemptCost(
        number=files.attempt.number, document=files.attempt.document,
        price_usd_per_hour=files.attempt.price_usd_per_hour, seconds=_split(files, total_s, running=running),
        from_step=beat.resumed_from_step if beat else 0, durable_step=beat.durable_step if beat else 0,
        end=_end_words(files, running=running))


def _split(files: AttemptFiles, total_s: float, *, running: bool) -> dict[Category, float]:
    if files.attempt.document is Document.BENCH:
        return {Category.BENCHMARK: total_s}
    beat = files.heartbeat
    if beat is None:
        return {Category.SETUP: total_s}
    left_s = total_s
    seconds: dict[Category, float] = {}
    for category, claimed_s in ((Category.SETUP, beat.phases.setup_s),
                                (Category.CHECKPOINT, beat.phases.checkpoint_s),
                                (Category.USEFUL, beat.durable_train_s),
                                (Category.EVALUATION, beat.durable_evaluate_s)):
        # No category may claim more than was billed, whatever a skewed clock says.
        seconds[category] = min(claimed_s, left_s)
        left_s -= seconds[category]
    rest = _rest_category(files, running=running)
    seconds[rest] = seconds.get(rest, 0.0) + left_s
    return seconds


def _rest_category(files: AttemptFiles, *, running: bool) -> Category:
    """What the time is that no durable checkpoint covers."""
    if running:
        return Category.UNSAVED
    ended_by_itself = files.end is not None and not files.end.preempted and files.end.exit_code in (0, 75)
    return Category.SETUP if ended_by_itself else Category.LOST


def _end_words(files: AttemptFiles, *, running: bool) -> str:
    if running:
        return "running"
    if files.end is None:
        return "vanished"
    if files.end.preempted:
        return "preempted"
    names = {0: "done", 75: "saved, asked to stop", 78: "bad recipe", 70: "broke"}
    return names.get(files.end.exit_code or 0, f"crashed ({files.end.exit_code})")


def _on_demand_usd(costs: Sequence[AttemptCost], offer: dict[str, Any]) -> Decimal | None:
    """One undisturbed life: one set-up, the useful work with its saves and evaluations, one benchmark."""
    price = offer.get("on_demand_usd_per_hour")
    if price is None or not costs:
        return None
    seconds = costs[0].seconds.get(Category.SETUP, 0.0)
    for cost in costs:
        seconds += sum(value for category, value in cost.seconds.items()
                       if category not in (Category.SETUP, Category.LOST))
    return Decimal(str(price)) * Decimal(seconds) / 3600


def _text(usd: Decimal) -> str:
    return f"{usd:.6f}"
