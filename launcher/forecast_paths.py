"""Some hundred ways in which a run may go: losses, waits and speeds drawn at random. Pure, and seeded.

Where nothing but one kind of machine is to be had, a run is followed from loss to loss. Where it may go on
demand to be in time, it is followed from tick to tick, and the policy that decides for runs decides here.
"""

import math
import statistics
from dataclasses import dataclass, field
from functools import cache, lru_cache

import numpy as np

from launcher.availability import CERTAIN, Z90, Availability
from launcher.course import kept_back_h, overhead_of
from launcher.policies_known import UNIFORM_PROGRESS
from launcher.policy import Action, Bools, Floats, Ints, Moment, Policy, Setting

NUM_PATHS = 400
_SEED = 7
# Losses of one path that are drawn at once. After all of them, 2,032, what is left goes on undisturbed, which
# is far over any limit.
_BLOCKS = (16, 32, 64, 128, 256, 512, 1024)
_BENCH_LOSSES = 32  # drawn of a benchmark, whose hours are over before
_TICK_H, _FEWEST_TICKS, _MOST_TICKS = 1 / 6, 60, 400
_SHORTEST_H = 1e-9
Factors = tuple[float, float]


@dataclass(frozen=True)
class Elsewhere:
    """Spot machines of the same kind at another place, to which a run may move under a deadline.

    Attributes:
        price: Over that of the place where it begins.
        is_watched: As `Job.is_watched`.
    """

    availability: Availability
    price: float
    is_watched: bool


@dataclass(frozen=True)
class Job:
    """What a run has to do on one offer: hours as medians.

    Attributes:
        training_h: The steps alone.
        speed_factors: On it: 10th and 90th percentile over the median.
        beside_h: Evaluating and saving.
        first_h, again_h: From a machine to its first step: of a first start, and of one after a loss.
        bench_h: The benchmark, which begins anew after each loss.
        guess_factors: On these four.
        interval_h: From one save to the next.
        save_h: Until one is durable.
        deadline_h: Until training has to have ended; None: there is none.
        on_demand_price: Of the same machines where nobody takes them back, for what is late: so many times
            the price of these; None: none are to be had, or these are such.
        elsewhere: Other places, under a deadline.
        move_price: What a start elsewhere fetches, in hours of the price of these machines.
        is_watched: It is seen what there is while another machine is held; else only an attempt shows it.
        bench_availability: Of the benchmark's machines.
        bench_limit_h: Paid hours, all its attempts together, after which it ends without a result.
    """

    training_h: float
    speed_factors: Factors
    beside_h: float
    first_h: float
    again_h: float
    bench_h: float
    guess_factors: Factors
    interval_h: float
    save_h: float
    availability: Availability
    deadline_h: float | None = None
    on_demand_price: float | None = None
    elsewhere: tuple[Elsewhere, ...] = ()
    move_price: float = 0.0
    is_watched: bool = True
    bench_availability: Availability = CERTAIN
    bench_limit_h: float = math.inf


@dataclass
class Paths:
    """N runs, each with its hours by kind.

    Attributes:
        restarts_h: Of all starts but the first.
        redone_h: Work that was lost and done again.
        on_demand_h: Of all but the waiting, those that were paid on demand.
        dearer_h: What spot elsewhere has cost above the price of these machines, in hours of it.
        num_losses, num_starts: Times.
        bench_h: Paid for the benchmark; not part of the training's deadline.
        bench_waiting_h: Until it has machines, all times together.
    """

    training_h: Floats
    beside_h: Floats
    bench_h: Floats
    first_h: Floats
    restarts_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    redone_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    waiting_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    on_demand_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    dearer_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    bench_waiting_h: Floats = field(default_factory=lambda: np.zeros(NUM_PATHS))
    num_losses: Ints = field(default_factory=lambda: np.zeros(NUM_PATHS, dtype=np.intp))
    num_starts: Ints = field(default_factory=lambda: np.ones(NUM_PATHS, dtype=np.intp))

    @property
    def work_h(self) -> Floats:
        """(N,) that has to be done once."""
        return self.training_h + self.beside_h

    @property
    def held_h(self) -> Floats:
        """(N,) with machines that train."""
        return self.work_h + self.first_h + self.restarts_h + self.redone_h

    @property
    def trained_after_h(self) -> Floats:
        """(N,) from the start until training has ended."""
        return self.held_h + self.waiting_h

    @property
    def bench_took_h(self) -> Floats:
        """(N,) from then until the benchmark has ended."""
        return self.bench_waiting_h + self.bench_h

    @property
    def ended_after_h(self) -> Floats:
        """(N,) from the start until all has ended."""
        return self.trained_after_h + self.bench_took_h


