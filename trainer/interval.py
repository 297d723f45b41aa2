"""How often a run saves: the interval that costs least, within what it promises to lose at most. No torch.

A save costs dollars: training stands still, and bytes are uploaded. A lost machine costs the work since the
newest durable step: half an interval on average, and the d hours of a save. With C dollars a save, L losses
and P dollars an hour, an interval of t hours costs C/t + L P (t/2 + d) an hour, least at sqrt(2 C / (L P)):
the interval of J. W. Young (Comm. ACM 17, 1974), in dollars. Storage costs the same whatever the interval.

A save by time begins after a step that rounds the state (`trainer/train_state.py`), or after any where those
lie too far apart for the promise, and none while one is under way. It begins at the last such step before the
interval is over: where steps are long, that is early.
"""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Self

from trainer.config import CheckpointConfig, TrainConfig
from trainer.contract import Document, Env, ExitCode
from trainer.run_folder import AttemptFiles, Phases, SavePace
from trainer.spent import charged_until

_FIRST_BYTES_PER_S = 12.5e6  # before any save was measured: 100 Mbit/s, the least that is asked for (guess)
# Of losses that a machine of this kind gives notice of, so many come without one all the same (guess).
_UNTOLD = 0.25
# Measured with smoke: cost of a held-out token over that of a trained one. No backward, but the denoiser
# runs at eight times and the decoder twice.
_EVALUATION_SHARE = 1.3
_WINDOW = 51  # that medians are taken of (guess)
# Of what may be lost, for the wait from one step after which a save may begin to the next. Saves of any step
# would take twice the bytes, and two saves have to fit as well (guess).
_WAIT_OF_PROMISE = 1 / 3
_NEWS = 1.25  # an interval that has changed by less is not told again
_TENTH_OF_A_CENT = 0.001
_GB = 1e9


class Rates(NamedTuple):
    """What time and bytes cost where a run is.

    Attributes:
        usd_per_hour: Of all its machines.
        upload_usd_per_gb: With the store's requests; a GB is 1e9 bytes.
        hours_to_loss: Until a machine of this kind is lost, before the run has seen any.
    """

    usd_per_hour: float
    upload_usd_per_gb: float
    hours_to_loss: float

    @classmethod
    def of_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """As a task tells them; what it does not tell costs nothing, and never happens."""
        return cls(float(environ.get(Env.PRICE) or 0), float(environ.get(Env.UPLOAD_PRICE) or 0),
                   float(environ.get(Env.HOURS_TO_LOSS) or math.inf))


class Save(NamedTuple):
    """What one save takes.

    Attributes:
        num_bytes: In the store.
        seconds: From its beginning until it is durable.
        stall_s: In which training stands still.
    """

    num_bytes: float
    seconds: float
    stall_s: float


class Interval(NamedTuple):
    """From the beginning of one save to that of the next.

    Attributes:
        seconds: Of it, at most, wherever the next may begin by then.
        lost_s: The most work that a lost machine costs: it goes just before the next save is durable.
        reason: Why it is not another one, in words.
    """

    seconds: float
    lost_s: float
    reason: str

    def is_due(self, passed_s: float, gap_s: float) -> bool:
        """Whether a save has to begin now, since the next chance would be too late.

        Args:
            passed_s: Since the last one began.
            gap_s: Until the next step after which one may begin.
        """
        return passed_s + gap_s > self.seconds


class Life(NamedTuple):
    """What training has seen of a machine: one attempt.

    A run's interval of saves goes by `is_lost`: a crash costs the work since the newest save, as a machine
    does that was taken. What is believed of a place goes by `was_taken` alone: a program that fails says
    nothing of machines.

    Attributes:
        number, offer: Of the attempt.
        hours: From its start until `until`, its end or last sign of life.
        is_lost: Its machine was taken, or its program failed, hung or was killed; else it ended as it should,
            or lives.
        was_taken: Its machine was taken back, or vanished and the run went on without it.
    """

    number: int
    offer: str
    hours: float
    until: datetime
    is_lost: bool
    was_taken: bool

    @classmethod
    def of(cls, files: AttemptFiles, charged_to: datetime) -> Self:
        """Of an attempt that is charged until then. One that ended by itself, as it should, lost nothing."""
        attempt, beat, end = files.attempt, files.heartbeat, files.end
        seen = charged_to if end else min(charged_to, beat.at if beat else attempt.billed_from)
        hours = max(0.0, (seen - attempt.billed_from).total_seconds() / 3600)
        was_taken = end is not None and end.preempted
        is_lost = end is not None and (was_taken or end.hung or end.exit_code not in list(ExitCode))
        return cls(attempt.number, attempt.offer, hours, seen, is_lost, was_taken)


