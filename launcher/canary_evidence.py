"""What one run has shown, and what a claim says of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from launcher.offers import Offer
from launcher.plan import Plan
from launcher.recipe import Recipe
from launcher.reconcile import Reconciliation
from launcher.report import CostReport
from launcher.run_record import RunRecord
from trainer.contract import Document
from trainer.run_folder import AttemptFiles
from trainer.seen_machine import SeenMachine


class Mark(StrEnum):
    """What a run says of a claim."""

    PASS = "pass"
    FAIL = "FAIL"
    NOT_SHOWN = "not shown"


class Found(NamedTuple):
    """A mark and the numbers behind it."""

    mark: Mark
    because: str


class Verdict(NamedTuple):
    """What a run says of one claim."""

    claim: str
    mark: Mark
    because: str


@dataclass(frozen=True)
class Evidence:
    """All that the claims are judged by.

    Attributes:
        max_cost_usd: The cap of its last start.
        machines: What nodes found where they ran, by attempt.
        losses: By attempt and step.
        reconciliation: With the provider's own record; None where there is none to be asked.
        left: Machines of the run that are still rented; None where nobody can be asked.
    """

    record: RunRecord
    report: CostReport
    recipe: Recipe
    plan: Plan
    max_cost_usd: Decimal
    machines: Mapping[int, SeenMachine]
    losses: Mapping[int, Mapping[int, float]]
    reconciliation: Reconciliation | None
    left: Sequence[str] | None

    @property
    def clouds(self) -> set[str]:
        """Where its machines are from."""
        return self.plan.clouds

    def offer(self, files: AttemptFiles) -> Offer:
        """What the plan pays for in an attempt: the place that the attempt says it was."""
        places = self.plan.candidates(files.attempt.document)
        return next((offer for offer in places if offer.label == files.attempt.offer), places[0])

    def losses_of_machines(self) -> list[tuple[AttemptFiles, AttemptFiles | None]]:
        """Training attempts whose machine was taken, each with the next that trained."""
        training = [files for files in self.record.attempts if files.attempt.document is Document.TRAIN]
        return [(files, next(filter(has_trained, training[index + 1:]), None))
                for index, files in enumerate(training)
                if files.end and files.end.preempted and files.heartbeat]


def judged(holds: bool, because: str) -> Found:
    """Pass or fail."""
    return Found(Mark.PASS if holds else Mark.FAIL, because)


def has_trained(files: AttemptFiles) -> bool:
    """True once an attempt has begun its first step."""
    return files.heartbeat is not None and files.heartbeat.phases.train_s > 0
