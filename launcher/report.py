"""Where the money of a run went, to the cent: by attempt, by category, planned beside spent (pure).

Every second that a machine is billed belongs to exactly one category, so that the categories of a
report add up to its total.
"""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from enum import StrEnum
from typing import Any

from launcher.cost import Range
from launcher.rental_cost import OnRental, on_rentals, unused_usd
from launcher.run_record import PlannedOffer, RunRecord, RunView, Status
from trainer.contract import Document, Outcome
from trainer.run_folder import AttemptFiles, Heartbeat
from trainer.spent import charged_until, controller_usd

# To a millionth of a millionth of a dollar: what is rounded here adds up exactly from here on.
_EXACT = Decimal("1e-12")
_MICRO = Decimal("1e-6")


class Category(StrEnum):
    """What a billed second went into."""

    USEFUL = "useful"  # training steps that are in a durable checkpoint
    SETUP = "set-up"  # install, start-up, restore, shut-down
    CHECKPOINT = "checkpointing"  # training stood still for a save
    EVALUATION = "evaluation"
    LOST = "lost to preemption"  # paid after the last durable checkpoint of a machine that was taken
    CRASHED = "lost to a crash"  # the same of an attempt that broke; shown only when there is some
    STOPPED = "lost to a stop"  # of one that its user stopped before it could save
    UNSAVED = "not yet saved"  # of a running attempt: useful once the next checkpoint is durable
    BENCHMARK = "benchmark"
    DISK = "disk"  # of rented machines, from their contract on until they are given back
    NETWORK = "network"
    UNUSED = "machines that did not start"  # rented, and no attempt began on them
    CONTROLLER = "controller"  # who supervises the run, from each submission to its end


_DONE = "done"
_ONLY_IF_ANY = (Category.CRASHED, Category.STOPPED, Category.UNSAVED, Category.DISK, Category.NETWORK,
                Category.UNUSED, Category.CONTROLLER)
_WASTED = (Category.LOST, Category.CRASHED, Category.STOPPED)


@dataclass(frozen=True)
class AttemptCost:
    """One attempt of the report.

    Attributes:
        price_usd_per_hour: Of its machines; where the price has changed meanwhile, its mean.
        beside: Dollars that are not by the second.
        start_s: Seconds to the first step, by part; empty where there was none.
    """

    number: int
    document: Document
    seconds: dict[Category, float]
    price_usd_per_hour: Decimal
    beside: dict[Category, Decimal]
    from_step: int
    durable_step: int
    end: str
    start_s: Mapping[str, float]

    @property
    def usd_by_category(self) -> dict[Category, Decimal]:
        """Dollars of each category."""
        return {category: (self.price_usd_per_hour * Decimal(seconds) / 3600).quantize(_EXACT)
                for category, seconds in self.seconds.items()} | self.beside

    @property
    def usd(self) -> Decimal:
        """Dollars of the whole attempt."""
        return sum(self.usd_by_category.values(), Decimal(0))

    @property
    def wasted_s(self) -> float:
        """Seconds of work that has to be done again."""
        return sum(self.seconds.get(category, 0.0) for category in _WASTED)


@dataclass(frozen=True)
class CostReport:
    """The bill of a run, in our own arithmetic; the provider's bill is the provider's word.

    Attributes:
        planned_usd: Of the plan; None if it had no prices.
        on_demand_usd: The same work on an on-demand machine that nobody takes away.
        tokens: Seen by durable training steps.
        unused_usd: Of machines on which no attempt has begun.
        controller_usd: Of who supervises the run.
        has_finished: All that was planned is done, so that planned and spent can be compared.
    """

    run_id: str
    attempts: Sequence[AttemptCost]
    planned_usd: Range | None
    on_demand_usd: Decimal | None
    price_is_simulated: bool
    tokens: int
    unused_usd: Decimal
    controller_usd: Decimal
    has_finished: bool

    @property
    def spent_usd(self) -> Decimal:
        """Total of the run."""
        return sum((attempt.usd for attempt in self.attempts), self.unused_usd + self.controller_usd)

    def by_category(self) -> dict[Category, Decimal]:
        """Dollars by category over all attempts; adds up to `spent_usd`, exactly."""
        parts = [attempt.usd_by_category for attempt in self.attempts]
        beside = {Category.UNUSED: self.unused_usd, Category.CONTROLLER: self.controller_usd}
        parts.append({category: usd for category, usd in beside.items() if usd})
        return {category: sum((part.get(category, Decimal(0)) for part in parts), Decimal(0))
                for category in Category
                if category not in _ONLY_IF_ANY or any(category in part for part in parts)}

    @property
    def goodput(self) -> float | None:
        """Share of the paid training time that moved training forward; None before there is any."""
        training = [attempt for attempt in self.attempts if attempt.document is Document.TRAIN]
        paid = sum(sum(attempt.seconds.values()) for attempt in training)
        useful = sum(attempt.seconds.get(Category.USEFUL, 0.0) for attempt in training)
        return useful / paid if paid else None

    def to_json(self) -> dict[str, Any]:
        """Stable form for `--json`: dollars as text with six decimals, which add up as they stand."""
        categories, plan = self.by_category(), self.planned_usd
        shown = amounts_that_add_up([*categories.values()], _MICRO)
        of_attempts = amounts_that_add_up([attempt.usd for attempt in self.attempts], _MICRO)
        return {
            "run_id": self.run_id,
            "spent_usd": _text(sum(shown, Decimal(0))),
            "planned_usd": [_text(value) for value in (plan.low, plan.mid, plan.high)] if plan else None,
            "on_demand_usd": _text(self.on_demand_usd) if self.on_demand_usd is not None else None,
            "price_is_simulated": self.price_is_simulated,
            "goodput": self.goodput,
            "tokens": self.tokens,
            "usd_by_category": {name.value: _text(usd) for name, usd in zip(categories, shown, strict=True)},
            "attempts": [_attempt_json(cost, usd)
                         for cost, usd in zip(self.attempts, of_attempts, strict=True)],
        }


