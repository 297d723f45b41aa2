"""What a run tells somebody who does not watch it: preempted, recovered, not learning, 80 % of its cap,
at its limit, finished, failed, no machine. No torch.

News are part of the record: whoever sees one writes `news/START/NAME.json` by a conditional put, so that it
is there once over ranks, attempts and writers. Sending them is another matter: `trainer/deliveries.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from trainer.contract import CLOCK_SKEW, Document, Outcome
from trainer.learning import Learning, State
from trainer.run_folder import STARTS, AttemptFiles, Event, RunOutcome

_PART_OF_CAP = Decimal("0.8")
_LONGEST = 500  # characters of a sentence: a chat takes 2,000, a phone shows one line (guess)


class Kind(StrEnum):
    """What has happened."""

    PREEMPTED = "preempted"
    RECOVERED = "recovered"
    NOT_LEARNING = "not_learning"
    CAP_80_PERCENT = "cap_80_percent"
    LIMIT_REACHED = "limit_reached"  # the cap, or the deadline: the sentence says which
    FINISHED = "finished"
    FAILED = "failed"
    NO_CAPACITY = "no_capacity"


class News(BaseModel):
    """One thing to tell.

    Attributes:
        name: Of its file: the same for whoever sees the same thing.
        start: How often the run had been started by then.
        step: The newest durable one when it happened.
        spent_usd: Of the whole run, by its newest heartbeat then.
        sentence: Without the run's id.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: Kind
    run_id: str
    start: int
    at: datetime
    step: int
    spent_usd: Decimal
    sentence: str

    @property
    def dollars(self) -> str:
        """Cents, of small sums more."""
        return f"${self.spent_usd:.2f}" if self.spent_usd >= 1 else f"${self.spent_usd:.4f}"


@dataclass(frozen=True)
class Seen:
    """What is known of a run at one moment.

    Attributes:
        attempts: In order; those of earlier starts are passed over.
        events: Oldest first.
        cap_usd: None: there is none, or it is not known here.
        learning: The newest verdict; None: there is none yet.
    """

    run_id: str
    at: datetime
    attempts: Sequence[AttemptFiles]
    events: Sequence[Event]
    cap_usd: Decimal | None = None
    learning: Learning | None = None
    outcome: RunOutcome | None = None

    @property
    def start(self) -> int:
        """How often the run has been started."""
        return starts(self.events)

    @property
    def own_attempts(self) -> list[AttemptFiles]:
        """Those since the last start."""
        return [files for files in self.attempts if self._is_own(files.attempt.billed_from)]

    @property
    def own_outcome(self) -> RunOutcome | None:
        """How the run ended, unless that is from before the last start."""
        return self.outcome if self.outcome and self._is_own(self.outcome.at) else None

    @property
    def step(self) -> int:
        """The newest durable one."""
        return max((files.heartbeat.durable_step for files in self.attempts if files.heartbeat), default=0)

    @property
    def spent_usd(self) -> Decimal:
        """As the newest heartbeat has it; what a machine that was lost has cost since comes with the next."""
        beats = [files.heartbeat for files in self.attempts if files.heartbeat]
        return beats[-1].spent_usd if beats else Decimal(0)

    def _is_own(self, at: datetime) -> bool:
        starts = [event.at for event in self.events if event.kind in STARTS]
        return len(starts) < 2 or at >= starts[-1] - CLOCK_SKEW


def starts(events: Iterable[Event]) -> int:
    """How often a run has been started."""
    return sum(event.kind in STARTS for event in events)


def news_of(seen: Seen) -> list[News]:
    """All that there is to tell by now, whether or not it was told (pure)."""
    return [*_preempted(seen), *_recovered(seen), *_cap(seen), *_not_learning(seen), *_end(seen)]


def _preempted(seen: Seen) -> list[News]:
    """Told by a later attempt: the machine itself is gone."""
    found = []
    for files in seen.own_attempts:
        if files.end and files.end.preempted:
            number, step = files.attempt.number, files.heartbeat.durable_step if files.heartbeat else 0
            found.append(_news(seen, Kind.PREEMPTED, f"attempt {number} lost its machine "
                               f"({files.end.reason}); step {step} was durable", number))
    return found


def _recovered(seen: Seen) -> list[News]:
    training = [files for files in seen.own_attempts if files.attempt.document is Document.TRAIN]
    beat = training[-1].heartbeat if training else None
    if len(training) < 2 or beat is None or not beat.start_s:  # told with the first step
        return []
    number = training[-1].attempt.number
    return [_news(seen, Kind.RECOVERED,
                  f"attempt {number} trains again from step {beat.resumed_from_step}", number)]


def _cap(seen: Seen) -> list[News]:
    cap = seen.cap_usd
    if not cap or seen.spent_usd < cap * _PART_OF_CAP:
        return []
    spent = f"{seen.spent_usd / cap:.0%} of the cap of ${cap:.2f} are spent"
    return [_news(seen, Kind.CAP_80_PERCENT, spent)]


def _not_learning(seen: Seen) -> list[News]:
    found = seen.learning
    if found is None or found.state not in (State.COLLAPSED, State.STUCK):
        return []
    why = f": {found.reasons[0]}" if found.reasons else ""
    return [_news(seen, Kind.NOT_LEARNING,
                  f"it does not learn, it is {found.state} at step {found.step}{why}")]


_ENDS = {Outcome.FINISHED: (Kind.FINISHED, "it has finished"),
         Outcome.LIMIT: (Kind.LIMIT_REACHED, "it is at its limit and trains no more"),
         Outcome.NO_CAPACITY: (Kind.NO_CAPACITY, "it has ended for want of a machine"),
         Outcome.DIVERGED: (Kind.FAILED, "it has failed"), Outcome.LOST: (Kind.FAILED, "it is lost"),
         Outcome.BAD_CONFIG: (Kind.FAILED, "its recipe, its text or its image is wrong")}


def _end(seen: Seen) -> list[News]:
    outcome = seen.own_outcome
    if outcome is None or outcome.outcome not in _ENDS:  # who stopped it knows
        return []
    kind, words = _ENDS[outcome.outcome]
    return [_news(seen, kind, f"{words}: {outcome.reason}")]


def _news(seen: Seen, kind: Kind, sentence: str, attempt: int | None = None) -> News:
    """Of an attempt, or of the whole run since its start."""
    name = kind.replace("_", "-") + (f"-{attempt}" if attempt else "")
    folded = " ".join(sentence.split())
    short = folded if len(folded) <= _LONGEST else folded[: _LONGEST - 1] + "…"
    return News(name=name, kind=kind, run_id=seen.run_id, start=seen.start, at=seen.at, step=seen.step,
                spent_usd=seen.spent_usd, sentence=short)
