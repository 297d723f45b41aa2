"""Recipe + offers -> Plan: hardware, hours, dollars as a range, warnings. Pure, spends nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import chain

from launcher.advice import Changes, what_to_type
from launcher.alternatives import Choice
from launcher.availability import Availability
from launcher.cached_states import CachedStates, states_of
from launcher.candidates import Others, other_than_planned, others_for_benchmark, others_for_training
from launcher.cheaper import better, cheaper_choice
from launcher.cost import Range, total, usd_range
from launcher.errors import DoesNotFitError, NoOfferError, OverCapError, RecipeError
from launcher.estimate import Case, Done, Estimate, Part, behind, case_of, estimate_of
from launcher.fit import is_copied_from_host
from launcher.forecast import Odds, forecast
from launcher.frozen import Frozen
from launcher.lives import believed, believed_by
from launcher.offers import Offer
from launcher.past_limits import past_limit, refuse_over_hours, refuse_past_deadline, short_usd
from launcher.plan_sizes import Mirrors, Sizes
from launcher.plan_warnings import plan_warnings
from launcher.priced_offers import PricedOffer
from launcher.ranking import Ranked, best_first, ranked, reason_of
from launcher.recipe import Recipe
from launcher.saves import SavesPlan, check_promise
from launcher.speed import MeasuredSpeed, SpeedOrigin
from launcher.starts import StartPlan
from launcher.uncounted import uncounted_usd
from trainer.config import Placement, TrainConfig, grad_accum_steps
from trainer.contract import Document
from trainer.encoder_shape import EncoderShape
from trainer.run_folder import CONTROLLER_PRICE


class Plan(Frozen):
    """A recipe, chosen offers, hours and dollars. What the user approves, and what is rendered.

    Attributes:
        offers: One per document; hours and dollars are theirs.
        others: Where SkyPilot goes when it cannot have those, in this order.
        predicted_micro_batch: Sequences at a time, where `auto` leaves that to a start: the most that fit by
            arithmetic. Memory, speed and accumulation are with these.
        done_steps: Steps of a resumed run that are durable; the parts are of what is left.
        spent_usd: What a resumed run has cost so far; it counts towards the cap.
        hours: Train and benchmark, one after the other.
        controller_usd_per_hour: Of who supervises the run; None: nobody asks money for that.
        controller_usd: The same for these hours.
        usd: All together; None when a price is not known. Its percentiles are not sums of those of the parts.
        ranking: Of all that could train it, the best first; empty where nothing was compared.
        choice: Why the first of it, in one line; None where there was nothing to choose.
        bench_reserve_usd: Part of the cap that training leaves for the benchmark.
        uncounted_usd: Part of it that is left for what no node counts, see `launcher/uncounted.py`.
        max_hours: Paid for, over all attempts; None: no such limit.
        bench_reserve_hours: Part of them that training leaves for the benchmark.
        deadline: UTC; training stops itself before it.
        speed_origin: Where tokens_per_s comes from; None: by a plan of before there was a word for it.
        speed_source: The same for the reader.
        availability: How long machines that train live, and how long it takes until there is one again; None:
            training is done.
        availability_source: Where that comes from, for the reader.
        encoder_placement: Resolved: where the frozen weights lie.
        sizes, saves: None when the token encoder's size is not known.
        start: How long it takes until training goes on; None: training is done.
        cached_states: Whether keeping the encoder's hidden states would pay; None: text, price or size is not
            known, or training is done.
        without_encoder: Its size is not known, so hours and dollars are without it: they are lower bounds,
            and whether it fits was not checked.
    """

    recipe: str
    run_id: str
    planned_at: datetime
    offers: dict[Document, Offer]
    others: dict[Document, tuple[Offer, ...]] = {}
    ranks_per_node: int
    world_size: int
    grad_accum_steps: int
    predicted_micro_batch: int | None = None
    steps: int
    done_steps: int = 0
    spent_usd: Decimal = Decimal(0)
    tokens_per_step: int
    tokens_per_s: float
    speed_origin: SpeedOrigin | None = None
    speed_source: str
    availability: Availability | None = None
    availability_source: str | None = None
    parts: tuple[Part, ...]
    hours: Range
    controller_usd_per_hour: Decimal | None = None
    controller_usd: Range | None = None
    usd: Range | None
    odds: Odds
    ranking: tuple[Ranked, ...] = ()
    choice: str | None = None
    max_cost_usd: Decimal
    bench_reserve_usd: Decimal
    uncounted_usd: Decimal = Decimal(0)
    max_hours: float | None = None
    bench_reserve_hours: float = 0.0
    deadline: datetime | None
    warnings: tuple[str, ...]
    encoder_placement: Placement = "gpu"
    sizes: Sizes | None = None
    saves: SavesPlan | None = None
    start: StartPlan | None = None
    cached_states: CachedStates | None = None
    without_encoder: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that training sees."""
        return self.steps * self.tokens_per_step

    @property
    def only_benchmark(self) -> bool:
        """True for a run whose training has finished: no machine is wanted for it."""
        return all(part.document is Document.BENCH for part in self.parts)

    def deadline_of(self, document: Document) -> datetime | None:
        """When a document stops itself. What training has come to by then is benchmarked, in hours of the
        benchmark's own."""
        return self.deadline if document is Document.TRAIN or self.only_benchmark else None

    @property
    def deadline_hours(self) -> float | None:
        """From the plan to its deadline."""
        return (self.deadline - self.planned_at).total_seconds() / 3600 if self.deadline else None

    def candidates(self, document: Document) -> tuple[Offer, ...]:
        """Everything that a document may run on, the first choice first."""
        return (self.offers[document], *self.others.get(document, ()))

    @property
    def listed(self) -> tuple[PricedOffer, ...]:
        """What lists and markets have said of what it may run on."""
        return tuple(offer.listed for document in self.offers for offer in self.candidates(document)
                     if offer.listed)

    @property
    def clouds(self) -> set[str]:
        """Where anything may be rented: `{"vast", "gcp"}`."""
        return {offer.cloud for document in self.offers for offer in self.candidates(document)}

    @property
    def supervision(self) -> dict[str, str]:
        """What the event with which the run starts says of who supervises it: the price, if there is one."""
        price = self.controller_usd_per_hour
        return {} if price is None else {CONTROLLER_PRICE: str(price)}