@lru_cache(maxsize=64)
def paths_of(job: Job, policy: Policy = UNIFORM_PROGRESS) -> Paths:
    """N ways in which a job may go; the same each time that it is asked, and not to be written into."""
    rng = np.random.default_rng(_SEED)
    speed, start, bench = (_factor(rng, factors) for factors in
                           (job.speed_factors, job.guess_factors, job.guess_factors))
    paths = Paths(training_h=job.training_h * speed, beside_h=job.beside_h * speed,
                  bench_h=job.bench_h * bench, first_h=job.first_h * start)
    life_h, wait_h = _means(rng, job.availability)
    again_h = job.again_h * start
    if job.deadline_h is not None and _fits(job) and job.on_demand_price is not None:
        _follow_policy(rng, job, paths, again_h, life_h, wait_h, policy)
    else:
        _follow_losses(rng, job, paths, again_h, life_h, wait_h)
    # By chances of its own: how training goes changes nothing of it.
    _follow_benchmark(np.random.default_rng((_SEED, 1)), job, paths)
    return paths


def _fits(job: Job) -> bool:
    """On demand it would end in time; else no policy can help."""
    work_h, deadline_h = job.training_h + job.beside_h, job.deadline_h or 0.0
    return work_h > 0 and work_h + job.again_h <= deadline_h


def _means(rng: np.random.Generator, availability: Availability) -> tuple[Floats, Floats]:
    life_h = availability.hours_to_loss * np.exp(availability.loss_spread * _normal(rng))
    wait_h = availability.hours_to_machine * np.exp(availability.wait_spread * _normal(rng))
    return life_h, wait_h


def _normal(rng: np.random.Generator) -> Floats:
    """(N,) normal numbers, one from each N-th of the distribution: percentiles of them are not random."""
    return rng.permutation(_normal_quantiles())


@cache
def _normal_quantiles() -> Floats:
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((index + 0.5) / NUM_PATHS) for index in range(NUM_PATHS)])


def _factor(rng: np.random.Generator, factors: Factors) -> Floats:
    """(N,) with median 1 and these as 10th and 90th percentiles; logarithms of each half are normal."""
    drawn, (low, high) = _normal(rng), np.log(factors)
    return np.asarray(np.exp(np.where(drawn < 0, -low, high) * drawn / Z90))


def _lost_h(rng: np.random.Generator, job: Job, progress_h: Floats) -> Floats:
    """Work since the newest durable step: anything up to an interval, and the time of a save."""
    return np.minimum(progress_h, job.interval_h * rng.random(progress_h.shape) + job.save_h)


def _follow_losses(rng: np.random.Generator, job: Job, paths: Paths, again_h: Floats, life_h: Floats,
                   wait_h: Floats) -> None:
    left_h, start_h, on = paths.work_h.copy(), paths.first_h.copy(), np.arange(NUM_PATHS)
    is_down = rng.random(NUM_PATHS) * (life_h + wait_h) < wait_h
    for block in _BLOCKS:
        lives_h = life_h[on, None] * rng.exponential(size=(on.size, block))
        starts_h = np.column_stack([start_h[on], np.broadcast_to(again_h[on, None], (on.size, block - 1))])
        progress_h = np.maximum(lives_h - starts_h, 0.0)
        lost_h = _lost_h(rng, job, progress_h)
        gained_h = progress_h - lost_h
        needed_h = starts_h + left_h[on, None] - (np.cumsum(gained_h, axis=1) - gained_h)
        is_lost = np.logical_and.accumulate(lives_h < needed_h, axis=1)
        paths.num_losses[on] += is_lost.sum(axis=1)
        paths.redone_h[on] += np.where(is_lost, lost_h, 0.0).sum(axis=1)
        # What a start that was cut short has taken is taken again; the last start is whole.
        again = np.minimum(lives_h, starts_h) + again_h[on, None] - starts_h
        paths.restarts_h[on] += np.where(is_lost, again, 0.0).sum(axis=1)
        left_h[on] -= np.where(is_lost, gained_h, 0.0).sum(axis=1)
        start_h, on = again_h, on[is_lost[:, -1]]
    paths.num_starts += paths.num_losses
    # The sum of so many exponential times.
    paths.waiting_h += wait_h * rng.standard_gamma(paths.num_losses + is_down)