def _attempt_json(cost: AttemptCost, usd: Decimal) -> dict[str, Any]:
    return {"attempt": cost.number, "document": cost.document.value, "end": cost.end,
            "from_step": cost.from_step, "durable_step": cost.durable_step, "usd": _text(usd),
            "price_usd_per_hour": str(cost.price_usd_per_hour),
            "start_s": dict(cost.start_s),
            "seconds_by_category": {name.value: round(value, 3) for name, value in cost.seconds.items()}}


def cost_report(view: RunView) -> CostReport:
    """Compute the bill of a run; an open attempt is charged as the view says."""
    record, plan = view.record, view.record.plan
    open_number = record.open_attempt.attempt.number if record.open_attempt else None
    is_live = view.status not in (Status.ENDED, Status.UNKNOWN)
    stopped = {event.detail.get("attempt") for event in record.events if event.kind == "stop_requested"}
    held = on_rentals(record.attempts, charged_until(record.attempts, view.charged_to), record.rentals,
                      view.charged_to)
    costs = [attempt_cost(files, on_rental, running=is_live and files.attempt.number == open_number,
                          stopped=files.attempt.number in stopped)
             for files, on_rental in zip(_with_later_knowledge(record.attempts), held, strict=True)]
    offer = plan.offers.get(Document.TRAIN, PlannedOffer()) if plan else PlannedOffer()
    beat = record.training.heartbeat if record.training else None
    return CostReport(
        run_id=record.run_id, attempts=costs, on_demand_usd=_on_demand_usd(costs, offer),
        planned_usd=plan.usd if plan else None, price_is_simulated=offer.price_is_simulated,
        tokens=beat.durable_step * plan.tokens_per_step if beat and plan else 0,
        unused_usd=unused_usd(record.attempts, record.rentals, view.charged_to).quantize(_EXACT),
        controller_usd=controller_usd(record.events, view.charged_to).quantize(_EXACT),
        has_finished=view.status is Status.ENDED and _is_all_done(record))


def _is_all_done(record: RunRecord) -> bool:
    """False for a run that was stopped half-way, or that came to no benchmark."""
    trained = record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    return trained and record.bench_end is None


def amounts_that_add_up(amounts: Sequence[Decimal], places: Decimal) -> list[Decimal]:
    """Round amounts so that what is shown adds up to the rounded total, as a bill must.

    Everything is rounded down; the units that are then missing go to the largest remainders.

    Args:
        amounts: Zero or more each.
        places: The unit: 0.01 for cents.
    """
    target = sum(amounts, Decimal(0)).quantize(places)
    rounded = [amount.quantize(places, rounding=ROUND_DOWN) for amount in amounts]
    missing = int((target - sum(rounded, Decimal(0))) / places)
    by_remainder = sorted(range(len(amounts)), key=lambda index: rounded[index] - amounts[index])
    for index in by_remainder[:missing]:
        rounded[index] += places
    return rounded