def best_plan(case: Case, now: datetime, run_id: str) -> Plan:
    """The plan of what is best to train on, of all the candidates of a case. Raises as `make_plan`."""
    case = replace(case, now=now)
    rows = () if case.done and case.done.has_trained else ranked(case)
    if rows and rows[0].problem is None:
        case = best_first(case, rows)
    return _of_first(case, now, run_id).model_copy(update={"ranking": rows, "choice": reason_of(rows)})


def make_plan(recipe: Recipe, shape: EncoderShape | None, offers: Mapping[Document, Sequence[Offer]],
              history: Sequence[MeasuredSpeed], now: datetime, run_id: str, done: Done | None = None,
              mirrors: Mirrors = None, controller_usd_per_hour: Decimal | None = None) -> Plan:
    """Work out what a run would take and cost on the first of its offers, or what is left of a resumed one.

    Args:
        now: Current time, UTC; deadlines count from it.
        recipe, shape, offers, history, done, mirrors, controller_usd_per_hour: See `case_of`. Of the other
            offers those stand behind the first that one task can hold together.

    Raises:
        RecipeError: The batch does not divide over the ranks of this offer.
        NoOfferError: It does not fit the memory of this offer; or with what is spent, the middle estimate
            is already over the cap; or past the deadline.
    """
    case = case_of(recipe, shape, offers, history, done, mirrors, controller_usd_per_hour)
    return _of_first(replace(case, now=now), now, run_id)


def _of_first(case: Case, now: datetime, run_id: str) -> Plan:
    try:
        return _planned(case, now, run_id)
    except (RecipeError, NoOfferError) as error:
        if error.changes or isinstance(error, DoesNotFitError):
            error.fix = _fix(case, error, lambda changes: _planned(case.changed(changes), now, run_id))
        raise


def _fix(case: Case, error: RecipeError | NoOfferError, plan_with: Callable[[Changes], Plan]) -> str:
    is_about_limits = error.changes and all(key.startswith("limits.") for key in error.changes)
    if case.done is None:
        return what_to_type(error, plan_with, lambda refusal, so_far: better(case.changed(so_far), refusal))
    if is_about_limits:
        return what_to_type(error, plan_with, lambda *_: None)
    return "a run keeps its recipe: resume it on other hardware, with --infra"


def _planned(case: Case, now: datetime, run_id: str) -> Plan:
    recipe, (estimate, odds) = case.recipe, forecast(case, estimate_of(case))
    fitted, parts, hours, usd = estimate.fitted, estimate.parts, estimate.hours, estimate.usd
    done_steps, spent = behind(recipe.train, case.done)
    train = None if case.done and case.done.has_trained else case.offers[Document.TRAIN]
    if estimate.saves and train:
        check_promise(recipe, train, estimate.saves)
    _refuse_over_cap(case, estimate)
    refuse_past_deadline(recipe, estimate.training_hours, now)
    refuse_over_hours(recipe, hours, case.done.paid_h if case.done else 0.0)
    others, left_usd = _others(case, estimate), recipe.limits.max_cost_usd - spent
    behind_first = {document: found.offers for document, found in others.items() if found.offers}
    return Plan(
        recipe=recipe.name, run_id=run_id, planned_at=now, offers=dict(case.offers), others=behind_first,
        ranks_per_node=fitted.ranks_per_node, world_size=fitted.world_size,
        grad_accum_steps=grad_accum_steps(fitted.config, fitted.world_size),
        predicted_micro_batch=fitted.config.micro_batch_size if recipe.train.probe_micro_batch else None,
        steps=recipe.train.steps, done_steps=done_steps, spent_usd=spent,
        tokens_per_step=recipe.train.tokens_per_step, tokens_per_s=round(estimate.speed.tokens_per_s, 1),
        speed_origin=estimate.speed.origin, speed_source=estimate.speed.source,
        availability=train and believed(train), availability_source=train and believed_by(train),
        parts=parts, hours=hours, controller_usd_per_hour=case.controller_usd_per_hour,
        controller_usd=estimate.controller_usd, usd=usd, odds=odds, max_cost_usd=recipe.limits.max_cost_usd,
        bench_reserve_usd=_bench_reserve(parts[-1], behind_first.get(Document.BENCH, ()),
                                         left_usd),
        uncounted_usd=uncounted_usd([*case.offers.values(), *chain(*behind_first.values())], estimate.saves,
                                    hours.high, left_usd),
        max_hours=recipe.limits.max_hours,
        bench_reserve_hours=_bench_reserve_hours(case, parts[-1]),
        deadline=recipe.limits.deadline_at(now),
        warnings=(*plan_warnings(case, estimate, _instead_of_copying(case, estimate)),
                  *_about_others(case, others)),
        without_encoder=case.shape is None,
        encoder_placement=_resolved(fitted.config), sizes=estimate.sizes, saves=estimate.saves,
        start=estimate.start if train else None,
        cached_states=states_of(case, estimate) if train else None,
    )


