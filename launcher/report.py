"""Where the money of a run went, to the cent: by category, by attempt, planned beside spent (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_DOWN, Decimal
from typing import Any

from launcher.attempt_cost import (
    DONE,
    EXACT,
    STARTING,
    WASTED,
    AttemptCost,
    Category,
    Fate,
    attempt_cost,
)
from launcher.cost import Range
from launcher.ledger_doubts import doubts
from launcher.recorded import PlannedOffer, Throughput
from launcher.rental_cost import on_rentals, unused_rentals
from launcher.run_record import RunRecord, RunView, Status
from trainer.contract import Document, Outcome
from trainer.run_folder import AttemptFiles, Heartbeat
from trainer.spent import charged_until, controller_usd

_MICRO = Decimal("1e-6")
_BILLION = 10**9


@dataclass(frozen=True)
class CostReport:
    """The bill of a run, in our own arithmetic; the provider's bill is the provider's word.

    Attributes:
        status: Where the run is.
        planned_usd: Of the plan; None if it had no prices, or if this is not the bill of the whole run.
        before_usd: What is not in it, since it began before the moment that was asked for.
        on_demand_usd: The same work on an on-demand machine that nobody takes away.
        on_demand_usd_per_hour: Of the machine that trains, by which that is told.
        tokens: Seen by durable training steps.
        beside: Dollars of no attempt: machines on which none has begun, and who supervises the run.
        has_finished: All that was planned is done, so that planned and spent can be compared.
        doubts: What in the record contradicts itself, a sentence each.
        generation_usd_per_million_tokens: Of generated tokens, by the benchmark, at the price of its machine.
    """

    run_id: str
    status: Status
    attempts: Sequence[AttemptCost]
    planned_usd: Range | None
    before_usd: Decimal
    on_demand_usd: Decimal | None
    on_demand_usd_per_hour: Decimal | None
    price_is_simulated: bool
    tokens: int
    beside: Mapping[Category, Decimal]
    has_finished: bool
    doubts: Sequence[str]
    generation_usd_per_million_tokens: Decimal | None = None

    @property
    def spent_usd(self) -> Decimal:
        """Total of the run."""
        return sum((attempt.usd for attempt in self.attempts), sum(self.beside.values(), Decimal(0)))

    def by_category(self) -> dict[Category, Decimal]:
        """Dollars of every category, zeros included; adds up to `spent_usd`, exactly."""
        return added_up([*(attempt.usd_by_category for attempt in self.attempts), self.beside])

    @property
    def goodput(self) -> float | None:
        """Share of the paid training time that moved training forward; None before there is any."""
        training = [attempt for attempt in self.attempts if attempt.document is Document.TRAIN]
        paid = sum(sum(attempt.seconds.values()) for attempt in training)
        useful = sum(attempt.seconds.get(Category.USEFUL, 0.0) for attempt in training)
        return useful / paid if paid else None

    @property
    def usd_per_billion_tokens(self) -> Decimal | None:
        """All that was spent, by 10^9 useful tokens; None before there are any."""
        return self.spent_usd / self.tokens * _BILLION if self.tokens else None

    @property
    def unsaved_usd(self) -> Decimal:
        """What losing the machine now would cost."""
        return sum((attempt.unsaved_usd for attempt in self.attempts), Decimal(0))

    @property
    def preemptions_usd(self) -> Decimal:
        """What machines that were taken have cost: work done again, and the starts after each.

        Saves, which such losses make necessary, are not in it: they are `checkpoint stall`.
        """
        total, was_taken = Decimal(0), False
        for cost in self.attempts:
            usd = cost.usd_by_category
            total += usd.get(Category.RECOMPUTED, Decimal(0))
            if cost.document is Document.BENCH:
                total += usd.get(Category.BENCHMARK, Decimal(0)) if cost.was_taken else 0
            elif was_taken:
                total += sum((usd.get(category, Decimal(0)) for category in STARTING), Decimal(0))
            was_taken = cost.was_taken or (was_taken and not cost.has_trained)
        return total

    def shown_usd(self, digits: int) -> tuple[list[Decimal], Decimal]:
        """Dollars of each attempt, and those of none, rounded so that they add up to the rounded total."""
        beside = sum(self.beside.values(), Decimal(0))
        *attempts, rest = amounts_that_add_up([*(attempt.usd for attempt in self.attempts), beside],
                                              Decimal(1).scaleb(-digits))
        return attempts, rest

    def rows(self) -> list[dict[Category, Decimal]]:
        """Dollars of each attempt, and last those of none, by category, in millionths.

        What is made of them adds up as it stands, by rows, by columns and in all.
        """
        parts = [*(attempt.usd_by_category for attempt in self.attempts), self.beside]
        cells = [part.get(category, Decimal(0)) for part in parts for category in Category]
        shown = iter(amounts_that_add_up(cells, _MICRO))
        return [{category: next(shown) for category in Category} for _ in parts]

    def to_json(self) -> dict[str, Any]:
        """The stable form that `ldlm cost RUN --json` prints. Dollars are text with six decimals.

        run_id, status: text
        spent_usd: total; both `usd_by_category`, and `usd` of attempts with `beside_attempts_usd`, add up to
            it exactly as they stand
        planned_usd: [p10, p50, p90] of the plan, or null
        before_usd: of what began before --since, and is in none of these figures
        on_demand_usd: the same work undisturbed, or null
        on_demand_usd_per_hour: of the machine that trains, by the plan, not rounded, or null
        preemptions_usd: what machines that were taken have cost, of what was spent
        unsaved_usd: what losing the machine now would cost, of what was spent
        usd_per_billion_tokens, goodput (in [0, 1]): or null before there is any training
        tokens: useful ones
        price_is_simulated: nobody sends a bill
        usd_by_category: all categories of `launcher.attempt_cost.Category`, zeros included
        beside_attempts_usd: by category, of machines on which no attempt began and of supervision
        attempts: number, document (`train`, `bench`), cloud, region, hardware, market,
            price_usd_per_hour (text, not rounded), began_at, ended_at (ISO 8601, UTC; null while it
            runs), end (a word), reason, from_step, durable_step, usd, usd_by_category (those with seconds
            or dollars), seconds_by_category, start_s (seconds to the first step, by part)
        doubts: sentences about records that contradict each other
        """
        *rows, beside = self.rows()
        plan, asked = self.planned_usd, self.on_demand_usd_per_hour
        return {
            "run_id": self.run_id, "status": self.status.value,
            "spent_usd": _text(sum(added_up([*rows, beside]).values(), Decimal(0))),
            "planned_usd": [_text(value) for value in (plan.low, plan.mid, plan.high)] if plan else None,
            "before_usd": _text(self.before_usd), "on_demand_usd": _text_or_none(self.on_demand_usd),
            "on_demand_usd_per_hour": f"{asked:f}" if asked is not None else None,
            "preemptions_usd": _text(self.preemptions_usd), "unsaved_usd": _text(self.unsaved_usd),
            "usd_per_billion_tokens": _text_or_none(self.usd_per_billion_tokens), "goodput": self.goodput,
            "tokens": self.tokens, "price_is_simulated": self.price_is_simulated,
            "usd_by_category": _texts(added_up([*rows, beside])),
            "beside_attempts_usd": _texts({name: beside[name] for name in self.beside}),
            "attempts": [_attempt_json(cost, row) for cost, row in zip(self.attempts, rows, strict=True)],
            "doubts": list(self.doubts),
        }


def _attempt_json(cost: AttemptCost, usd: Mapping[Category, Decimal]) -> dict[str, Any]:
    ended = cost.ended_at.isoformat() if cost.ended_at else None
    return {"attempt": cost.number, "document": cost.document.value, "cloud": cost.cloud,
            "region": cost.region, "hardware": cost.hardware, "market": cost.market,
            "price_usd_per_hour": f"{cost.price_usd_per_hour:f}", "began_at": cost.began_at.isoformat(),
            "ended_at": ended, "end": cost.end, "reason": cost.reason, "from_step": cost.from_step,
            "durable_step": cost.durable_step, "usd": _text(sum(usd.values(), Decimal(0))),
            "usd_by_category": _texts({name: usd[name] for name in cost.usd_by_category}),
            "seconds_by_category": {name.value: round(value, 3) for name, value in cost.seconds.items()},
            "start_s": dict(cost.start_s)}


def cost_report(view: RunView, since: datetime | None = None) -> CostReport:
    """Compute the bill of a run; an open attempt is charged as the view says.

    Args:
        view: Of the run.
        since: Leave out attempts that began before, machines that were rented before, and supervision.
    """
    record, plan = view.record, view.record.plan
    open_number = record.open_attempt.attempt.number if record.open_attempt else None
    is_live = view.status not in (Status.ENDED, Status.UNKNOWN)
    stopped = {event.detail.get("attempt") for event in record.events if event.kind == "stop_requested"}
    untils = charged_until(record.attempts, view.charged_to)
    held = on_rentals(record.attempts, untils, record.rentals, view.charged_to)
    costs = [attempt_cost(files, on_rental, Fate(running=is_live and files.attempt.number == open_number,
                                                 stopped=files.attempt.number in stopped))
             for files, on_rental in zip(_with_later_knowledge(record.attempts), held, strict=True)]
    offers, beside = plan.offers if plan else {}, _beside(view, since)
    of_training = offers.get(Document.TRAIN, PlannedOffer())
    before_usd = Decimal(0)
    if since is not None:
        before_usd = sum((cost.usd for cost in costs if cost.began_at < since), Decimal(0)) + sum(
            _beside(view, None).values(), Decimal(0)) - sum(beside.values(), Decimal(0))
        costs = [cost for cost in costs if cost.began_at >= since]
    return CostReport(
        run_id=record.run_id, status=view.status, attempts=costs, on_demand_usd=_on_demand_usd(costs, offers),
        planned_usd=plan.usd if plan and not before_usd else None, before_usd=before_usd,
        on_demand_usd_per_hour=of_training.on_demand_usd_per_hour,
        price_is_simulated=of_training.price_is_simulated,
        tokens=_num_steps(record, costs) * plan.tokens_per_step if plan else 0, beside=beside,
        has_finished=since is None and view.status is Status.ENDED and _is_all_done(record),
        doubts=[*view.doubts, *doubts(record, untils)],
        generation_usd_per_million_tokens=_generation_usd(record))


def _generation_usd(record: RunRecord) -> Decimal | None:
    """As the benchmark has written it; None without one, or of a version that did not count it."""
    if record.bench is None:
        return None
    return Throughput.model_validate(record.bench["throughput"]).usd_per_million_tokens


def _num_steps(record: RunRecord, costs: Sequence[AttemptCost]) -> int:
    """Durable steps that these attempts have added."""
    beat = record.training.heartbeat if record.training else None
    begins = next((cost.from_step for cost in costs if cost.has_trained), None)
    return max(0, beat.durable_step - begins) if beat and begins is not None else 0


def _beside(view: RunView, since: datetime | None) -> dict[Category, Decimal]:
    """Dollars of no attempt, where there are some."""
    record, now = view.record, view.charged_to
    unused = [rental for rental in unused_rentals(record.attempts, record.rentals)
              if since is None or rental.rented_at >= since]
    supervised = controller_usd(record.events, now)
    if since is not None and since < now:
        supervised -= controller_usd([event for event in record.events if event.at < since], since)
    found = {Category.PROVISIONING: sum((rental.alone_gpu_usd(now) for rental in unused), Decimal(0)),
             Category.DISK: sum((rental.disk_usd(now) for rental in unused), Decimal(0)),
             Category.CONTROLLER: supervised}
    return {category: usd.quantize(EXACT) for category, usd in found.items() if usd}


def _is_all_done(record: RunRecord) -> bool:
    """False for a run that was stopped half-way, or that came to no benchmark."""
    trained = record.outcome is not None and record.outcome.outcome is Outcome.FINISHED
    return trained and record.bench_end is None


def added_up(parts: Sequence[Mapping[Category, Decimal]]) -> dict[Category, Decimal]:
    """Every category over all parts, zeros included."""
    return {category: sum((part.get(category, Decimal(0)) for part in parts), Decimal(0))
            for category in Category}


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


def _on_demand_usd(costs: Sequence[AttemptCost], offers: Mapping[Document, PlannedOffer]) -> Decimal | None:
    """One undisturbed life: one start, the useful work with its saves and evaluations, one benchmark.

    The start is that of the first attempt that reached training; the benchmark the one that succeeded, or
    is at work, on demand on its own machine, or at what was paid where that has no such price.
    None before any training: there is no work to compare.
    """
    price = offers.get(Document.TRAIN, PlannedOffer()).on_demand_usd_per_hour
    trained = [cost.seconds for cost in costs if cost.has_trained]
    if price is None or not trained:
        return None
    start = sum(trained[0].get(category, 0.0) for category in (Category.PROVISIONING, Category.SETUP))
    work = sum(value for seconds in trained for category, value in seconds.items()
               if category not in (*STARTING, *WASTED))
    usd = price * Decimal(start + work)
    if benches := [cost for cost in costs
                   if cost.document is Document.BENCH and (cost.end == DONE or cost.ended_at is None)]:
        asked = offers.get(Document.BENCH, PlannedOffer()).on_demand_usd_per_hour
        usd += (asked or benches[-1].price_usd_per_hour) * Decimal(sum(benches[-1].seconds.values()))
    return usd / 3600


def _texts(usd: Mapping[Category, Decimal]) -> dict[str, str]:
    return {category.value: _text(amount) for category, amount in usd.items()}


def _text_or_none(usd: Decimal | None) -> str | None:
    return None if usd is None else _text(usd)


def _text(usd: Decimal) -> str:
    return f"{usd:.6f}"