def attempt_cost(files: AttemptFiles, on_rental: OnRental, *, running: bool, stopped: bool) -> AttemptCost:
    """Split one attempt's billed seconds into categories; `stopped`: its user asked it to end."""
    total_s = max(0.0, (on_rental.until - files.attempt.billed_from).total_seconds())
    beat, price = files.heartbeat, files.attempt.price_usd_per_hour
    if on_rental.gpu_usd is not None and total_s:
        price = (on_rental.gpu_usd * 3600 / Decimal(total_s)).quantize(_EXACT).normalize()
    beside = {Category.DISK: on_rental.disk_usd, Category.NETWORK: on_rental.network_usd}
    return AttemptCost(
        number=files.attempt.number, document=files.attempt.document, price_usd_per_hour=price,
        seconds=_split(files, total_s, _rest_category(files, running=running, stopped=stopped)),
        beside={category: usd.quantize(_EXACT) for category, usd in beside.items() if usd},
        from_step=beat.resumed_from_step if beat else 0, durable_step=beat.durable_step if beat else 0,
        end=_end_words(files, running=running, stopped=stopped), start_s=beat.start_s if beat else {})


def _with_later_knowledge(attempts: Sequence[AttemptFiles]) -> list[AttemptFiles]:
    """The attempts, each with the durable step that its successor found.

    A machine may vanish between a commit and the heartbeat that would tell of it. Where the next
    training attempt resumed from a later step than the last heartbeat knew as durable, that step was
    kept. Training time after the known durable step is kept in proportion to the steps: 20 of 50 such
    steps keep 20/50 of it. What passed after the last heartbeat is in no phase and stays lost.
    """
    found: list[AttemptFiles] = []
    resumed_from = 0
    for files in reversed(attempts):
        beat = files.heartbeat
        if beat and files.attempt.document is Document.TRAIN:
            if resumed_from > beat.durable_step and beat.phases.train_s > 0:
                files = files.model_copy(update={"heartbeat": _durable_at(beat, resumed_from)})
            # An attempt says step 0 until its checkpoint is loaded.
            resumed_from = beat.resumed_from_step if beat.step > 0 else resumed_from
        found.append(files)
    return found[::-1]


def _durable_at(beat: Heartbeat, step: int) -> Heartbeat:
    """A heartbeat as it would have been, had it known of the commit of a later step."""
    unknown_steps = beat.step - beat.durable_step
    share = min(1.0, (step - beat.durable_step) / unknown_steps) if unknown_steps > 0 else 1.0
    kept_s = beat.durable_train_s + share * (beat.phases.train_s - beat.durable_train_s)
    return beat.model_copy(update={"durable_step": step, "durable_train_s": kept_s})


def _split(files: AttemptFiles, total_s: float, rest: Category) -> dict[Category, float]:
    if files.attempt.document is Document.BENCH:
        return {Category.BENCHMARK: total_s}
    beat = files.heartbeat
    if beat is None or beat.phases.train_s == 0:
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
    seconds[rest] = seconds.get(rest, 0.0) + left_s
    return seconds


def _rest_category(files: AttemptFiles, *, running: bool, stopped: bool) -> Category:
    """What the time is that no durable checkpoint covers."""
    if running:
        return Category.UNSAVED
    if files.end is None or files.end.preempted or files.end.exit_code is None:
        return Category.LOST
    if files.end.exit_code in (0, 75) and not files.end.hung:
        return Category.SETUP
    return Category.STOPPED if stopped else Category.CRASHED


def _end_words(files: AttemptFiles, *, running: bool, stopped: bool) -> str:
    if running:
        return "running"
    if files.end and files.end.preempted:
        return "preempted"
    if files.end and files.end.wrong_machine:
        return "wrong machine"
    if files.end and files.end.hung:
        return "hung"
    if files.end is None or files.end.exit_code is None:
        return "vanished"
    code = files.end.exit_code
    saved = "saved" if files.attempt.document is Document.TRAIN else "stopped"  # a benchmark saves nothing
    names = {0: _DONE, 75: saved, 78: "bad recipe", 70: "broke"}
    if stopped and code not in names:
        return "stopped at once" if code == 128 + signal.SIGKILL else "stopped"
    return names.get(code, f"crashed ({code})")


def _on_demand_usd(costs: Sequence[AttemptCost], offer: PlannedOffer) -> Decimal | None:
    """One undisturbed life: one set-up, the useful work with its saves and evaluations, one benchmark.

    The set-up is that of the first attempt that reached training, the benchmark the one that succeeded.
    None before any training: there is no work to compare.
    """
    price = offer.on_demand_usd_per_hour
    trained = [cost.seconds for cost in costs if Category.USEFUL in cost.seconds]
    if price is None or not trained:
        return None
    work = sum(value for seconds in trained for category, value in seconds.items()
               if category is not Category.SETUP and category not in _WASTED)
    benchmarks = [cost.seconds for cost in costs if cost.document is Document.BENCH and cost.end == _DONE]
    benchmark = benchmarks[-1][Category.BENCHMARK] if benchmarks else 0.0
    return price * Decimal(trained[0][Category.SETUP] + work + benchmark) / 3600


def _text(usd: Decimal) -> str:
    return f"{usd:.6f}"
