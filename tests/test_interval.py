"""How often a run saves: against a simulation of machines that are lost, and at the bounds of its promise."""

import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hands import Hands

from trainer.config import CheckpointConfig, TrainConfig
from trainer.contract import Document, ExitCode
from trainer.interval import Gaps, History, Pace, Rates, Save, cheapest, losses_per_hour
from trainer.run_folder import Attempt, AttemptEnd, AttemptFiles, Phases, SavePace

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
SPOT = Rates(usd_per_hour=2.0, upload_usd_per_gb=0.01, hours_to_loss=7.0)


def simulated_usd(interval_h: float, save: Save, rates: Rates, hours: float) -> float:
    """What saves and lost work come to, by chance and not by formula: machines go without a word."""
    chance, at, usd = random.Random(7), 0.0, 0.0
    while at < hours:
        life, saves, kept = chance.expovariate(1 / rates.hours_to_loss), 0, 0.0
        while (saves + 1) * interval_h < life:
            saves += 1
            if saves * interval_h + save.seconds / 3600 <= life:
                kept = saves * interval_h
        usd += saves * save.stall_s / 3600 * rates.usd_per_hour
        usd += saves * save.num_bytes / 1e9 * rates.upload_usd_per_gb
        usd += (life - kept) * rates.usd_per_hour
        at += life
    return usd / at


@pytest.mark.parametrize(("save", "rates"), [
    (Save(8e9, 60.0, 0.5), SPOT),
    (Save(8e9, 60.0, 20.0), SPOT._replace(upload_usd_per_gb=0.0)),
    (Save(1e9, 10.0, 0.05), Rates(20.0, 0.09, 2.2)),
])
def test_no_other_interval_is_clearly_cheaper_where_machines_are_lost_by_chance(
        save: Save, rates: Rates) -> None:
    found = cheapest(save, 0.0, rates, 1 / rates.hours_to_loss, math.inf)
    assert found.reason.startswith("it costs least")
    ours = simulated_usd(found.seconds / 3600, save, rates, 40_000)
    others = [simulated_usd(found.seconds / 3600 * factor, save, rates, 40_000)
              for factor in (0.25, 0.5, 0.7, 1.4, 2.0, 4.0)]
    assert ours <= 1.01 * min(others), (ours, others)
    assert ours < 0.8 * max(others)  # it matters


def test_where_a_save_costs_nothing_but_its_time_the_interval_is_young_s() -> None:
    """The root of two times 5 min a save times 1,440 min to a loss is 120 min."""
    found = cheapest(Save(1.0, 300.0, 300.0), 0.0, Rates(3.0, 0.0, 24.0), 1 / 24, math.inf)
    assert found.seconds == pytest.approx(2 * 3600)


def test_a_promise_bounds_the_interval_so_that_interval_and_save_together_keep_it() -> None:
    found = cheapest(Save(8e9, 120.0, 0.5), 0.0, SPOT, 1 / 7, 600.0)
    assert (found.seconds, found.lost_s) == (480.0, 600.0)
    assert found.reason == ("no more than 10 min may be lost, and a save takes 2 min; "
                            "45 min would cost least")


def test_saves_follow_each_other_where_a_store_is_too_slow_for_the_promise() -> None:
    found = cheapest(Save(8e9, 700.0, 0.5), 0.0, SPOT, 1 / 7, 600.0)
    assert (found.seconds, found.lost_s) == (700.0, 1400.0)


def test_a_save_that_ends_just_after_a_chance_waits_for_the_next_and_that_is_counted() -> None:
    found = cheapest(Save(8e9, 240.0, 0.5), 150.0, SPOT, 1 / 7, 600.0)
    assert (found.seconds, found.lost_s) == (360.0, 630.0)
    assert found.reason == "a save takes 4 min, and the next may begin up to 2.5 min later"
    assert cheapest(Save(8e9, 120.0, 0.5), 150.0, SPOT, 1 / 7, 600.0).lost_s == 600.0


