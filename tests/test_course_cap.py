"""What the cap leaves of decisions, worked out by hand: $1 spot, $3 on demand, half an hour a start."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.course import Course, Place
from launcher.course_cap import within_cap
from launcher.course_record import decide_next
from launcher.next_move import Move, Seen
from launcher.policies_known import GREEDY, ON_DEMAND, UNIFORM_PROGRESS
from launcher.policy import Action, Decision, PlaceNow, Setting, Situation, decide
from trainer.contract import Document, Env, Name, attempt_file
from trainer.limits import Limits
from trainer.run_folder import AttemptEnd, RunFolder
from trainer.store import open_store

SETTING = Setting(work_h=10, deadline_h=20, overhead_h=0.5, spot_usd_per_hour=1, on_demand_usd_per_hour=3,
                  tick_h=1)
PAYS = Decision(Action.ON_DEMAND, None, "it is late")
DOWN, UP, UP_DEARER = PlaceNow("3d", 1.0, 0.25), PlaceNow("3d,1u", 1.0, 0.25), PlaceNow("4u", 1.5)


def now(*places: PlaceNow, held: Action = Action.WAIT, place: int | None = None,
        left_h: float = 4) -> Situation:
    return Situation(elapsed_h=15, work_left_h=left_h, held=held, place=place,
                     overhead_left_h=0.0, places=places or (DOWN,))


@pytest.mark.parametrize("left_usd", [None, 13.5, 99.0])
def test_a_cap_that_pays_to_the_end_changes_nothing(left_usd: float | None) -> None:
    """4 h and a start of 0.5 at $3 are $13.50."""
    assert within_cap(PAYS, SETTING, now(), left_usd) == PAYS


def test_on_demand_goes_on_while_the_rest_would_still_be_paid_on_spot_and_says_what_is_short() -> None:
    """An hour on demand is $3 and half an hour of work; 3.5 h and a start on spot, with its move, $4.25."""
    found = within_cap(PAYS, SETTING, now(), 7.25)
    assert (found.action, found.reason) == (
        Action.ON_DEMAND, "it is late; on demand to the end is $13.50, the cap leaves $7.25")
    held = now(held=Action.ON_DEMAND)  # no start any more: $12 to the end; $3, an hour done, then $3.75
    assert within_cap(PAYS, SETTING, held, 12.0) == PAYS
    assert within_cap(PAYS, SETTING, held, 6.75).action is Action.ON_DEMAND
    assert within_cap(PAYS, SETTING, held, 6.74).action is Action.WAIT


def test_then_it_waits_for_spot_or_takes_the_cheapest_that_is_there() -> None:
    waits = within_cap(PAYS, SETTING, now(), 7.24)
    assert waits == Decision(Action.WAIT, None, "on demand to the end is $13.50, the cap leaves $7.24: "
                                                "it waits for spot")
    takes = within_cap(PAYS, SETTING, now(UP_DEARER, DOWN, UP), 7.0)
    assert takes == Decision(Action.SPOT, 2, "on demand to the end is $13.50, the cap leaves $7.00: "
                                             "spot at $1.00/h")
    # Of 0.4 h what is held costs $0.60, and the cheaper place, with a start and a move, $1.15.
    stays = within_cap(PAYS, SETTING, now(UP_DEARER, UP, held=Action.SPOT, place=0, left_h=0.4), 0.65)
    assert (stays.action, stays.place) == (Action.SPOT, 0)


def test_where_spot_could_not_finish_it_either_the_policy_decides_and_the_nodes_end_it_at_the_cap() -> None:
    """4 h and a start at $1, and the move, are $4.75."""
    assert within_cap(PAYS, SETTING, now(), 4.75).action is Action.WAIT
    assert within_cap(PAYS, SETTING, now(), 4.74).action is Action.ON_DEMAND
    assert within_cap(PAYS, SETTING, now(), -2.0) == Decision(
        Action.ON_DEMAND, None, "it is late; on demand to the end is $13.50, the cap leaves $0.00")


def test_spot_that_the_cap_does_not_pay_to_the_end_is_taken_and_it_is_said() -> None:
    spot = Decision(Action.SPOT, 0, "spot is up")
    assert within_cap(spot, SETTING, now(UP), 4.75) == spot
    short = within_cap(spot, SETTING, now(UP), 4.5)
    assert (short.action, short.reason) == (
        Action.SPOT, "spot is up; to the end $4.75, the cap leaves $4.50")


@given(up_from=st.integers(0, 60), deadline_h=st.floats(3, 12), cap=st.floats(1.01, 4),
       dearer=st.floats(1.1, 6))
@settings(max_examples=60, deadline=None)
def test_a_run_that_spot_could_finish_within_the_cap_is_never_brought_to_where_it_could_not(
        up_from: int, deadline_h: float, cap: float, dearer: float) -> None:
    """2 h of work, starts of 15 minutes, ticks of 10; spot is away for up to 10 h. Billed here."""
    known = Setting(work_h=2, deadline_h=deadline_h, overhead_h=0.25, spot_usd_per_hour=1,
                    on_demand_usd_per_hour=dearer)
    cap_usd, spent, work_h, start_h, held = 2.25 * cap, 0.0, 2.0, 0.0, Action.WAIT
    for tick in range(100):
        here = Situation(elapsed_h=tick / 6, work_left_h=work_h, held=held, overhead_left_h=start_h,
                         place=0 if held is Action.SPOT else None,
                         places=(PlaceNow("1u" if tick >= up_from else "1d", 1.0),))
        action = within_cap(decide(GREEDY, known, here), known, here, cap_usd - spent).action
        if action is not held:
            held, start_h = action, 0.0 if action is Action.WAIT else 0.25
        if held is Action.WAIT:
            continue
        paid_h = min(1 / 6, start_h + work_h)
        spent += paid_h * (1.0 if held is Action.SPOT else dearer)
        worked_h, start_h = max(0.0, paid_h - start_h), max(0.0, start_h - paid_h)
        work_h -= worked_h
        if work_h < 1e-9:
            break
    assert work_h < 1e-9 and spent <= cap_usd + 1e-9


def course_from(begins_at: datetime) -> Course:
    """Four hours of work in ten, half an hour a start, always on demand."""
    places = tuple(Place(infra="vast", spot=spot, resource=0, usd_per_hour=Decimal(usd), move_usd=Decimal(0),
                         envs={}) for spot, usd in ((True, "1"), (False, "3")))
    return Course(begins_at=begins_at, ends_at=begins_at + timedelta(hours=10), work_h=4, overhead_h=0.5,
                  tick_s=600, from_step=0, to_step=400, policy="on-demand", places=places)


def test_the_cap_of_the_task_less_what_the_record_has_cost_decides_and_replays(tmp_path: Path) -> None:
    """A cap of $8, of which $1 is the benchmark's, and half an hour at $4 that ended: $5 are left. 4 h of
    work and a start are $13.50 on demand; after a tick of it, $0.50, still $4.50 on spot."""
    begins_at = datetime.now(UTC).replace(microsecond=0)
    course = course_from(begins_at)
    run = RunFolder(open_store(f"file://{tmp_path}"), "run-1")
    run.add_event("submitted", begins_at)
    attempt = run.claim_attempt(Document.TRAIN, billed_from=begins_at - timedelta(minutes=30), offer="",
                                host="", price_usd_per_hour=Decimal(4))
    run.write(attempt_file(attempt.number, "end.json"),
              AttemptEnd(at=begins_at, exit_code=75, preempted=False, reason=""))

    def decided(cap: str) -> Move:
        limits = Limits.of({Env.MAX_COST: cap, Env.BENCH_RESERVE: "1"})
        move = decide_next(run, course, limits, Seen(at=begins_at + timedelta(minutes=1), looks={0: False}))
        assert move is not None
        return move

    enough, short, spent = decided("16.5"), decided("8"), decided("7.9")
    assert (enough.action, enough.left_usd, enough.on_demand_usd) == ("on_demand", 13.5, 13.5)
    assert (short.action, short.left_usd) == ("on_demand", 5.0)
    assert short.reason.endswith("; on demand to the end is $13.50, the cap leaves $5.00")
    assert (spent.action, spent.place) == ("wait", None)
    for move in (short, spent):
        again = Move.model_validate_json(move.model_dump_json()).replayed(ON_DEMAND)
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)
    assert spent.replayed(UNIFORM_PROGRESS).action is Action.WAIT


def test_an_hour_of_which_no_price_is_known_is_counted_at_the_dearest_place(tmp_path: Path) -> None:
    """$3 and 90 s of giving the machine back: of a cap of $16 there are $12.925 left."""
    begins_at = datetime.now(UTC).replace(microsecond=0)
    run = RunFolder(open_store(f"file://{tmp_path}"), "run-1")
    run.add_event("submitted", begins_at)
    attempt = run.claim_attempt(Document.TRAIN, billed_from=begins_at - timedelta(hours=1), offer="", host="",
                                price_usd_per_hour=Decimal(0), cloud="vast")
    run.write(attempt_file(attempt.number, "end.json"),
              AttemptEnd(at=begins_at, exit_code=75, preempted=False, reason=""))
    move = decide_next(run, course_from(begins_at), Limits(max_cost_usd=Decimal(16)),
                       Seen(at=begins_at + timedelta(minutes=5), looks={0: False}))
    assert move is not None and move.left_usd == pytest.approx(16 - 3 * (1 + 90 / 3600))


@pytest.mark.parametrize("torn", ['{"seen": {', '{"tick": 1}', ""])
def test_a_decision_that_is_torn_takes_none_of_those_before_it_away(tmp_path: Path, torn: str) -> None:
    """It rests on the newest that can be read, and on what that had seen."""
    begins_at, spot = datetime.now(UTC).replace(microsecond=0), Limits()
    run = RunFolder(open_store(f"file://{tmp_path}"), "run-1")
    run.add_event("submitted", begins_at)

    def decided(minute: int, *, is_up: bool) -> Move:
        move = decide_next(run, course_from(begins_at), spot,
                           Seen(at=begins_at + timedelta(minutes=minute), looks={0: is_up}))
        assert move is not None
        return move

    decided(1, is_up=True)
    stamp = f"{begins_at + timedelta(minutes=11):%Y%m%dT%H%M%S}.000000Z"
    run.write_bytes(f"{Name.COURSE}/{stamp}.json", torn.encode())
    (seen,) = (place["seen"] for place in decided(21, is_up=False).situation["places"])
    assert seen == "2u,1d"  # nobody looked in between that could be read
