"""What one attempt of a run has cost: its billed seconds and its dollars, each by what it went into. Pure.

Every second that a machine is billed belongs to exactly one category, so that categories add up.
"""

import math
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum

from launcher.rental_cost import OnRental
from launcher.rentals import RENTED_AT
from launcher.vast_credit import lacked_credit
from trainer.contract import Document
from trainer.run_folder import AttemptFiles

# To a millionth of a millionth of a dollar: what is rounded here adds up exactly from here on.
EXACT = Decimal("1e-12")
DONE = "done"
NO_CREDIT = "credit used up"


class Category(StrEnum):
    """What a dollar went into. The one list of them; a report has all, zeros included."""

    PROVISIONING = "provisioning"  # a rented machine until our program began; one on which it never did
    SETUP = "set-up"  # from there to the first step, without the checkpoint; shut-down
    RESTORE = "restore"  # the newest checkpoint was looked for, fetched and loaded
    USEFUL = "useful"  # training steps that are in a durable checkpoint; of a running attempt, all of them
    RECOMPUTED = "recomputed"  # after the last durable checkpoint of a machine that was taken: done again
    CHECKPOINT = "checkpoint stall"  # training stood still for a save
    EVALUATION = "evaluation"
    WAITING = "waiting"  # for text that its store did not give; for capacity no machine is paid
    CRASHED = "crashed or stopped"  # as recomputed, of an attempt that broke, hung, or was stopped at once
    BENCHMARK = "benchmark"
    DISK = "disk"  # of rented machines, from their contract on until they are given back
    NETWORK = "network"
    CONTROLLER = "controller"  # who supervises the run, from each submission to its end


# `2x H100:8 on gcp (spot)`, `2 CPU cores here`: of `launcher/offers.py`.
_LABEL = re.compile(r"(?P<hardware>.+?) (?P<place>here|on \S.*?)(?: \((?P<market>[\w-]+)\))?")
STARTING = (Category.PROVISIONING, Category.SETUP, Category.RESTORE)
WASTED = (Category.RECOMPUTED, Category.CRASHED)


@dataclass(frozen=True)
class AttemptCost:
    """One attempt in the bill.

    Attributes:
        cloud, region: Of its machine; `local` at home, empty where it is not known.
        hardware: `H100:8`, `2 CPU cores`.
        market: `spot`, `on-demand`, `interruptible`; empty where the label does not say.
        price_usd_per_hour: Of its machines; where the price has changed meanwhile, its mean.
        began_at: Since when it is billed, UTC.
        ended_at: Until when; None: it runs.
        seconds: By category; none is zero.
        beside: Dollars that are not by the second.
        unsaved_s: Of a running attempt: what losing its machine now would cost.
        end: In a word or two.
        reason: In the words of who ended it; empty where nobody said.
        was_taken: Its machine was taken back, or vanished.
        start_s: Seconds to the first step, by part; empty where there was none.
    """

    number: int
    document: Document
    cloud: str
    region: str
    hardware: str
    market: str
    price_usd_per_hour: Decimal
    began_at: datetime
    ended_at: datetime | None
    seconds: dict[Category, float]
    beside: dict[Category, Decimal]
    unsaved_s: float
    from_step: int
    durable_step: int
    end: str
    reason: str
    was_taken: bool
    start_s: Mapping[str, float]

    @property
    def usd_by_category(self) -> dict[Category, Decimal]:
        """Dollars of each category that has some."""
        return {category: self._by_the_second(seconds) for category, seconds in self.seconds.items()
                } | self.beside

    @property
    def usd(self) -> Decimal:
        """Dollars of the whole attempt."""
        return sum(self.usd_by_category.values(), Decimal(0))

    @property
    def unsaved_usd(self) -> Decimal:
        """Dollars that losing its machine now would cost."""
        return self._by_the_second(self.unsaved_s)

    @property
    def where(self) -> str:
        """`gcp/us-central1`, `local`."""
        return f"{self.cloud}/{self.region}" if self.region else self.cloud

    @property
    def machine(self) -> str:
        """`H100:8 spot`."""
        return f"{self.hardware} {self.market}".strip()

    @property
    def starting_s(self) -> float:
        """Seconds before its first step."""
        return sum(self.seconds.get(category, 0.0) for category in STARTING)

    @property
    def wasted_s(self) -> float:
        """Seconds of work that has to be done again."""
        return sum(self.seconds.get(category, 0.0) for category in WASTED)

    @property
    def has_trained(self) -> bool:
        """True once it has begun its first step."""
        return any(category in self.seconds for category in (Category.USEFUL, *WASTED))

    def _by_the_second(self, seconds: float) -> Decimal:
        return (self.price_usd_per_hour * Decimal(seconds) / 3600).quantize(EXACT)


@dataclass(frozen=True)
class Fate:
    """What is known of an attempt beside its own files.

    Attributes:
        running: It is at work now.
        stopped: Its user asked it to end.
    """

    running: bool = False
    stopped: bool = False


