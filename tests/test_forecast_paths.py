import random
import statistics
from dataclasses import replace

import numpy as np
import pytest

from launcher.availability import Availability
from launcher.forecast_paths import Elsewhere, Job, paths_of
from launcher.policies_known import GREEDY, UNIFORM_PROGRESS
from launcher.policy_ours import FORECAST_OURS

NEVER_LOST = Availability(hours_to_loss=1e9, loss_spread=0.1, hours_to_machine=0.0, wait_spread=0.1)
KNOWN = Availability(hours_to_loss=4.0, loss_spread=0.0, hours_to_machine=0.5, wait_spread=0.0)
RARE = Availability(hours_to_loss=0.5, loss_spread=0.0, hours_to_machine=0.3, wait_spread=0.0)
JOB = Job(training_h=20.0, speed_factors=(1, 1), beside_h=1.0, first_h=0.3, again_h=0.2, bench_h=0.1,
          guess_factors=(1, 1), interval_h=0.5, save_h=0.1, availability=KNOWN)


def test_the_same_job_always_gets_the_same_forecast():
    one, other = paths_of(JOB), paths_of(JOB)
    assert all(np.array_equal(vars(one)[name], vars(other)[name]) for name in vars(one))


def test_a_machine_that_is_never_lost_takes_what_the_work_takes():
    paths = paths_of(replace(JOB, availability=NEVER_LOST))
    assert np.allclose(paths.trained_after_h, 21.3)
    assert not paths.num_losses.any() and (paths.num_starts == 1).all()


def test_the_factors_of_a_guess_are_its_percentiles():
    paths = paths_of(replace(JOB, availability=NEVER_LOST, speed_factors=(0.5, 3.0)))
    assert np.quantile(paths.training_h, [0.1, 0.5, 0.9]) == pytest.approx([10, 20, 60], rel=0.01)


def followed(rng: random.Random) -> tuple[float, float, int]:
    """One run from loss to loss, in code of its own: hours held, hours waited, losses."""
    left_h, held_h, waited_h, losses, start_h = 21.0, 0.0, 0.0, 0, 0.3
    if rng.random() > 4.0 / 4.5:
        waited_h += rng.expovariate(1 / 0.5)
    while True:
        life_h = rng.expovariate(1 / 4.0)
        if life_h >= start_h + left_h:
            return held_h + start_h + left_h, waited_h, losses
        held_h, losses = held_h + life_h, losses + 1
        done_h = max(0.0, life_h - start_h)
        left_h -= done_h - min(done_h, 0.5 * rng.random() + 0.1)
        waited_h += rng.expovariate(1 / 0.5)
        start_h = 0.2


def test_losses_cost_what_a_replay_of_its_own_says():
    rng = random.Random(3)
    held, waited, losses = zip(*[followed(rng) for _ in range(4000)], strict=True)
    paths = paths_of(JOB)
    assert paths.held_h.mean() == pytest.approx(statistics.mean(held), rel=0.02)
    assert paths.waiting_h.mean() == pytest.approx(statistics.mean(waited), rel=0.12)
    assert paths.num_losses.mean() == pytest.approx(statistics.mean(losses), rel=0.07)
    told = [sorted(losses)[share] for share in (400, 2000, 3600)]
    assert np.quantile(paths.num_losses, [0.1, 0.5, 0.9]) == pytest.approx(told, abs=0.5)


def benchmarked(rng: random.Random) -> tuple[float, float]:
    """Hours paid and waited of one benchmark of 0.4 h that has 1 h, in code of its own."""
    paid_h = 0.0
    waited_h = rng.expovariate(1 / 0.3) if rng.random() < 0.3 / 0.8 else 0.0
    while True:
        life_h = rng.expovariate(1 / 0.5)
        if min(life_h, 0.4) >= 1.0 - paid_h:
            return 1.0, waited_h
        if life_h >= 0.4:
            return paid_h + 0.4, waited_h
        paid_h += life_h
        waited_h += rng.expovariate(1 / 0.3)