def lives_of(attempts: Sequence[AttemptFiles], now: datetime) -> list[Life]:
    """Of attempts in order those that trained, on machines that were the right ones."""
    return [Life.of(files, until) for files, until in zip(attempts, charged_until(attempts, now), strict=True)
            if files.attempt.document is Document.TRAIN and not (files.end and files.end.wrong_machine)]


class History(NamedTuple):
    """What a run has seen of its attempts: how many were lost, by whatever cause, and in how many hours."""

    losses: int
    hours: float

    @classmethod
    def of(cls, attempts: Sequence[AttemptFiles], now: datetime) -> Self:
        """Of attempts in order. See `Life`."""
        lives = lives_of(attempts, now)
        return cls(sum(life.is_lost for life in lives), sum(life.hours for life in lives))


def evaluation_s(config: TrainConfig, tokens_per_s: float) -> float:
    """Seconds of one held-out evaluation (guess), from those of training."""
    return _EVALUATION_SHARE * config.evaluate_sequences * config.data.sequence_length / tokens_per_s


def chance_steps(config: TrainConfig, step_s: float, evaluation_s: float) -> int:
    """Steps from one after which a save by time may begin to the next.

    Those from one rounding to the next; or one, where that would take too much of what may be lost: a save
    between two roundings is larger.
    """
    steps = config.optimizer.round_steps
    waited_s = _gap_s(config, steps, step_s, evaluation_s)
    return steps if waited_s <= _WAIT_OF_PROMISE * config.checkpoint.most_lost_s else 1


def longest_gap_s(config: TrainConfig, step_s: float, evaluation_s: float) -> float:
    """From one step after which a save by time may begin to the next, with the evaluations in between."""
    return _gap_s(config, chance_steps(config, step_s, evaluation_s), step_s, evaluation_s)


def _gap_s(config: TrainConfig, steps: int, step_s: float, evaluation_s: float) -> float:
    return steps * step_s + math.ceil(steps / config.evaluate_every_steps) * evaluation_s


def interval_of(config: CheckpointConfig, save: Save, gap_s: float, rates: Rates,
                losses_per_hour: float) -> Interval:
    """What a recipe fixes; else the interval that costs least under its promise. See `cheapest`."""
    if not config.every_minutes:
        return cheapest(save, gap_s, rates, losses_per_hour, config.most_lost_s)
    seconds = max(60 * config.every_minutes, save.seconds)
    return Interval(seconds, _lost_s(seconds, save, gap_s), "the recipe says so")


def cheapest(save: Save, gap_s: float, rates: Rates, losses_per_hour: float, most_lost_s: float) -> Interval:
    """The interval that costs least among those that lose no more than is promised.

    Args:
        gap_s: See `longest_gap_s`: a save that ends just after a chance waits so long for the next.
        most_lost_s: See `Interval.lost_s`. Where not even saves one after the other keep it, they are what is
            left to do; inf: nothing is promised.
    """
    usd = save_usd(save, rates)
    risk = losses_per_hour * rates.usd_per_hour
    best_s = 3600 * math.sqrt(2 * usd / risk) if risk else math.inf
    bound_s = most_lost_s - save.seconds
    seconds = max(min(best_s, bound_s), save.seconds)
    if seconds <= save.seconds + gap_s:
        reason = f"a save takes {minutes(save.seconds)}"
        reason += f", and the next may begin up to {minutes(gap_s)} later" if gap_s else ""
    elif seconds == best_s:
        price = f"${usd:.4f} a save" if usd >= _TENTH_OF_A_CENT else "a save costs next to nothing"
        reason = f"it costs least: {price}, a machine is lost every {1 / losses_per_hour:.3g} h"
    else:
        reason = f"no more than {minutes(most_lost_s)} may be lost, and a save takes {minutes(save.seconds)}"
        reason += f"; {minutes(best_s)} would cost least" if best_s < math.inf else ""
    return Interval(seconds, _lost_s(seconds, save, gap_s), reason)


def _lost_s(interval_s: float, save: Save, gap_s: float) -> float:
    """The next save begins by the end of the interval, or at the first chance once this one is durable."""
    return max(interval_s, save.seconds + gap_s) + save.seconds


def save_usd(save: Save, rates: Rates) -> float:
    """Dollars of one save: the time in which training stands still, and the upload."""
    return save.stall_s / 3600 * rates.usd_per_hour + save.num_bytes / _GB * rates.upload_usd_per_gb


def losses_per_hour(rates: Rates, seen: History) -> float:
    """How often a machine is lost, by its kind and by what the run has seen.

    The mean of a gamma distribution that begins with the weight of one loss in `hours_to_loss`.
    """
    return (1 + seen.losses) / (rates.hours_to_loss + seen.hours)