def longest_loss_s(step_s: float, evaluation_s: float, save: Save, most_lost_s: float) -> float:
    """The most work that a machine costs which goes just before some save of a run is durable, by hand.

    A save may begin after every ten steps, or each where ten take too long; every hundred there is an
    evaluation before that. Until the first one is over, its time is a guess.
    """
    steps = 1000
    config = TrainConfig.model_validate({
        "steps": steps, "global_batch_size": 128, "micro_batch_size": 1, "evaluate_every_steps": 100,
        "data": {"source": "x"}, "token_encoder": {"name": "x"},
        "checkpoint": {"max_lost_minutes": most_lost_s / 60}})
    gaps, pace = Gaps(config), Pace(config.checkpoint, SPOT, History(0, 0.0), 10**9)
    pace.measured(save)
    now_s = began_s = trained_s = evaluated_s = worst_s = 0.0
    for step in range(1, steps + 1):
        now_s, trained_s = now_s + step_s, trained_s + step_s
        if step % 100 == 0:
            now_s, evaluated_s = now_s + evaluation_s, evaluated_s + evaluation_s
        if step % gaps.chance_steps == 0:
            gaps.note(step, Phases(train_s=trained_s, evaluate_s=evaluated_s))
            interval = pace.interval(gaps.longest_s, is_told=False)
            passed_s = now_s - began_s
            if step == steps or passed_s >= save.seconds and interval.is_due(passed_s, gaps.after(step)):
                lost_s, began_s = now_s + save.seconds - began_s, now_s
                worst_s = max(worst_s, lost_s if step > 200 else 0.0)
    return worst_s


@pytest.mark.parametrize(("step_s", "evaluation_s", "save_s"), [
    (40.0, 53.0, 20.0), (40.0, 300.0, 20.0), (0.3, 60.0, 300.0), (7.0, 0.0, 599.0), (33.0, 500.0, 60.0),
    (225.0, 60.0, 400.0), (590.0, 600.0, 1.0), (59.0, 0.0, 600.0), (61.0, 0.0, 860.0)])
def test_no_machine_costs_more_than_is_promised_wherever_saves_may_begin(
        step_s: float, evaluation_s: float, save_s: float) -> None:
    """Two cards at home take 40 s a step, so a save by time may begin every 400 s; of a minute or more, after
    any step.
    """
    assert longest_loss_s(step_s, evaluation_s, Save(8e9, save_s, 0.5), 1800.0) <= 1800.0


def test_where_time_costs_nothing_the_promise_alone_counts() -> None:
    home = Rates.of_environment({})
    found = cheapest(Save(1e9, 10.0, 1.0), 0.0, home, losses_per_hour(home, History(0, 5.0)), 1800.0)
    assert found.lost_s == 1800.0


def attempt(begins_h: float, ends_h: float, *, document: Document = Document.TRAIN,
            code: int | None = ExitCode.RECOVER, **how: bool) -> AttemptFiles:
    end = {"preempted": False} | how
    return AttemptFiles(
        attempt=Attempt(number=1, document=document, billed_from=NOON + timedelta(hours=begins_h),
                        price_usd_per_hour=Decimal(1), offer="", host=""),
        end=AttemptEnd(at=NOON + timedelta(hours=ends_h), exit_code=code, reason="", **end))


def test_a_run_learns_how_often_its_machines_are_lost() -> None:
    seen = History.of([
        attempt(0, 4, preempted=True), attempt(4, 5, wrong_machine=True), attempt(5, 7, code=None),
        attempt(7, 9, code=1), attempt(9, 10, hung=True), attempt(10, 12, code=ExitCode.STOPPED),
        attempt(12, 13, document=Document.BENCH, preempted=True)], NOON + timedelta(hours=13))
    assert seen == History(losses=4, hours=11.0)
    assert losses_per_hour(SPOT, seen) == pytest.approx(5 / 18)
    assert losses_per_hour(SPOT, History(0, 0.0)) == pytest.approx(1 / 7)


