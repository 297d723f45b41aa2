"""A course keeps its deadline whenever spot comes and goes: a run played by its own clock, in hours."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.course import Course, Place
from launcher.course_record import progress_of
from launcher.next_move import Move, Progress, Seen, next_move
from launcher.policies_known import GREEDY, UNIFORM_PROGRESS
from launcher.policy import Policy
from launcher.policy_ours import FORECAST_OURS
from trainer.contract import Document
from trainer.run_folder import Attempt, AttemptFiles, Heartbeat, Phases

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
WORK_H, START_H, SAVES_H, STEPS_PER_H = 6.0, 0.1, 0.5, 100


class Played:
    """Starts take as long as was measured, saves come every half hour, and what is not saved is lost."""

    def __init__(self, policy: Policy, hours: float, up: Sequence[tuple[float, float]]) -> None:
        places = tuple(Place(infra="gcp", spot=spot, resource=0, usd_per_hour=Decimal(usd), envs={},
                             move_usd=Decimal(0)) for spot, usd in ((True, "1"), (False, "3")))
        self.course = Course(begins_at=NOON, ends_at=NOON + timedelta(hours=hours), work_h=WORK_H,
                             overhead_h=START_H + SAVES_H, lost_h=SAVES_H, tick_s=600, policy=policy.name,
                             from_step=0, to_step=int(WORK_H * STEPS_PER_H), places=places)
        self.policy, self.up, self.move = policy, up, None
        self.done_h = self.durable_h = self.begun_h = self.worked_h = self.at_h = 0.0
        self.held: int | None = None
        self.since_h = 0.0

    def ends_h(self) -> float:
        """When all work is done."""
        while self.done_h < WORK_H:
            is_up = any(begin <= self.at_h < end for begin, end in self.up)
            if self.held == 0 and not is_up:
                self.held, self.done_h = None, self.durable_h
            self.take(self.decided(is_up))
            self.go_on()
        return self.at_h

    def decided(self, is_up: bool) -> Move:
        held = self.held is not None
        done_h = self.done_h if held else self.durable_h
        progress = Progress(step=int(done_h * STEPS_PER_H), steps=int(self.worked_h * STEPS_PER_H),
                            seconds=self.worked_h * 3600,
                            start_s=START_H * 3600 if held and self.done_h > self.begun_h else None)
        seen = Seen(at=NOON + timedelta(hours=self.at_h), place=self.held, looks={0: is_up},
                    held_since=NOON + timedelta(hours=self.since_h) if held else None)
        self.move = next_move(self.policy, self.course, seen, progress, self.move)
        return self.move

    def take(self, move: Move) -> None:
        if move.place == self.held:
            return
        self.durable_h = self.done_h  # who moves saves first
        self.held, self.since_h, self.begun_h = move.place, self.at_h, self.done_h

    def go_on(self) -> None:
        """To the next tick, to the moment when spot goes, or to the end."""
        tick_h = self.course.tick_s / 3600
        next_h = (int(self.at_h / tick_h + 1e-6) + 1) * tick_h
        if self.held == 0:
            next_h = min([next_h, *(end for _, end in self.up if end > self.at_h)])
        if self.held is not None:
            works_at_h = max(self.at_h, self.since_h + START_H)
            worked_h = min(max(0.0, next_h - works_at_h), WORK_H - self.done_h)
            self.done_h, self.worked_h = self.done_h + worked_h, self.worked_h + worked_h
            saves = int((self.done_h - self.begun_h) / SAVES_H + 1e-9)
            self.durable_h = max(self.durable_h, self.begun_h + saves * SAVES_H)
            if self.done_h >= WORK_H - 1e-9:
                self.done_h, next_h = WORK_H, works_at_h + worked_h
        self.at_h = next_h


def windows(seed: int) -> tuple[float, list[tuple[float, float]]]:
    """A deadline, and when there is spot: at first, so that a start is measured."""
    draw = random.Random(seed)
    hours, at_h, up = draw.choice((8.0, 10.0)), 0.9, [(0.0, 0.9)]
    while at_h < hours:
        begin = at_h + draw.expovariate(1 / 1.5)
        at_h = begin + draw.expovariate(1 / 1.2) + 0.3
        up.append((begin, at_h))
    return hours, up


@pytest.mark.parametrize(("policy", "num_seeds"), [
    (GREEDY, 150), (UNIFORM_PROGRESS, 150), (FORECAST_OURS, 2)], ids=lambda value: getattr(value, "name", ""))
def test_no_run_whose_starts_are_as_measured_is_late(policy: Policy, num_seeds: int) -> None:
    late = {}
    for seed in range(num_seeds):
        hours, up = windows(seed)
        if (ends_h := Played(policy, hours, up).ends_h()) > hours:
            late[seed] = ends_h - hours
    assert late == {}


def test_a_start_lasts_until_the_first_step_the_restore_included() -> None:
    """Asked for at noon, billed a minute later; 300 s of set-up and 1,200 s for its checkpoint."""
    attempt = Attempt(number=2, document=Document.TRAIN, billed_from=NOON + timedelta(seconds=60),
                      price_usd_per_hour=Decimal(1), offer="o", host="h", cloud="gcp")
    beat = Heartbeat(at=NOON + timedelta(seconds=2000), step=120, total_steps=400, resumed_from_step=100,
                     durable_step=100, durable_train_s=0, durable_evaluate_s=0, tokens_per_s=1,
                     phases=Phases(setup_s=300, restore_s=1200, train_s=440), spent_usd=Decimal(1))
    seen = Seen(at=NOON + timedelta(seconds=2000), place=0, held_since=NOON)
    assert progress_of([AttemptFiles(attempt=attempt, heartbeat=beat)], seen).start_s == 60 + 300 + 1200