def _follow_benchmark(rng: np.random.Generator, job: Job, paths: Paths) -> None:
    life_h, wait_h = _means(rng, job.bench_availability)
    is_down = rng.random(NUM_PATHS) * (life_h + wait_h) < wait_h
    lives_h = life_h[:, None] * rng.exponential(size=(NUM_PATHS, _BENCH_LOSSES))
    is_lost = np.logical_and.accumulate(
        (lives_h < paths.bench_h[:, None]) & (np.cumsum(lives_h, axis=1) < job.bench_limit_h), axis=1)
    in_vain_h = np.where(is_lost, lives_h, 0.0).sum(axis=1)
    paths.bench_h = np.minimum(in_vain_h + paths.bench_h, job.bench_limit_h)
    paths.bench_waiting_h += wait_h * rng.standard_gamma(is_lost.sum(axis=1) + is_down)


def _follow_policy(rng: np.random.Generator, job: Job, paths: Paths, again_h: Floats, life_h: Floats,
                   wait_h: Floats, policy: Policy) -> None:
    work_h, given_h = job.training_h + job.beside_h, job.deadline_h or 0.0
    start_h, lost_h = overhead_of(given_h, work_h, job.again_h, job.interval_h + job.save_h)
    deadline_h = given_h - kept_back_h(given_h, work_h, start_h, lost_h)  # that decides, as in the course
    num_ticks = int(np.clip(deadline_h / _TICK_H, _FEWEST_TICKS, _MOST_TICKS))
    setting = Setting(
        work_h=work_h, deadline_h=deadline_h, overhead_h=start_h + lost_h,
        spot_usd_per_hour=1.0, on_demand_usd_per_hour=job.on_demand_price or 1.0,
        tick_h=deadline_h / num_ticks)
    runs = _Runs(job, setting, paths, again_h, policy)
    elsewhere = [_means(rng, one.availability) for one in job.elsewhere]
    life_h, wait_h = (np.column_stack(each) for each in zip((life_h, wait_h), *elsewhere, strict=True))
    market = _Market(rng, life_h, wait_h, setting.tick_h)
    for tick in range(num_ticks):
        if runs.have_ended:
            return
        runs.step(rng, tick * setting.tick_h, market.is_up, market.is_lost)
        market.go_on(rng)
    runs.finish_late()


class _Market:
    """Spot of N runs at P places, looked at once a tick.

    Attributes:
        is_up: (N, P) there is some now.
        is_lost: A machine that was there at the last look is gone, also where there is another by now: else
            short waits would be longer than they are, or their losses not seen.
    """

    def __init__(self, rng: np.random.Generator, life_h: Floats, wait_h: Floats, tick_h: float) -> None:
        wait_h = np.maximum(wait_h, _SHORTEST_H)
        self.is_up = rng.random(life_h.shape) * (life_h + wait_h) < life_h
        self.is_lost = np.zeros(life_h.shape, dtype=bool)
        self._leaves, self._returns = (-np.expm1(-tick_h / np.maximum(hours, _SHORTEST_H))
                                       for hours in (life_h, wait_h))
        # From a loss at any moment of a tick until its end.
        self._returns_at_once = 1 - wait_h / tick_h * self._returns

    def go_on(self, rng: np.random.Generator) -> None:
        """To the next tick."""
        self.is_lost = self.is_up & (rng.random(self.is_up.shape) < self._leaves)
        returns = np.where(self.is_lost, self._returns_at_once, self._returns)
        self.is_up = (self.is_up & ~self.is_lost) | (rng.random(self.is_up.shape) < returns)