def test_the_interval_follows_what_saves_are_measured_to_cost_and_hours_without_a_loss() -> None:
    clock = Hands()
    pace = Pace(CheckpointConfig(max_lost_minutes=240), SPOT, History(0, 0.0), 10**9, clock=clock)
    assert pace.record(pace.interval(0.0, is_told=False)) is None
    pace.measured(Save(8e9, 60.0, 0.5))
    first = pace.interval(0.0, is_told=False)
    assert first.seconds == pytest.approx(3600 * math.sqrt(2 * (0.08 + 0.5 / 1800) / (2 / 7)))
    assert pace.news(first) == (
        "a checkpoint every 45 min: it costs least: $0.0803 a save, a machine is lost every 7 h; a lost "
        "machine costs at most 46 min of work")
    assert pace.news(first) is None
    pace.measured(Save(2e9, 15.0, 0.5))
    assert pace.interval(0.0, is_told=False).seconds == pytest.approx(first.seconds / 2, rel=0.01)
    clock.now_s += 21 * 3600
    assert pace.interval(0.0, is_told=False).seconds == pytest.approx(first.seconds, rel=0.01)
    assert pace.interval(0.0, is_told=True).seconds == pytest.approx(2 * first.seconds, rel=0.01)


def test_a_promise_that_the_store_does_not_let_it_keep_is_told_with_what_holds_instead() -> None:
    pace = Pace(CheckpointConfig(max_lost_minutes=5), SPOT, History(0, 0.0), 10**9)
    pace.measured(Save(8e9, 240.0, 0.5))
    assert pace.news(pace.interval(0.0, is_told=False)) == (
        "warning: a checkpoint every 4 min: a save takes 4 min; a lost machine costs at most 8 min of work, "
        "and the recipe promises 5 min")


def test_a_promise_that_is_kept_after_all_is_told_although_the_interval_is_the_same() -> None:
    """The first steps of an attempt were slow."""
    pace = Pace(CheckpointConfig(max_lost_minutes=10), SPOT, History(0, 0.0), 10**9)
    pace.measured(Save(8e9, 60.0, 0.5))
    assert pace.news(pace.interval(560.0, is_told=False)) == (
        "warning: a checkpoint every 9 min: a save takes 1 min, and the next may begin up to 9.33 min later; "
        "a lost machine costs at most 11.3 min of work, and the recipe promises 10 min")
    assert pace.news(pace.interval(20.0, is_told=False)) == (
        "a checkpoint every 9 min: no more than 10 min may be lost, and a save takes 1 min; 45 min would "
        "cost least; a lost machine costs at most 10 min of work")
    assert pace.news(pace.interval(20.0, is_told=False)) is None


def test_an_attempt_begins_with_what_the_one_before_has_measured() -> None:
    before = SavePace(interval_s=1.0, lost_s=2.0, num_bytes=8_000_000_000, save_s=60.0, stall_s=0.5)
    config = CheckpointConfig(max_lost_minutes=10)
    assert Pace(config, SPOT, History(0, 0.0), 10**9, before).interval(0.0, is_told=False).seconds == 540.0
    slow_guess = Pace(config, SPOT, History(0, 0.0), 5 * 10**9).interval(0.0, is_told=False)
    assert slow_guess.seconds == 400.0  # 5 GB at 100 Mbit/s, one save after the other


def test_a_recipe_may_fix_the_interval_but_not_beyond_its_own_promise() -> None:
    pace = Pace(CheckpointConfig(every_minutes=2), SPOT, History(0, 0.0), 10**9)
    assert pace.interval(0.0, is_told=False)[::2] == (120.0, "the recipe says so")
    with pytest.raises(ValueError, match="every_minutes is 20, so more than max_lost_minutes=15 can be lost"):
        CheckpointConfig(every_minutes=20, max_lost_minutes=15)
    assert CheckpointConfig(every_minutes=90).most_lost_s == math.inf
    assert CheckpointConfig().most_lost_s == 1800.0