def minutes(seconds: float) -> str:
    """`12.5 min`, `3 h`, `0.3 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


class Gaps:
    """How long it is from one step after which a save by time may begin to the next, as an attempt measures.

    By medians, so that one step that waits for its text does not count.

    Args:
        config: Of the run.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._steps_s, self._evaluations_s = deque[float](maxlen=_WINDOW), deque[float](maxlen=_WINDOW)
        self.begin(0, Phases())

    def begin(self, step: int, phases: Phases) -> None:
        """Measure from here on, where training is at a step and has taken so long."""
        self._step, self._phases = step, phases

    def note(self, step: int, phases: Phases) -> None:
        """Training has come to a step, its evaluation included. To tell of one step twice changes nothing."""
        if step == self._step:
            return
        trained_s, evaluated_s = (phases.train_s - self._phases.train_s,
                                  phases.evaluate_s - self._phases.evaluate_s)
        self._steps_s.append(trained_s / (step - self._step))
        if num_evaluations := self._config.num_evaluations(self._step, step):
            self._evaluations_s.append(evaluated_s / num_evaluations)
        self.begin(step, phases)

    def after(self, step: int) -> float:
        """Seconds from a step after which a save by time may begin to the next."""
        steps = self.chance_steps
        until = step + steps - step % steps
        return (until - step) * self._step_s + self._config.num_evaluations(step, until) * self._evaluation_s

    @property
    def chance_steps(self) -> int:
        """See `chance_steps`; one before a step was measured."""
        return chance_steps(self._config, self._step_s, self._evaluation_s) if self._steps_s else 1

    @property
    def longest_s(self) -> float:
        """See `longest_gap_s`; 0 before a step was measured."""
        return longest_gap_s(self._config, self._step_s, self._evaluation_s)

    @property
    def ahead_s(self) -> float:
        """Seconds of one more step and one more evaluation; 0 before a step was measured."""
        return self._step_s + self._evaluation_s

    @property
    def _step_s(self) -> float:
        return statistics.median(self._steps_s) if self._steps_s else 0.0

    @property
    def _evaluation_s(self) -> float:
        if self._evaluations_s or not self._step_s:
            return statistics.median(self._evaluations_s or [0.0])
        return evaluation_s(self._config, self._config.tokens_per_step / self._step_s)


class Pace:
    """The interval of an attempt, which follows what is measured.

    Args:
        config: What the recipe says.
        rates: Of this machine.
        seen: Of the attempts before.
        num_bytes: Of a checkpoint before it is compressed.
        before: What the attempt before this one has measured last, where it did.
        clock: Seconds that never go back.
    """

    def __init__(self, config: CheckpointConfig, rates: Rates, seen: History, num_bytes: int,
                 before: SavePace | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began_s = clock, clock()
        self._config, self._rates, self._seen = config, rates, seen
        self.save = (Save(before.num_bytes, before.save_s, before.stall_s) if before
                     else Save(num_bytes, num_bytes / _FIRST_BYTES_PER_S, 0.0))
        self._told_s, self._is_kept, self._is_measured = math.inf, True, False

    def measured(self, save: Save) -> None:
        """A save is durable."""
        self.save, self._is_measured = save, True

    def interval(self, gap_s: float, *, is_told: bool) -> Interval:
        """What it is now.

        Args:
            gap_s: See `longest_gap_s`.
            is_told: A last checkpoint fits the notice that such a machine gives of its end.
        """
        save = self.save
        if self._config.every_minutes and not self._is_measured:
            save = save._replace(seconds=0.0)  # a guess does not change what is fixed
        hours = self._seen.hours + (self._clock() - self._began_s) / 3600
        rate = losses_per_hour(self._rates, self._seen._replace(hours=hours)) * (_UNTOLD if is_told else 1.0)
        return interval_of(self._config, save, gap_s, self._rates, rate)

    def record(self, interval: Interval) -> SavePace | None:
        """What a heartbeat says of it; None before a save was measured."""
        if not self._is_measured:
            return None
        num_bytes, save_s, stall_s = self.save
        return SavePace(interval_s=interval.seconds, lost_s=interval.lost_s, num_bytes=int(num_bytes),
                        save_s=save_s, stall_s=stall_s)

    def news(self, interval: Interval) -> str | None:
        """What a person should know of it, once, and again when it has changed clearly or the promise is kept
        no longer, or again; None: nothing new."""
        most, change = self._config.most_lost_s, interval.seconds / self._told_s
        # A second of slack: a promise is not broken by the time that a sum takes to round.
        is_kept = interval.lost_s <= most + 1
        if not self._is_measured or (is_kept == self._is_kept and 1 / _NEWS < change < _NEWS):
            return None
        self._told_s, self._is_kept = interval.seconds, is_kept
        told = (f"a checkpoint every {minutes(interval.seconds)}: {interval.reason}; a lost machine costs "
                f"at most {minutes(interval.lost_s)} of work")
        return told if is_kept else f"warning: {told}, and the recipe promises {minutes(most)}"
