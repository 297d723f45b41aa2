"""The local engine on a course: real processes, spot that is simulated, and a record that replays."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import groupby
from pathlib import Path

import pytest
from engine_lab import NODE, RUN_ID, Lab, wait_until

from launcher.course import Course, Place
from launcher.course_record import CourseRecord
from launcher.errors import UsageError
from launcher.policies_known import UNIFORM_PROGRESS
from launcher.preempt_at import PreemptAt, parse_preempt_at
from trainer.contract import Env, Outcome


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    found = Lab(tmp_path)
    yield found
    found.close()


def course(*, seconds: float, work_s: float) -> str:
    """100 steps from now on, asked twice a second; spot for $0.50, on demand for $1.20 an hour."""
    now = datetime.now(UTC)
    places = tuple(Place(infra="local", spot=spot, resource=0, usd_per_hour=Decimal(usd), move_usd=Decimal(0),
                         envs={Env.PRICE: usd, Env.OFFER: f"here ({'spot' if spot else 'on-demand'})"})
                   for spot, usd in ((True, "0.5"), (False, "1.2")))
    return Course(begins_at=now, ends_at=now + timedelta(seconds=seconds), work_h=work_s / 3600, from_step=0,
                  overhead_h=0.1 / 3600, tick_s=0.5, to_step=100, policy="uniform-progress",
                  places=places).model_dump_json()


def test_without_spot_it_waits_then_pays_more_and_goes_back(lab: Lab) -> None:
    """40 of 100 steps are 40 % of the way: on demand is due after as much of the time that is decided by,
    which is 24 s but for a start as slow as this machine's. Spot is back after 14."""
    lab.submit(f"""case $LDLM_ATTEMPT in
1) {NODE} beat:40,40 sleep:60;;
2) {NODE} on-term:75 sleep:8 beat:90,90 sleep:60;;
esac""", preempt_at="step:1+14", envs={Env.COURSE: course(seconds=24, work_s=12)})
    assert lab.wait_for_end().phase == "ended"

    assert lab.outcome() is Outcome.FINISHED
    assert lab.ends() == [(None, True), (75, False), (0, False)]
    assert [(files.attempt.offer, files.attempt.price_usd_per_hour) for files in lab.run.attempts()] == [
        ("here (spot)", Decimal("0.5")), ("here (on-demand)", Decimal("1.2")),
        ("here (spot)", Decimal("0.5"))]
    moves = CourseRecord(lab.run).moves()
    assert [action for action, _ in groupby(move.action for move in moves)] == [
        "spot", "wait", "on_demand", "spot"]
    paid = next(move for move in moves if move.action == "on_demand")
    assert 15 / 3600 <= paid.setting["deadline_h"] < 24 / 3600
    assert 0.4 * paid.setting["deadline_h"] <= paid.situation["elapsed_h"] < 14 / 3600
    for move in moves:
        again = move.replayed(UNIFORM_PROGRESS)
        assert (again.action.name.lower(), again.reason) == (move.action, move.reason)


def test_a_stop_ends_the_wait_for_spot(lab: Lab) -> None:
    lab.submit(f"{NODE} beat:99,99 sleep:60", preempt_at="step:1+600",
               envs={Env.COURSE: course(seconds=600, work_s=300)})
    wait_until(lambda: "spot is up nowhere" in lab.engine.state(RUN_ID).detail, "it waits")
    lab.engine.cancel(RUN_ID)
    assert lab.wait_for_end().detail.startswith("stopped: stopped on request before train")


def test_a_course_that_cannot_be_read_leaves_the_run_as_it_is(lab: Lab) -> None:
    lab.submit("exit 0", envs={Env.COURSE: "{"})
    lab.wait_for_end()
    assert lab.ends() == [(0, False)] and CourseRecord(lab.run).moves() == []
    assert "is not followed" in lab.folder.supervisor_log.read_text()


@pytest.mark.parametrize("text", ["step:150", "step:150+20", "time:30", "time:0.5+0.25"])
def test_a_moment_of_a_preemption_is_written_as_it_is_typed(text: str) -> None:
    assert str(parse_preempt_at(text)) == text


def test_spot_is_away_for_as_long_as_is_typed() -> None:
    assert parse_preempt_at("step:150+20") == PreemptAt("step", 150, 20.0)


@pytest.mark.parametrize("text", ["step:150+",
                                  "step:150+0", "step:+20", "time:30+inf", "step:1+nan", "time:5+-1"])
def test_a_moment_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_preempt_at(text)
    assert "+SECONDS behind it keeps spot away" in str(refused.value.fix)
