"""Limits of time: what is refused before anything is rented, by how much, and what would do."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from launch_examples import NOW, example_plan, example_recipe, example_task

from launcher.commands import PlanOptions
from launcher.errors import LdlmError, NoOfferError, UsageError
from launcher.estimate import Done
from trainer.contract import Document
from trainer.guard import Standing, headroom
from trainer.limits import Limits

MIDNIGHT = "2026-12-01T00:00:00+00:00"


@pytest.mark.parametrize("written", [
    "2026-12-01", "2026-12-01T00:00", "2026-12-01T00:00Z", "2026-12-01T00:00:00Z", "2026-12-01T01:00+01:00",
    "2026-12-01 00:00:00", "'2026-12-01'"])
def test_a_deadline_is_a_moment_of_greenwich(written: str) -> None:
    assert example_recipe(f"limits.deadline={written}").limits.deadline == datetime.fromisoformat(MIDNIGHT)


@pytest.mark.parametrize(("limit", "words"), [
    ("deadline=tomorrow", "'tomorrow' is no date and time"), ("deadline=2026-13-01", "month must be in"),
    ("deadline=5", "must be"), ("max_hours=-1", "more than 0"), ("max_hours=.nan", "finite number"),
    ("max_hours=many", "must be a number"), ("max_cost_usd=.inf", "finite number")])
def test_what_is_no_limit_is_refused(limit: str, words: str) -> None:
    with pytest.raises(LdlmError, match=words):
        example_recipe(f"limits.{limit}")


@pytest.mark.parametrize(("typed", "hours", "moment"), [
    ("12.5", Decimal("12.5"), None), ("2026-12-01", None, MIDNIGHT), ("2026-12-01T00:00", None, MIDNIGHT),
    ("2026-12-01T02:00+02:00", None, MIDNIGHT)])
def test_a_typed_deadline_replaces_both_of_a_recipe(
        typed: str, hours: Decimal | None, moment: str | None) -> None:
    limits = PlanOptions(deadline=typed, max_hours="7").limits()
    found = {"deadline_hours": hours, "deadline": moment and datetime.fromisoformat(moment)}
    assert limits == found | {"max_hours": 7}
    changed = example_recipe("limits.deadline=2030-01-01").limits.changed(limits)
    assert (changed.deadline_hours, changed.deadline, changed.max_hours) == (*found.values(), 7.0)


@pytest.mark.parametrize("typed", ["NaN", "-3", "0", "1e9", "2026-02-30", "next-week", ""])
def test_what_is_no_deadline_is_refused_as_it_was_typed(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        PlanOptions(deadline=typed).limits()
    assert caught.value.place == "--deadline" and repr(typed) in caught.value.problem


def test_of_both_deadlines_the_earlier_counts() -> None:
    assert example_plan(None, "limits.deadline=2030-01-01").deadline == NOW + timedelta(hours=2)
    soon = NOW + timedelta(hours=1)
    assert example_plan(None, f"limits.deadline={soon.isoformat()}").deadline == soon
    assert example_plan(None, "limits.deadline_hours=", f"limits.deadline={MIDNIGHT}").deadline == datetime(
        2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(("minutes", "words"), [
    (1, "in 1 min 00 s"), (-90, "1 h 30 min ago"), (-90 * 1440, "90 d 00 h ago")])
def test_a_deadline_that_cannot_be_met_or_is_over_is_refused(minutes: float, words: str) -> None:
    at = (NOW + timedelta(minutes=minutes)).isoformat()
    with pytest.raises(NoOfferError, match=f"its deadline is 2026-.* UTC, {words}") as caught:
        example_plan(None, f"limits.deadline={at}")
    (enough,) = re.findall(r"add --deadline ([\d.]+) ", caught.value.fix)
    assert example_plan(None, f"limits.deadline_hours={enough}").deadline


def test_paid_hours_below_the_plan_are_refused_with_what_would_do() -> None:
    with pytest.raises(NoOfferError, match=r"would take ~.*, and limits.max_hours is 0.01") as caught:
        example_plan(None, "limits.max_hours=0.01")
    (enough,) = re.findall(r"add --max-hours ([\d.]+)", caught.value.fix)
    assert example_plan(None, f"limits.max_hours={enough}").max_hours == float(enough)
    done = Done(step=200, spent_usd=Decimal(0), has_trained=False, paid_h=7.5)
    with pytest.raises(NoOfferError, match=r"has had 7.50 paid hours, what is left would take") as caught:
        example_plan(None, "limits.max_hours=7.5", done=done)
    (enough,) = re.findall(r"add --max-hours ([\d.]+)", caught.value.fix)
    (over,) = re.findall(r"limits.max_hours is 7.5, ([\d.]+) h too little", caught.value.problem)
    assert Decimal("7.5") + Decimal(over) == Decimal(enough)


def test_nodes_are_told_of_paid_hours_and_training_leaves_the_benchmark_its_part() -> None:
    task, bare = example_task(None, "limits.max_hours=3"), example_task()
    train, bench = (Limits.of(task.document(which)["envs"]) for which in Document)
    assert train.max_hours == bench.max_hours == 3
    assert 0 < train.bench_reserve_hours < Decimal("0.5") and bench.bench_reserve_hours == 0
    assert bench.bench_reserve_usd == 0 < train.bench_reserve_usd
    assert Limits.of(bare.document(Document.TRAIN)["envs"]).max_hours is None
    found = headroom(Limits(max_hours=Decimal(3), bench_reserve_hours=Decimal("0.25")), Document.TRAIN,
                     Standing(NOW, paid_s=2.5 * 3600))
    assert found == (900, "2.50 of 3 paid hours (0.25 kept for the benchmark)")
