"""What an attempt tells the world while it runs: phases, heartbeat, metric rows.

Rank 0 owns one Recorder. A thread writes to the store, so that a slow store never holds a step up;
rows go out in numbered chunks, because object storage cannot append.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel

from trainer.contract import Document, StoreError, attempt_file
from trainer.idle_gpus import IdleGpus
from trainer.interval import History
from trainer.lease import SupersededError, check_own, renewed
from trainer.live_price import BID_RAISED, LivePrice
from trainer.machine import traffic
from trainer.rental_terms import PriceFrom
from trainer.run_folder import (
    Attempt,
    AttemptFiles,
    Event,
    Heartbeat,
    IdleGpu,
    Phases,
    RunFolder,
    SavePace,
    newest_pace,
)
from trainer.spent import attempt_usd, beside_hours_usd, charged_until, controller_usd, hours_usd

Phase = Literal["setup_s", "train_s", "checkpoint_s", "evaluate_s", "bench_s", "restore_s", "waiting_s"]


class PhaseClock:
    """Books every second since an attempt is billed on exactly one phase; starts in set-up.

    Args:
        billed_from: Since when.
        clock: Seconds that never go back.
        on_phase: Called with every phase that begins.
    """

    def __init__(self, billed_from: datetime, clock: Callable[[], float] = time.monotonic,
                 on_phase: Callable[[Phase], None] = lambda phase: None) -> None:
        age_s = max(0.0, (datetime.now(UTC) - billed_from).total_seconds())
        self._clock = clock
        self._seconds: dict[Phase, float] = {"setup_s": age_s}
        self._phase: Phase = "setup_s"
        self._since = clock()
        self._on_phase = on_phase
        self._lock = threading.Lock()  # the recorder's thread reads while the loop changes phase

    def enter(self, phase: Phase) -> None:
        """From now on, time goes to `phase`."""
        with self._lock:
            now = self._clock()
            self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
            self._phase, self._since = phase, now
        self._on_phase(phase)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Book the block on `phase`, then go back to the phase before it."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def phases(self) -> Phases:
        """Seconds by phase up to now."""
        with self._lock:
            running = {self._phase: self._seconds.get(self._phase, 0.0) + self._clock() - self._since}
            return Phases(**{**self._seconds, **running})


class TrainingSpeed:
    """Time of training steps alone: evaluation and saves that fall between them do not count.

    Args:
        clock: Of the attempt; in training.
        step: Where it begins.
    """

    def __init__(self, clock: PhaseClock, step: int) -> None:
        self._clock, self._step, self._trained_s = clock, step, clock.phases().train_s

    def since_last(self, step: int) -> tuple[int, float]:
        """Steps since the last call, and the seconds that training has taken for them."""
        now_s = self._clock.phases().train_s
        found = step - self._step, now_s - self._trained_s
        self._step, self._trained_s = step, now_s
        return found


@dataclass
class Progress:
    """Where training is; the loop changes it, the recorder reads it."""

    total_steps: int
    step: int = 0
    resumed_from_step: int = 0
    durable_step: int = 0
    durable_train_s: float = 0.0
    durable_evaluate_s: float = 0.0
    tokens_per_s: float = 0.0
    pace: SavePace | None = None
    start_s: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Before:
    """What earlier attempts of a run have come to.

    Attributes:
        spent_usd: Their hours, all of them.
        useful_s: Training that their checkpoints kept, in seconds.
        paid_s: Seconds of machines that were there to train.
        events: Of the run; they tell since when it is supervised, and at which price.
        attempts: In order; they tell what else their machines cost.
    """

    spent_usd: Decimal = Decimal(0)
    useful_s: float = 0.0
    paid_s: float = 0.0
    events: tuple[Event, ...] = ()
    attempts: tuple[AttemptFiles, ...] = ()


@dataclass(frozen=True)
class OwnAttempt:
    """This attempt among those of its run.

    Attributes:
        attempt: Itself.
        earlier: Those before it, in order.
        events: Of the run, oldest first.
    """

    attempt: Attempt
    earlier: list[AttemptFiles]
    events: tuple[Event, ...] = ()

    @classmethod
    def find(cls, folder: RunFolder, number: int) -> Self:
        """By its number, which the engine or the node has claimed."""
        attempts = folder.attempts()
        own = next(files.attempt for files in attempts if files.attempt.number == number)
        earlier = [files for files in attempts if files.attempt.number < number]
        return cls(own, earlier, tuple(folder.events()))

    @property
    def durable_step(self) -> int:
        """The newest that earlier attempts have left."""
        return max((files.heartbeat.durable_step for files in self.earlier if files.heartbeat), default=0)

    @cached_property
    def live_price(self) -> LivePrice:
        """What its machine costs now, where that may change."""
        return LivePrice(self.attempt.price_usd_per_hour)

    def files(self) -> AttemptFiles:
        """What is known of it here now."""
        return AttemptFiles(attempt=self.attempt, prices=self.live_price.seen())

    @property
    def pace(self) -> SavePace | None:
        """What the newest attempt that has saved has measured of its saves."""
        return newest_pace(files.heartbeat for files in reversed(self.earlier))

    def history(self) -> History:
        """What earlier attempts have seen of their machines."""
        return History.of(self.earlier, self.attempt.billed_from)

    def recorder(self, folder: RunFolder, interval_s: float, clock: PhaseClock,
                 progress: Progress) -> "Recorder":
        """A new one, which knows what earlier attempts have cost."""
        gpus = IdleGpus(os.environ)
        gpus.watch()
        return Recorder(folder, self.attempt, interval_s=interval_s, clock=clock, progress=progress,
                        before=self._before(), idle_gpus=gpus.found, prices=self.live_price.seen)

    def _before(self) -> Before:
        now, useful_s, paid_s = self.attempt.billed_from, 0.0, 0.0
        for files, until in zip(self.earlier, charged_until(self.earlier, now), strict=True):
            if files.attempt.document is Document.TRAIN:
                paid_s += (until - files.attempt.billed_from).total_seconds()
                useful_s += files.heartbeat.durable_train_s if files.heartbeat else 0.0
        return Before(hours_usd(self.earlier, now), useful_s, paid_s, self.events, tuple(self.earlier))


class Recorder:
    """Writes heartbeats and metric rows of one attempt.

    Args:
        folder: The run.
        attempt: This attempt.
        interval_s: Seconds between heartbeats.
        before: What earlier attempts have come to.
        clock: Books the phases.
        progress: Read at each heartbeat.
        idle_gpus: Asked at each heartbeat.
        prices: Later ones of an hour, as far as they are known now.

    Attributes:
        superseded: Set once another attempt owns the run: this one has to stop.
    """

    def __init__(self, folder: RunFolder, attempt: Attempt, *, interval_s: float, before: Before,
                 clock: PhaseClock, progress: Progress,
                 idle_gpus: Callable[[], tuple[IdleGpu, ...]] = lambda: (),
                 prices: Callable[[], tuple[PriceFrom, ...]] = lambda: ()) -> None:
        self._folder = folder
        self._attempt = attempt
        self._interval_s = interval_s
        self._before = before
        self._clock = clock
        self._progress = progress
        self._idle_gpus = idle_gpus
        self._prices, self._num_told = prices, 0
        self._rows: list[dict[str, float]] = []
        self._files: dict[str, BaseModel] = {}
        self._num_chunks = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # heartbeats and checkpoints both write
        self._closing = False
        self.superseded: SupersededError | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._write_until_closed, name="heartbeat", daemon=True)
        self._thread.start()

    def spent_usd(self, now: datetime) -> Decimal:
        """What the run has cost up to `now`: hours, disks, networks, unused machines, supervision."""
        seconds = max(0.0, (now - self._attempt.billed_from).total_seconds())
        own = attempt_usd(AttemptFiles(attempt=self._attempt, prices=self._prices()), seconds)
        all_attempts = [*self._before.attempts, AttemptFiles(attempt=self._attempt)]
        # Asked before every step: counters are read only where somebody bills them.
        beside = beside_hours_usd(all_attempts, now, traffic() if self._attempt.terms else None)
        return self._before.spent_usd + own + beside + controller_usd(self._before.events, now)

    def accounts(self) -> dict[str, float]:
        """What a row says of time and money, up to now.

        Returns:
            spent_usd: of all attempts
            goodput: share of the paid training time that moved training forward, in [0, 1]; steps since the
                newest checkpoint count as if they were kept
            checkpoint_age_s: seconds of training and evaluation that losing the machine now would cost
        """
        phases, progress, before = self._clock.phases(), self._progress, self._before
        paid_s = before.paid_s + sum(phases.model_dump().values())
        at_risk_s = (phases.train_s - progress.durable_train_s
                     + phases.evaluate_s - progress.durable_evaluate_s)
        return {"spent_usd": float(self.spent_usd(datetime.now(UTC))), "checkpoint_age_s": at_risk_s,
                "goodput": (before.useful_s + phases.train_s) / max(paid_s, 1e-9)}

    def keep(self, name: str, record: BaseModel) -> None:
        """Put a record among the files of this attempt; it reaches the store as rows do."""
        with self._lock:
            self._files[name] = record

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep one row of metrics; it reaches the store with the next heartbeat."""
        with self._lock:
            self._rows.append({"step": step, "time": time.time(), **metrics})
            self._progress.metrics = {**self._progress.metrics, **metrics}

    def write_soon(self) -> None:
        """Do not wait for the next interval: something has happened that the bill depends on."""
        self._wake.set()

    def close(self) -> None:
        """Write what is left and stop. A store that fails now costs the last rows, nothing else."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._try_to_write()

    def write(self) -> None:
        """One heartbeat, and the rows and records since the last one.

        Raises:
            StoreError: They cannot be written.
            SupersededError: A later attempt owns the run.
        """
        with self._writing:
            self._tell_prices()
            self._write_files()
            self._write_rows()
        try:
            check_own(self._folder, self._attempt.number)
        except SupersededError as error:
            self.superseded = error
            raise

    def _tell_prices(self) -> None:
        """An event for each change, for whoever reads the run's record."""
        for price in self._prices()[self._num_told:]:
            self._folder.add_event(BID_RAISED, price.at, attempt=self._attempt.number,
                                   usd_per_hour=str(price.usd_per_hour))
            self._num_told += 1

    def _write_files(self) -> None:
        """Before the rows: whoever reads a row finds what belongs to it."""
        with self._lock:
            files = dict(self._files)
        for name, record in files.items():
            self._folder.write(attempt_file(self._attempt.number, name), record)
            with self._lock:
                del self._files[name]

    def _write_rows(self) -> None:
        now = datetime.now(UTC)
        with self._lock:
            rows, self._rows = self._rows, []
            progress = self._progress
            heartbeat = Heartbeat(
                at=now, step=progress.step, total_steps=progress.total_steps,
                resumed_from_step=progress.resumed_from_step, durable_step=progress.durable_step,
                durable_train_s=progress.durable_train_s, durable_evaluate_s=progress.durable_evaluate_s,
                phases=self._clock.phases(), tokens_per_s=progress.tokens_per_s,
                spent_usd=self.spent_usd(now), lease_until=renewed(now, self._interval_s),
                traffic=traffic(), idle_gpus=self._idle_gpus(), pace=progress.pace,
                start_s=progress.start_s, prices=self._prices(), metrics=dict(progress.metrics))
        try:
            if rows:
                chunk = "".join(json.dumps(row) + "\n" for row in rows).encode()
                name = f"metrics/{self._num_chunks:06d}.jsonl"
                self._folder.write_bytes(attempt_file(self._attempt.number, name), chunk)
                self._num_chunks += 1
                rows = []
            self._folder.write(attempt_file(self._attempt.number, "heartbeat.json"), heartbeat)
        except StoreError:
            with self._lock:
                self._rows = rows + self._rows
            raise

    def _write_until_closed(self) -> None:
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if self._closing:
                return
            self._try_to_write()

    def _try_to_write(self) -> None:
        try:
            self.write()
        except StoreError as error:
            # The next heartbeat carries these rows; training does not depend on them.
            print(f"warning: heartbeat not written: {error}", flush=True)
        except SupersededError as error:
            print(f"warning: {error.problem}", flush=True)
