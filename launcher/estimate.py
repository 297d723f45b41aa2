"""What a run would take: how it lies on its hardware, its speed, its parts in hours and dollars. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal

from launcher.advice import Changes, changed_offer, changed_recipe
from launcher.benchmarks import Benchmarked
from launcher.cost import Range, hours_range, total, usd_range
from launcher.fit import Fit, fit
from launcher.frozen import Frozen
from launcher.offers import Offer
from launcher.plan_sizes import Mirrors, Sizes, plan_sizes
from launcher.recipe import Recipe
from launcher.saves import SavesPlan, plan_saves
from launcher.speed import GUESS_FACTORS, MeasuredSpeed, Speed, same_speeds, statistics_s, training_speed
from launcher.starts import StartPlan, plan_start
from launcher.wallets import Wallet
from trainer.config import TrainConfig
from trainer.contract import Document
from trainer.encoder_shape import EncoderShape
from trainer.interval import evaluation_s

PartName = Literal["set-up", "training", "evaluating and saving", "after losses", "waiting",
                   "disk, network, store", "benchmark"]
_BENCH_S = {"local": 12.0, "cloud": 720.0}  # local: measured, smoke; cloud: guess, set-up included


@dataclass(frozen=True)
class Done:
    """What a run that is resumed has behind it.

    Attributes:
        step: Newest step whose checkpoint is durable.
        spent_usd: Over all attempts.
        has_trained: Training has finished: only the benchmark is left.
        paid_h: Hours that its machines were paid for.
    """

    step: int
    spent_usd: Decimal
    has_trained: bool
    paid_h: float = 0.0


class Part(Frozen):
    """One part of the bill."""

    name: PartName
    document: Document
    hours: Range
    usd: Range | None


@dataclass(frozen=True)
class Case:
    """What an estimate is made from.

    Attributes:
        shape: Of the recipe's token encoder; None when it is not known, and then not counted.
        offers: One per document.
        history: Speeds of earlier runs, oldest first; those of the same hardware and config are used.
        done: Of the run that is resumed; None for a new one.
        mirrors: Of the encoder's weights, in the recipe's store.
        others: Per document what may stand behind its offer, in order.
        now: UTC; None: a deadline that is a date counts for nothing.
        controller_usd_per_hour: Of who supervises the run; None: nobody asks money for that.
        wallets: The user's credits, as they are now.
        benchmarks: Of training on some GPUs, as they are committed.
        text_tokens: To train on; None when it is not known.
    """

    recipe: Recipe
    shape: EncoderShape | None
    offers: Mapping[Document, Offer]
    history: Sequence[MeasuredSpeed]
    done: Done | None = None
    mirrors: Mirrors = None
    controller_usd_per_hour: Decimal | None = None
    others: Mapping[Document, Sequence[Offer]] = field(default_factory=dict)
    now: datetime | None = None
    wallets: Sequence[Wallet] = ()
    benchmarks: Sequence[Benchmarked] = ()
    text_tokens: int | None = None

    @property
    def deadline_h(self) -> float | None:
        """Hours until training has to have ended, less than 0 where it had to before; None: no deadline."""
        limits = self.recipe.limits
        if self.now is None:
            return limits.deadline_hours
        deadline = limits.deadline_at(self.now)
        return None if deadline is None else (deadline - self.now).total_seconds() / 3600

    def candidates(self, document: Document) -> tuple[Offer, ...]:
        """The offer of a document and what may stand behind it."""
        return (self.offers[document], *self.others.get(document, ()))

    def changed(self, changes: Changes) -> "Case":
        """The same with changes of training, of limits and of the GPUs that train."""
        train = changed_offer(self.offers[Document.TRAIN], changes)
        return replace(self, recipe=changed_recipe(self.recipe, changes),
                       offers={**self.offers, Document.TRAIN: train})


def case_of(recipe: Recipe, shape: EncoderShape | None, offers: Mapping[Document, Sequence[Offer]],
            history: Sequence[MeasuredSpeed], done: Done | None = None, mirrors: Mirrors = None,
            controller_usd_per_hour: Decimal | None = None) -> Case:
    """The case of the first offer of each document, with the others behind it. See `Case`."""
    return Case(recipe, shape, {document: found[0] for document, found in offers.items()}, history, done,
                mirrors, controller_usd_per_hour,
                {document: tuple(found[1:]) for document, found in offers.items()})


@dataclass(frozen=True)
class Estimate:
    """What is left of a run to do, whatever its limits are: undisturbed, until it is forecast.

    Attributes:
        sizes, saves: None when the token encoder's size is not known.
        hours: Train and benchmark, one after the other.
        training_hours: Of what the deadline is about: the benchmark has hours of its own, where anything is
            left of training.
        controller_usd: Of who supervises the run for these hours; None: nobody asks money for that.
        usd: All together; None when a price is not known.
    """

    fitted: Fit
    speed: Speed
    sizes: Sizes | None
    saves: SavesPlan | None
    start: StartPlan
    parts: tuple[Part, ...]
    hours: Range
    training_hours: Range
    controller_usd: Range | None
    usd: Range | None


def estimate_of(case: Case) -> Estimate:
    """Hours and dollars. Raises as `fit`."""
    recipe, shape, train = case.recipe, case.shape, case.offers[Document.TRAIN]
    fitted = fit(recipe, shape, train)
    earlier = [past.to_scale for past in case.history if past.to_scale]
    speed = training_speed(fitted.config, shape, train, fitted.world_size,
                           same_speeds(recipe.train, train, case.history), (*earlier, *case.benchmarks))
    sizes = plan_sizes(fitted, shape, train, speed.tokens_per_s, case.mirrors,
                       recipe.store) if shape else None
    saves = plan_saves(recipe.train, speed.tokens_per_s, sizes.checkpoint_bytes, fitted.world_size, train,
                       recipe.store) if sizes else None
    measuring_s = statistics_s(fitted.config, shape, train, fitted.world_size) if shape else 0.0
    start = plan_start(train, recipe.store, sizes, saves, measuring_s)
    parts = _parts(case, speed, start, saves)
    hours, price = total(part.hours for part in parts), case.controller_usd_per_hour
    controller = None if price is None else usd_range(hours, price)
    priced = [part.usd for part in parts if part.usd is not None]
    usd = total([*priced, *([controller] if controller else [])]) if len(priced) == len(parts) else None
    training = total(part.hours for part in parts[:-1] or parts)
    return Estimate(fitted, speed, sizes, saves, start, parts, hours, training, controller, usd)


def behind(config: TrainConfig, done: Done | None) -> tuple[int, Decimal]:
    """Steps that are durable, and dollars that are spent."""
    if done is None:
        return 0, Decimal(0)
    step = config.steps if done.has_trained else min(done.step, config.steps)
    return step, done.spent_usd.quantize(Decimal("0.000001"))


def _parts(case: Case, speed: Speed, start: StartPlan, saves: SavesPlan | None) -> tuple[Part, ...]:
    offer = case.offers[Document.BENCH]
    hours = Range.around(_BENCH_S["local" if offer.is_local else "cloud"] / 3600, *GUESS_FACTORS)
    benchmark = _part("benchmark", Document.BENCH, hours, offer)
    if case.done and case.done.has_trained:
        return (benchmark,)
    return (*_training_parts(case, speed, start, saves), benchmark)


def _training_parts(case: Case, speed: Speed, start: StartPlan, saves: SavesPlan | None
                    ) -> tuple[Part, ...]:
    """Set-up, and the steps that are left with their evaluations and saves."""
    config, offer, rate = case.recipe.train, case.offers[Document.TRAIN], speed.tokens_per_s
    from_step, _ = behind(config, case.done)
    training = hours_range((config.steps - from_step) * config.tokens_per_step, rate, *speed.factors)
    evaluations = config.steps // config.evaluate_every_steps - from_step // config.evaluate_every_steps
    number = num_saves(config, from_step, float(training.mid), saves)
    saving_s = number * saves.stall_s if saves else 0.0
    beside = Range.around((evaluations * evaluation_s(config, rate) + saving_s) / 3600, *GUESS_FACTORS)
    uploads = Range.around(number * float(saves.upload_usd), *GUESS_FACTORS) if saves else total([])
    setup = Range.around((start.again_s if from_step else start.first_s) / 3600, *GUESS_FACTORS)
    return (_part("set-up", Document.TRAIN, setup, offer), _part("training", Document.TRAIN, training, offer),
            _part("evaluating and saving", Document.TRAIN, beside, offer, uploads))


def num_saves(config: TrainConfig, from_step: int, hours: float, saves: SavesPlan | None) -> float:
    """By time, and after so many steps."""
    every = config.checkpoint.every_steps
    by_step = config.steps // every - from_step // every if every else 0
    return by_step + (hours * 3600 / saves.every_s if saves else 0.0)


def _part(name: PartName, document: Document,
          hours: Range, offer: Offer, besides: Range | None = None) -> Part:
    price = offer.price_usd_per_hour
    usd = None if price is None else total([usd_range(hours, price), *([besides] if besides else [])])
    return Part(name=name, document=document, hours=hours, usd=usd)