def _others(case: Case, estimate: Estimate) -> dict[Document, Others]:
    """What stands behind the offers of a case; nothing of training that is done."""
    found = {Document.BENCH: others_for_benchmark(case.recipe, case.candidates(Document.BENCH),
                                                  partial(_too_dear, case, Document.BENCH))}
    if not (case.done and case.done.has_trained):
        found[Document.TRAIN] = others_for_training(case.recipe, case.shape, estimate.fitted,
                                                    case.candidates(Document.TRAIN),
                                                    partial(_too_dear, case, Document.TRAIN))
    return found


def _too_dear(case: Case, which: Document, offer: Offer) -> str | None:
    """Why a run whose document went to an offer would not stay within its cap; None if it would.

    A benchmark has to fit with its high estimate: that is kept back from training wherever it will be.
    """
    moved = replace(case, offers={**case.offers, which: offer})
    estimate, _ = forecast(moved, estimate_of(moved))
    if which is Document.TRAIN and estimate.saves:
        try:
            check_promise(case.recipe, offer, estimate.saves)
        except NoOfferError as error:
            return error.problem
    if estimate.usd is None:
        return None
    bench = estimate.parts[-1].usd
    needed = estimate.usd.mid + (bench.high - bench.mid if bench and which is Document.BENCH else Decimal(0))
    _, spent = behind(case.recipe.train, case.done)
    if spent + needed <= case.recipe.limits.max_cost_usd:
        return None
    return f"with it the run would cost ~${spent + needed:.2f} (median), over its cap"


def _about_others(case: Case, others: Mapping[Document, Others]) -> Iterator[str]:
    for document, found in sorted(others.items(), reverse=True):
        yield from found.warnings
        yield from other_than_planned(document, case.offers[document], found.offers)


def _instead_of_copying(case: Case, estimate: Estimate) -> Choice | None:
    """What costs clearly less than the encoder in host memory, where the plan itself has put it there."""
    is_own_choice = case.done is None and case.recipe.train.token_encoder.placement == "auto"
    return cheaper_choice(case, estimate) if is_own_choice and is_copied_from_host(estimate.fitted) else None


def _resolved(config: TrainConfig) -> Placement:
    placement = config.token_encoder.placement
    return "gpu" if placement == "auto" else placement


def _bench_reserve(benchmark: Part, others: Sequence[Offer], left_usd: Decimal) -> Decimal:
    """The benchmark's high estimate, wherever it runs; at most half of what is left of the cap, or training
    could not start."""
    usd = [benchmark.usd, *(usd_range(benchmark.hours, offer.price_usd_per_hour) for offer in others
                            if offer.price_usd_per_hour is not None)]
    wanted = max((one.high for one in usd if one), default=Decimal(0))
    return max(Decimal(0), min(wanted, left_usd / 2))


def _bench_reserve_hours(case: Case, benchmark: Part) -> float:
    """The same in hours that are paid for, where these are limited."""
    if case.recipe.limits.max_hours is None:
        return 0.0
    left_h = case.recipe.limits.max_hours - (case.done.paid_h if case.done else 0.0)
    return round(max(0.0, min(float(benchmark.hours.high), left_h / 2)), 4)


def _refuse_over_cap(case: Case, estimate: Estimate) -> None:
    done, cap = case.done, case.recipe.limits.max_cost_usd
    spent, needed = done.spent_usd if done else Decimal(0), estimate.usd or total([])
    if spent + needed.mid <= cap:
        return
    so_far = f"has spent ${spent:.4f}, what is left would" if done else "would"
    copied = is_copied_from_host(estimate.fitted)
    low, mid, high = (short_usd(value) for value in (needed.low, needed.mid, needed.high))
    problem = (f"this run {so_far} cost ~{mid} (median; {low} to {high})"
               f"{', its encoder copied from host memory for every micro-batch' if copied else ''}, "
               "and {name} is " f"${cap}, {short_usd(spent + needed.mid - cap)} too little")
    raise OverCapError(**past_limit(case.recipe, "max_cost_usd", problem, spent + needed.mid,
                                    spent + needed.high))