def attempt_cost(files: AttemptFiles, on_rental: OnRental, fate: Fate) -> AttemptCost:
    """Split what one attempt is billed for into categories."""
    attempt, beat = files.attempt, files.heartbeat
    total_s = max(0.0, (on_rental.until - attempt.billed_from).total_seconds())
    price = attempt.price_usd_per_hour
    if on_rental.gpu_usd is not None and total_s:
        price = (on_rental.gpu_usd * 3600 / Decimal(total_s)).quantize(EXACT).normalize()
    seconds = _seconds(files, total_s, fate)
    beside = {Category.DISK: on_rental.disk_usd, Category.NETWORK: on_rental.network_usd}
    label = _LABEL.fullmatch(attempt.offer)
    at_home = "local" if label and label["place"] == "here" else ""
    return AttemptCost(
        number=attempt.number, document=attempt.document, price_usd_per_hour=price,
        cloud=attempt.cloud or (RENTED_AT if on_rental.gpu_usd is not None else at_home),
        region=attempt.region, hardware=label["hardware"] if label else attempt.offer,
        market=label["market"] or "" if label else "",
        began_at=attempt.billed_from.astimezone(UTC),
        ended_at=None if fate.running else on_rental.until.astimezone(UTC), seconds=seconds,
        beside={category: usd.quantize(EXACT) for category, usd in beside.items() if usd},
        unsaved_s=_unsaved_s(files, seconds) if fate.running else 0.0,
        from_step=beat.resumed_from_step if beat else 0, durable_step=beat.durable_step if beat else 0,
        end=_end_words(files, fate), reason=files.end.reason if files.end else "",
        was_taken=not fate.running and _was_taken(files), start_s=_finite(beat.start_s) if beat else {})


def _finite(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in parts.items() if math.isfinite(seconds)}


def _seconds(files: AttemptFiles, total_s: float, fate: Fate) -> dict[Category, float]:
    """No category gets more than was billed, whatever a skewed clock says; the rest goes to one of them."""
    left_s = total_s
    seconds: dict[Category, float] = {}
    for category, claimed_s in _claims(files, fate):
        seconds[category] = min(max(0.0, claimed_s), left_s)
        left_s -= seconds[category]
    rest = _rest_category(files, fate)
    seconds[rest] = seconds.get(rest, 0.0) + left_s
    return {category: seconds[category] for category in Category if seconds.get(category)}


def _claims(files: AttemptFiles, fate: Fate) -> Iterator[tuple[Category, float]]:
    attempt, beat = files.attempt, files.heartbeat
    before_s = max(0.0, (attempt.began_at - attempt.billed_from).total_seconds()) if attempt.began_at else 0.0
    yield Category.PROVISIONING, before_s
    if beat is None or attempt.document is Document.BENCH:
        return
    phases = beat.phases
    yield Category.SETUP, phases.setup_s - before_s
    yield Category.RESTORE, phases.restore_s
    yield Category.CHECKPOINT, phases.checkpoint_s
    yield Category.WAITING, phases.waiting_s
    yield Category.USEFUL, phases.train_s if fate.running else beat.durable_train_s
    yield Category.EVALUATION, phases.evaluate_s if fate.running else beat.durable_evaluate_s


def _rest_category(files: AttemptFiles, fate: Fate) -> Category:
    """What the time is that no phase and no durable checkpoint covers."""
    if files.attempt.document is Document.BENCH:
        return Category.BENCHMARK
    if files.heartbeat is None or files.heartbeat.phases.train_s == 0:
        return Category.SETUP
    if fate.running:
        return Category.USEFUL
    if _was_taken(files):
        return Category.RECOMPUTED
    is_clean = files.end is not None and files.end.exit_code in (0, 75) and not files.end.hung
    return Category.SETUP if is_clean else Category.CRASHED


def _unsaved_s(files: AttemptFiles, seconds: Mapping[Category, float]) -> float:
    """What of its training and its evaluations no durable checkpoint has yet."""
    beat = files.heartbeat
    worked = seconds.get(Category.USEFUL, 0.0) + seconds.get(Category.EVALUATION, 0.0)
    kept = beat.durable_train_s + beat.durable_evaluate_s if beat else 0.0
    return max(0.0, worked - kept)


def _was_taken(files: AttemptFiles) -> bool:
    """Taken back, or vanished without a word."""
    return files.end is None or files.end.preempted or files.end.exit_code is None


def _end_words(files: AttemptFiles, fate: Fate) -> str:
    end = files.end
    if fate.running:
        return "running"
    if end and end.preempted:
        return NO_CREDIT if lacked_credit(end) else "preempted"
    if end and end.wrong_machine:
        return "wrong machine"
    if end and end.hung:
        return "hung"
    if end is None or end.exit_code is None:
        return "vanished"
    saved = "saved" if files.attempt.document is Document.TRAIN else "stopped"  # a benchmark saves nothing
    names = {0: DONE, 75: saved, 78: "bad recipe", 70: "broke"}
    if fate.stopped and end.exit_code not in names:
        return "stopped at once" if end.exit_code == 128 + signal.SIGKILL else "stopped"
    return names.get(end.exit_code, f"crashed ({end.exit_code})")