def test_a_benchmark_whose_machine_is_lost_begins_again_until_its_hours_are_over():
    rng = random.Random(3)
    paid, waited = zip(*[benchmarked(rng) for _ in range(4000)], strict=True)
    paths = paths_of(replace(JOB, bench_h=0.4, bench_limit_h=1.0, bench_availability=RARE))
    assert paths.bench_h.mean() == pytest.approx(statistics.mean(paid), rel=0.04)
    assert (paths.bench_h == 1.0).mean() == pytest.approx(paid.count(1.0) / 4000, abs=0.04)
    assert paths.bench_waiting_h.mean() == pytest.approx(statistics.mean(waited), rel=0.12)
    assert paths.ended_after_h == pytest.approx(paths.trained_after_h + paths.bench_waiting_h + paths.bench_h)


def test_what_comes_of_a_benchmark_changes_nothing_of_the_training_before_it():
    one, other = paths_of(JOB), paths_of(replace(JOB, bench_availability=RARE))
    assert np.array_equal(one.trained_after_h, other.trained_after_h)


def test_hours_by_kind_add_up_to_what_is_held_under_a_policy_too():
    for policy in (UNIFORM_PROGRESS, GREEDY):
        paths = paths_of(replace(JOB, deadline_h=30.0, on_demand_price=3.0), policy)
        assert (paths.on_demand_h <= paths.held_h + 1e-6).all()
        assert (paths.trained_after_h >= 21.2).all()
        assert (paths.restarts_h >= 0).all() and (paths.redone_h >= 0).all()


def test_with_machines_on_demand_a_run_of_known_speed_is_nearly_always_in_time():
    scarce = replace(JOB, availability=Availability(hours_to_loss=2.0, loss_spread=1.0, hours_to_machine=4.0,
                                                    wait_spread=1.0), deadline_h=26.0)
    safe = paths_of(replace(scarce, on_demand_price=3.0), GREEDY)
    assert (safe.trained_after_h <= 26.0 + 1.0).all()
    assert (paths_of(scarce).trained_after_h <= 26.0).mean() < 0.5
    assert safe.on_demand_h.mean() > 5


NEVER = Availability(hours_to_loss=1e-9, loss_spread=0.0, hours_to_machine=1e9, wait_spread=0.0)


@pytest.mark.parametrize("policy", [UNIFORM_PROGRESS, FORECAST_OURS])
def test_where_its_own_place_has_nothing_a_run_goes_on_at_another_and_pays_its_price(policy):
    alone = replace(JOB, availability=NEVER, deadline_h=30.0, on_demand_price=3.0)
    paths = paths_of(replace(alone, elsewhere=(Elsewhere(NEVER_LOST, 1.5, is_watched=True),)), policy)
    assert paths.dearer_h == pytest.approx(paths.held_h / 2)
    assert not paths.on_demand_h.any() and not paths.waiting_h.any() and (paths.num_starts == 1).all()
    assert paths_of(alone, policy).on_demand_h.min() > 20


def test_a_loss_here_is_a_start_at_the_other_place_and_no_waiting():
    other = Elsewhere(NEVER_LOST, 1.0, is_watched=True)
    paths = paths_of(replace(JOB, deadline_h=60.0, on_demand_price=3.0, elsewhere=(other,)), GREEDY)
    assert paths.num_losses.mean() > 0.8 and (paths.num_starts == paths.num_losses + 1).all()
    assert paths.restarts_h.mean() == pytest.approx(0.2 * paths.num_losses.mean(), rel=0.05)
    assert not paths.waiting_h.any() and not paths.on_demand_h.any()


def test_where_spot_is_not_seen_from_on_demand_a_run_stays_on_demand():
    scarce = KNOWN.model_copy(update={"hours_to_machine": 8.0})
    seen, unseen = (paths_of(replace(JOB, availability=scarce, deadline_h=30.0, on_demand_price=3.0,
                                     is_watched=is_watched), FORECAST_OURS) for is_watched in (True, False))
    assert unseen.on_demand_h.mean() > 1.2 * seen.on_demand_h.mean()
    assert (unseen.num_starts <= unseen.num_losses + 1).all()
    assert (seen.num_starts > seen.num_losses + 1).any()


def test_where_machines_are_lost_before_they_have_started_it_ends_all_the_same():
    paths = paths_of(replace(JOB, availability=Availability(
        hours_to_loss=1e-6, loss_spread=0.0, hours_to_machine=1.0, wait_spread=0.0)))
    assert np.isfinite(paths.trained_after_h).all() and paths.trained_after_h.min() > 1000
