"""Recipe + offers -> Plan: hardware, hours, dollars as a range, warnings. Pure, spends nothing."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_UP, Decimal
from typing import Literal

from launcher.advice import changed_offer, changed_recipe, what_to_type
from launcher.cost import Range, hours_range, total, usd_range
from launcher.errors import NoOfferError, RecipeError
from launcher.fit import fit
from launcher.frozen import Frozen
from launcher.offers import Machine, Offer
from launcher.plan_sizes import Sizes, plan_sizes
from launcher.plan_warnings import plan_warnings
from launcher.recipe import HIGHEST_LIMIT, LIMIT_OPTIONS, Candidate, Recipe
from launcher.speed import GUESS_FACTORS, MeasuredSpeed, Speed, same_speeds, training_speed
from trainer.config import Placement, TrainConfig, grad_accum_steps
from trainer.contract import Document
from trainer.encoder_shape import EncoderShape

_SETUP_S = {"local": 15.0, "cloud": 600.0}  # local: measured, smoke; cloud: guess, with install and data
_BENCH_S = {"local": 12.0, "cloud": 720.0}  # local: measured, smoke; cloud: guess, set-up included
_SAVE_S = 0.2  # measured with smoke, 0.12: training stands still for one checkpoint
_SNAPSHOT_BYTES_PER_S = 5e9  # guess: copied from GPU to host memory, by each rank its share
_BENCH_GPU = "'RTX5090:1'"
# Measured with smoke: cost of a held-out token over that of a trained one. No backward, but the denoiser
# runs at eight times and the decoder twice.
_EVALUATION_SHARE = 1.3


@dataclass(frozen=True)
class Done:
    """What a run that is resumed has behind it.

    Attributes:
        step: Newest step whose checkpoint is durable.
        spent_usd: Over all attempts.
        has_trained: Training has finished: only the benchmark is left.
    """

    step: int
    spent_usd: Decimal
    has_trained: bool


class Part(Frozen):
    """One part of the bill."""

    name: Literal["set-up", "training", "evaluating and saving", "benchmark"]
    document: Document
    hours: Range
    usd: Range | None


class Plan(Frozen):
    """A recipe, chosen offers, hours and dollars. What the user approves, and what is rendered.

    Attributes:
        done_steps: Steps of a resumed run that are durable; the parts are of what is left.
        spent_usd: What a resumed run has cost so far; it counts towards the cap.
        hours: Train and benchmark, one after the other.
        usd: None when a price is not known.
        bench_reserve_usd: Part of the cap that training leaves for the benchmark.
        deadline: UTC; training stops itself before it.
        speed_source: Where tokens_per_s comes from, for the reader.
        encoder_placement: Resolved: where the frozen weights lie.
        sizes: None when the token encoder's size is not known.
        without_encoder: Its size is not known, so hours and dollars are without it: they are lower bounds,
            and whether it fits was not checked.
    """

    recipe: str
    run_id: str
    planned_at: datetime
    offers: dict[Document, Offer]
    ranks_per_node: int
    world_size: int
    grad_accum_steps: int
    steps: int
    done_steps: int = 0
    spent_usd: Decimal = Decimal(0)
    tokens_per_step: int
    tokens_per_s: float
    speed_source: str
    parts: tuple[Part, ...]
    hours: Range
    usd: Range | None
    max_cost_usd: Decimal
    bench_reserve_usd: Decimal
    deadline: datetime | None
    warnings: tuple[str, ...]
    encoder_placement: Placement = "gpu"
    sizes: Sizes | None = None
    without_encoder: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that training sees."""
        return self.steps * self.tokens_per_step

    def digest(self) -> str:
        """SHA-256 over everything in the plan, as 64 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def choose(recipe: Recipe, infra: str | None, machine: Machine) -> dict[Document, Candidate]:
    """The candidates of a run: what `--infra` asks for, else this machine, else the recipe's first.

    `--infra gcp` takes any region that the recipe names, `--infra gcp/us-central1` also narrows a
    candidate that names none. A local candidate whose GPUs are not here comes last: its plan is for
    another machine. A local run is benchmarked where it trains.

    Raises:
        NoOfferError: The recipe has nothing on `infra`; the message names what it has.
    """
    everything = recipe.hardware.train
    train = sorted(everything, key=lambda candidate: not _possible(candidate, machine))
    wanted = [found for candidate in train if (found := _narrowed(candidate, infra or "local"))
              and (infra or _possible(found, machine))]
    chosen = wanted or ([] if infra else train)
    if not chosen:
        has = list(dict.fromkeys(candidate.infra for candidate in everything))
        others = f" (the recipe also has {', '.join(has[1:])})" if has[1:] else ""
        here = ' (--set "hardware.train=[{infra: local}]" takes this machine)' if infra == "local" else ""
        raise NoOfferError(f"recipe {recipe.name} has no hardware on {infra}",
                           place=recipe.place("hardware", "train"),
                           fix=f"use --infra {has[0]}{others}; or add a candidate to hardware.train{here}")
    if chosen[0].is_local:
        return {Document.TRAIN: chosen[0], Document.BENCH: chosen[0]}
    bench = [candidate for candidate in recipe.hardware.bench if not candidate.is_local]
    near = [candidate for candidate in bench if _narrowed(candidate, chosen[0].infra)] or bench
    if not near:
        raise NoOfferError("the recipe benchmarks only on this machine, which a rented run cannot reach",
                           place=recipe.place("hardware", "bench"),
                           fix=f'add --set "hardware.bench=[{{infra: vast, gpu: {_BENCH_GPU}, '
                               'bid_usd_per_hour: 0.60}]"')
    return {Document.TRAIN: chosen[0], Document.BENCH: near[0]}


def _possible(candidate: Candidate, machine: Machine) -> bool:
    return not candidate.is_local or candidate.gpu is None or machine.lacks(candidate.gpu) is None


def _narrowed(candidate: Candidate, infra: str) -> Candidate | None:
    """The candidate if it lies within `infra`, or moved there if `infra` is a region of its cloud."""
    if candidate.infra == infra or candidate.infra.startswith(f"{infra}/"):
        return candidate
    within = not candidate.is_local and infra.startswith(f"{candidate.infra}/")
    return candidate.model_copy(update={"infra": infra}) if within else None


def make_plan(recipe: Recipe, shape: EncoderShape | None, offers: Mapping[Document, Offer],
              history: Sequence[MeasuredSpeed], now: datetime, run_id: str, done: Done | None = None) -> Plan:
    """Work out what a run would take and cost, or what is left of one that is resumed.

    Args:
        shape: Of the recipe's token encoder; None when it is not known, and then not counted.
        offers: One per document.
        history: Speeds of earlier runs, oldest first; those of the same hardware and config are used.
        now: Current time, UTC; deadlines count from it.
        done: Of the run that is resumed; None for a new one.

    Raises:
        RecipeError: The batch does not divide over the ranks of this offer.
        NoOfferError: It does not fit the memory of this offer; or with what is spent, the middle estimate
            is already over the cap; or past the deadline.
    """
    try:
        return _make_plan(recipe, shape, offers, history, now, run_id, done)
    except (RecipeError, NoOfferError) as error:
        if done is not None and any(not key.startswith("limits.") for key in error.changes):
            error.fix = "a run keeps its recipe: resume it on other hardware, with --infra"
        elif error.changes:
            error.fix = what_to_type(error, lambda changes: _make_plan(
                changed_recipe(recipe, changes), shape,
                {**offers, Document.TRAIN: changed_offer(offers[Document.TRAIN], changes)}, history, now,
                run_id, done))
        raise


def _make_plan(recipe: Recipe, shape: EncoderShape | None, offers: Mapping[Document, Offer],
               history: Sequence[MeasuredSpeed], now: datetime, run_id: str, done: Done | None) -> Plan:
    train = offers[Document.TRAIN]
    fitted = fit(recipe, shape, train)
    speed = training_speed(fitted.config, shape, train, fitted.world_size,
                           same_speeds(recipe.train, train, history))
    sizes = plan_sizes(fitted, shape, train) if shape else None
    done_steps, spent = _behind(recipe.train, done)
    parts = _parts(recipe.train, offers, speed, sizes, done)
    hours = total(part.hours for part in parts)
    priced = [part.usd for part in parts if part.usd is not None]
    usd = total(priced) if len(priced) == len(parts) else None
    _refuse_over_cap(recipe, usd, done)
    _refuse_past_deadline(recipe, hours)
    deadline_hours = recipe.limits.deadline_hours
    return Plan(
        recipe=recipe.name, run_id=run_id, planned_at=now, offers=dict(offers),
        ranks_per_node=fitted.ranks_per_node, world_size=fitted.world_size,
        grad_accum_steps=grad_accum_steps(recipe.train, fitted.world_size),
        steps=recipe.train.steps, done_steps=done_steps, spent_usd=spent,
        tokens_per_step=recipe.train.tokens_per_step, tokens_per_s=round(speed.tokens_per_s, 1),
        speed_source=speed.source,
        parts=parts, hours=hours, usd=usd, max_cost_usd=recipe.limits.max_cost_usd,
        bench_reserve_usd=_bench_reserve(parts[-1], recipe.limits.max_cost_usd - spent),
        deadline=now + timedelta(hours=deadline_hours) if deadline_hours else None,
        warnings=tuple(plan_warnings(recipe, shape, offers, fitted, hours, usd, spent)),
        without_encoder=shape is None,
        encoder_placement=_resolved(fitted.config), sizes=sizes,
    )


def _resolved(config: TrainConfig) -> Placement:
    placement = config.token_encoder.placement
    return "gpu" if placement == "auto" else placement


def _behind(config: TrainConfig, done: Done | None) -> tuple[int, Decimal]:
    """Steps that are durable, and dollars that are spent."""
    if done is None:
        return 0, Decimal(0)
    step = config.steps if done.has_trained else min(done.step, config.steps)
    return step, done.spent_usd.quantize(Decimal("0.000001"))


def _parts(config: TrainConfig, offers: Mapping[Document, Offer], speed: Speed, sizes: Sizes | None,
           done: Done | None) -> tuple[Part, ...]:
    offer = offers[Document.BENCH]
    hours = Range.around(_seconds(_BENCH_S, offer) / 3600, *GUESS_FACTORS)
    benchmark = _part("benchmark", Document.BENCH, hours, offer)
    if done and done.has_trained:
        return (benchmark,)
    from_step, _ = _behind(config, done)
    return (*_training_parts(config, offers[Document.TRAIN], speed, sizes, from_step), benchmark)


def _training_parts(config: TrainConfig, offer: Offer, speed: Speed, sizes: Sizes | None,
                    from_step: int) -> tuple[Part, ...]:
    """Set-up, and the steps after `from_step` with their evaluations and saves."""
    rate = speed.tokens_per_s
    training = hours_range((config.steps - from_step) * config.tokens_per_step, rate, *speed.factors)
    evaluations = config.steps // config.evaluate_every_steps - from_step // config.evaluate_every_steps
    evaluated = evaluations * config.evaluate_sequences * config.data.sequence_length * _EVALUATION_SHARE
    every, minutes = config.checkpoint.every_steps, config.checkpoint.every_minutes or 1.0
    saves = config.steps // every - from_step // every if every else float(training.mid) * 60 / minutes
    ranks = offer.ranks_per_node(config.gpus_per_rank) * offer.num_nodes
    save_s = _SAVE_S + (sizes.checkpoint_bytes / ranks / _SNAPSHOT_BYTES_PER_S if sizes else 0.0)
    beside = Range.around(evaluated / rate / 3600 + saves * save_s / 3600, *GUESS_FACTORS)
    fetching_s = sizes.encoder.fetch_s if sizes else 0.0
    setup = Range.around((_seconds(_SETUP_S, offer) + fetching_s) / 3600, *GUESS_FACTORS)
    return (_part("set-up", Document.TRAIN, setup, offer), _part("training", Document.TRAIN, training, offer),
            _part("evaluating and saving", Document.TRAIN, beside, offer))


def _seconds(by_place: Mapping[str, float], offer: Offer) -> float:
    return by_place["local" if offer.is_local else "cloud"]


def _part(name: Literal["set-up", "training", "evaluating and saving", "benchmark"], document: Document,
          hours: Range, offer: Offer) -> Part:
    price = offer.price_usd_per_hour
    usd = None if price is None else usd_range(hours, price)
    return Part(name=name, document=document, hours=hours, usd=usd)


def _bench_reserve(benchmark: Part, left_usd: Decimal) -> Decimal:
    """The benchmark's high estimate; at most half of what is left of the cap, or training could not start."""
    wanted = benchmark.usd.high if benchmark.usd else Decimal(0)
    return max(Decimal(0), min(wanted, left_usd / 2))


