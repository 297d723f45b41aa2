"""What a run under way does next, by a clock that the test sets, and that its record replays it."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.course import Course, Place
from launcher.next_move import Move, Progress, Seen, next_move
from launcher.policies_known import GREEDY, UNIFORM_PROGRESS
from launcher.policy import Policy
from launcher.policy_ours import POLICIES

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
MINUTE_H = 1 / 60


def place(*, spot: bool, usd: str, infra: str = "vast", move_usd: str = "0.02") -> Place:
    return Place(infra=infra, spot=spot, resource=0, usd_per_hour=Decimal(usd), move_usd=Decimal(move_usd),
                 envs={})


def course(*places: Place, hours: float = 10, work_h: float = 4) -> Course:
    """400 steps; a start takes half an hour, by the plan; asked every ten minutes."""
    return Course(begins_at=NOON, ends_at=NOON + timedelta(hours=hours), work_h=work_h, overhead_h=0.5,
                  tick_s=600, from_step=0, to_step=400, policy="uniform-progress",
                  places=places or (place(spot=True, usd="1"), place(spot=False, usd="3")))


class Run:
    """A run that does 100 steps an hour, half an hour after its machine was asked for."""

    def __init__(self, on: Course, policy: Policy = UNIFORM_PROGRESS) -> None:
        self.course, self.policy, self.moves = on, policy, list[Move]()
        self.steps, self.saved, self.held, self.since = 0.0, 0.0, None, NOON

    def ask(self, at_h: float, *, spot_is_up: bool) -> Move:
        at = NOON + timedelta(hours=at_h)
        is_working = self.held is not None and at - self.since > timedelta(minutes=30)
        progress = Progress(step=int(self.steps), steps=int(self.steps), seconds=self.steps * 36,
                            start_s=1800 if is_working else None)
        seen = Seen(at=at, place=self.held, held_since=self.since if self.held is not None else None,
                    looks={index: spot_is_up for index in self.course.spot})
        move = next_move(self.policy, self.course, seen, progress, self.moves[-1] if self.moves else None)
        self.moves.append(move)
        if move.place != self.held and (move.place is not None or self.held is None):
            self.held, self.since = move.place, at
        return move

    def works(self, hours: float) -> None:
        self.steps += 100 * hours

    def loses_its_machine(self) -> None:
        self.held = None


def test_spot_is_waited_for_until_on_demand_is_due_and_it_goes_back():
    """By a line of 4 h in 9.5, for half an hour is kept back: with 1 h done that is after 2 h 22.5 min."""
    run = Run(course())
    assert run.ask(0, spot_is_up=True).place == 0
    run.works(1)
    run.loses_its_machine()
    waits = [run.ask(hour, spot_is_up=False) for hour in (1.5, 1.7, 2.0, 2.3)]
    assert [move.action for move in waits] == ["wait"] * 4
    assert [move.again_at - NOON for move in waits] == [
        timedelta(minutes=minutes) for minutes in (100, 110, 130, 140)]
    pays = run.ask(2.4, spot_is_up=False)
    assert (pays.action, pays.place, pays.leaves) == ("on_demand", 1, False)
    assert run.ask(3.0, spot_is_up=True).action == "on_demand"  # behind the line: it has just begun
    run.works(1.5)
    back = run.ask(4.6, spot_is_up=True)
    assert (back.action, back.place, back.leaves) == ("spot", 0, True)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_what_was_recorded_gives_the_same_decisions_one_by_one(policy):
    run = Run(course(), policy)
    for minute in range(0, 540, 7):
        is_up = minute % 90 < 40 and not 120 < minute < 440
        if run.held == 0 and not is_up:
            run.loses_its_machine()
        run.ask(minute * MINUTE_H, spot_is_up=is_up)
        if run.held is not None:
            run.works(5 * MINUTE_H)
    kinds = {"on-demand": {"on_demand"}, "spot-only": {"spot", "wait"}}
    assert {move.action for move in run.moves} == kinds.get(policy.name, {"spot", "wait", "on_demand"})
    for move in run.moves:
        again = Move.model_validate_json(move.model_dump_json()).replayed(policy)
        taken = None if again.place is None else run.course.spot[again.place]
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)
        assert move.action != "spot" or taken == move.place


def test_two_looks_in_one_tick_are_one_and_ticks_that_nobody_saw_are_as_before():
    run = Run(course())
    seen = []
    for minute, is_up in ((0, True), (1, False), (31, False), (35, True), (42, False)):
        run.loses_its_machine()
        seen.append(run.ask(minute * MINUTE_H, spot_is_up=is_up).situation["places"][0]["seen"])
    assert seen == ["1u", "1d", "4d", "3d,1u", "3d,1u,1d"]


def test_the_longest_start_that_was_seen_counts_instead_of_the_plan_s():
    on, moves = course(), []
    for minute, start_s in ((0, None), (10, 240), (50, None), (60, 900), (90, 120)):
        seen = Seen(at=NOON + timedelta(minutes=minute), place=0 if minute else None, held_since=NOON,
                    looks={0: True})
        moves.append(next_move(UNIFORM_PROGRESS, on, seen, Progress(step=0, start_s=start_s),
                               moves[-1] if moves else None))
    assert [round(move.setting["overhead_h"] * 3600) for move in moves] == [1800, 240, 240, 900, 900]
    assert [move.situation["overhead_left_h"] for move in moves] == [0, 0, 0, 0, 0]
    written = moves[-1].model_dump_json()
    as_before = written.replace('"longest_start_h"', '"overhead_h"', 1)  # by older versions
    assert as_before != written == Move.model_validate_json(as_before).model_dump_json()


def test_what_a_loss_may_cost_is_added_to_a_start_that_was_measured():
    on = course().model_copy(update={"overhead_h": 0.75, "lost_h": 0.25})
    for start_s, overhead_h in ((None, 0.75), (900, 0.5)):
        seen = Seen(at=NOON + timedelta(hours=1), place=0, held_since=NOON, looks={0: True})
        move = next_move(UNIFORM_PROGRESS, on, seen, Progress(step=0, start_s=start_s), None)
        assert move.setting["overhead_h"] == pytest.approx(overhead_h)


def test_a_machine_that_has_just_been_asked_for_has_its_start_before_it():
    seen = Seen(at=NOON + timedelta(minutes=12), place=1, held_since=NOON + timedelta(minutes=6), looks={})
    move = next_move(UNIFORM_PROGRESS, course(), seen, Progress(step=0), None)
    assert move.situation["overhead_left_h"] == pytest.approx(0.4)
    assert move.situation["held"] == "on_demand" and move.situation["place"] is None


def test_the_run_s_own_pace_counts_once_it_has_one():
    def left_h(steps: int, seconds: float) -> float:
        progress = Progress(step=100, steps=steps, seconds=seconds)
        return next_move(UNIFORM_PROGRESS, course(), Seen(at=NOON), progress, None).situation["work_left_h"]

    assert left_h(9, 9 * 72) == pytest.approx(3)  # too few to be believed: the plan's 36 s
    assert left_h(100, 100 * 72) == pytest.approx(6)


def test_on_demand_is_taken_while_a_start_of_twice_the_longest_still_fits():
    """10 h, 4 of work, starts of 0.5 h, ticks of a sixth: after 4.83 h, with nothing kept back after 5.33."""
    on, wished = course(), []
    for hour in (4.8, 4.87, 5.0):
        seen = Seen(at=NOON + timedelta(hours=hour), looks={0: False})
        wished.append(next_move(GREEDY, on, seen, Progress(step=0), None).action)
    assert wished == ["wait", "on_demand", "on_demand"]


def test_of_what_is_to_spare_at_most_half_is_kept_back():
    on = course(hours=4.8)  # 0.3 h to spare, of which 0.15 are kept
    move = next_move(GREEDY, on, Seen(at=NOON, looks={0: True}), Progress(step=0), None)
    assert move.on_demand_at == NOON + timedelta(hours=0.15)


def test_a_run_too_slow_for_its_deadline_goes_on_demand():
    slow = Progress(step=100, steps=100, seconds=100 * 360)
    move = next_move(UNIFORM_PROGRESS, course(), Seen(at=NOON, looks={0: True}), slow, None)
    assert move.action == "on_demand"
    assert move.setting["deadline_h"] - move.situation["elapsed_h"] == pytest.approx(10)


def test_of_several_places_the_cheapest_that_is_there_is_taken_the_move_included():
    on = course(place(spot=False, usd="3"), place(spot=True, usd="1"),
                place(spot=True, usd="0.9", infra="gcp"), place(spot=False, usd="2.5", infra="gcp"))

    def taken(looks: dict[int, bool], at_h: float = 0) -> int | None:
        seen = Seen(at=NOON + timedelta(hours=at_h), looks=looks)
        return next_move(UNIFORM_PROGRESS, on, seen, Progress(step=0), None).place

    assert taken({1: True, 2: True}) == 2 and taken({1: True, 2: False}) == 1
    assert taken({}, at_h=5.6) == 3  # the cheaper on demand