class _Runs:
    """N runs on their way through the ticks of a policy.

    Args:
        paths: They are written into these.
    """

    def __init__(self, job: Job, setting: Setting, paths: Paths, again_h: Floats, policy: Policy) -> None:
        self._job, self._setting, self._paths, self._again_h = job, setting, paths, again_h
        self._prices = np.array([1.0, *(one.price for one in job.elsewhere)])
        self._is_watched = np.array([job.is_watched, *(one.is_watched for one in job.elsewhere)])
        self._shape = NUM_PATHS, self._prices.size
        self._course = policy.begin(setting, *self._shape)
        self._left_h = paths.work_h.copy()
        self._start_left_h, self._progress_h = np.zeros(NUM_PATHS), np.zeros(NUM_PATHS)
        self._held, self._place = np.full(NUM_PATHS, int(Action.WAIT)), np.zeros(NUM_PATHS, dtype=np.intp)
        self._is_seen_up = np.zeros(self._shape, dtype=bool)
        self._num_starts = np.zeros(NUM_PATHS, dtype=np.intp)
        self._started_h = np.zeros(NUM_PATHS)

    @property
    def have_ended(self) -> bool:
        """All of them."""
        return not (self._left_h > _SHORTEST_H).any()

    @property
    def _is_here(self) -> Bools:
        """(N, P) where spot is held."""
        at_place = np.arange(self._prices.size) == self._place[:, None]
        return np.asarray(at_place & (self._held == Action.SPOT)[:, None])

    def step(self, rng: np.random.Generator, elapsed_h: float, is_up: Bools, is_lost: Bools) -> None:
        """One look at (N, P) places, see `_Market`; one decision, and what is held until the next."""
        is_on, is_here = self._left_h > _SHORTEST_H, self._is_here
        self._lose(rng, is_on & (is_here & (is_lost | ~is_up)).any(axis=1))
        is_shown = self._is_watched | is_here | (self._held == Action.WAIT)[:, None]
        self._is_seen_up = np.where(is_shown, is_up, self._is_seen_up)
        self._course.see(self._is_seen_up)
        chosen, places = self._course.choose(Moment(
            elapsed_h=elapsed_h, work_left_h=self._left_h, held=self._held, place=self._place,
            overhead_left_h=self._start_left_h, is_up=self._is_seen_up,
            spot_usd_per_hour=np.broadcast_to(self._prices, self._shape),
            move_usd=np.where(self._is_here, 0.0, self._job.move_price)))
        self._take(np.where(is_on, chosen, int(Action.WAIT)), places)
        self._advance(is_on, self._setting.tick_h)

    def finish_late(self) -> None:
        """What the deadline has cut off goes on, on demand, so that it can be said what it would take."""
        is_on = self._left_h > _SHORTEST_H
        self._take(np.where(is_on, int(Action.ON_DEMAND), int(Action.WAIT)), self._place)
        self._advance(is_on, np.inf)

    def _lose(self, rng: np.random.Generator, is_lost: Bools) -> None:
        lost_h = np.where(is_lost, _lost_h(rng, self._job, self._progress_h), 0.0)
        self._paths.num_losses += is_lost
        self._paths.redone_h += lost_h
        self._left_h = self._left_h + lost_h
        self._held = np.where(is_lost, int(Action.WAIT), self._held)

    def _take(self, actions: Ints, places: Ints) -> None:
        moves = (actions == Action.SPOT) & (places != self._place)
        begins = ((actions != self._held) | moves) & (actions != Action.WAIT)
        first_h = np.where(self._num_starts == 0, self._paths.first_h, self._again_h)
        self._start_left_h = np.where(begins, first_h, self._start_left_h)
        self._progress_h = np.where(begins, 0.0, self._progress_h)
        self._num_starts = self._num_starts + begins
        self._held, self._place = actions, places

    def _advance(self, is_on: Bools, tick_h: float) -> None:
        is_held = is_on & (self._held != Action.WAIT)
        paid_h = np.where(is_held, np.minimum(tick_h, self._start_left_h + self._left_h), 0.0)
        starting_h = np.minimum(paid_h, self._start_left_h)
        worked_h = paid_h - starting_h
        self._start_left_h = self._start_left_h - starting_h
        self._left_h = self._left_h - worked_h
        self._progress_h = self._progress_h + worked_h
        self._started_h += starting_h
        paths = self._paths
        paths.restarts_h = np.maximum(self._started_h - paths.first_h, 0.0)
        paths.on_demand_h = paths.on_demand_h + np.where(self._held == Action.ON_DEMAND, paid_h, 0.0)
        more = self._prices[self._place] - 1.0
        paths.dearer_h = paths.dearer_h + np.where(self._held == Action.SPOT, paid_h * more, 0.0)
        paths.waiting_h = paths.waiting_h + np.where(is_on & (self._held == Action.WAIT), tick_h, 0.0)
        paths.num_starts = self._num_starts