def _refuse_over_cap(recipe: Recipe, usd: Range | None, done: Done | None) -> None:
    cap, spent = recipe.limits.max_cost_usd, done.spent_usd if done else Decimal(0)
    needed = usd or total([])
    if spent + needed.mid <= cap:
        return
    so_far = f"has spent ${spent:.4f}, what is left would" if done else "would"
    raise _past_limit(recipe, "max_cost_usd",
                      f"this run {so_far} cost ~${needed.mid:.2f} (${needed.low:.2f} to ${needed.high:.2f}), "
                      "and {name} is " f"${cap}", spent + needed.mid, spent + needed.high)


def _refuse_past_deadline(recipe: Recipe, hours: Range) -> None:
    deadline = recipe.limits.deadline_hours
    if deadline is not None and float(hours.mid) > deadline:
        raise _past_limit(recipe, "deadline_hours",
                          f"this run would take ~{hours.mid:.2f} h ({hours.low:.2f} to {hours.high:.2f} h), "
                          "and {name} is " f"{deadline:g}", hours.mid, hours.high)


def _past_limit(recipe: Recipe, name: str, problem: str, needed: Decimal, at_most: Decimal) -> NoOfferError:
    """A refusal whose change is the least limit that will do: the middle estimate is what decides."""
    place, option = recipe.place("limits", name), LIMIT_OPTIONS[name]
    problem = problem.format(name=option if place.startswith(option) else f"limits.{name}")
    if needed > HIGHEST_LIMIT:
        return NoOfferError(problem, place=place, fix="lower train.steps")
    return NoOfferError(problem, place=place, changes={f"limits.{name}": _up(needed)},
                        note=f"{option} {_up(at_most)} for the p90")


def _up(value: Decimal) -> Decimal:
    """Rounded up to two decimals: a fix that is rounded down would not help."""
    return value.quantize(Decimal("0.01"), rounding=ROUND_UP)
