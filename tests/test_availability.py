"""Beliefs about places, beside draws of their own from the same assumptions, and beside true means."""

import math
import random
import statistics

import numpy as np
import pytest

from launcher.availability import GUESS_LOSS_SPREAD, GUESS_WAIT_SPREAD, Availability, Seen, learned

GUESS = Availability(hours_to_loss=7.0, loss_spread=GUESS_LOSS_SPREAD, hours_to_machine=1.0,
                     wait_spread=GUESS_WAIT_SPREAD)


def lost(losses: int, hours: float) -> Seen:
    return Seen(losses=losses, up_h=hours, returns=0, down_h=0.0)


def drawn(counts: list[tuple[int, float]]) -> tuple[float, float]:
    """Median and spread of the next run's mean life, from places and runs drawn at random and weighted by
    how likely each would have shown these counts; guess 7 h, places a factor e**0.9 apart, runs e**1."""
    rng = np.random.default_rng(5)
    place = rng.normal(math.log(7.0), 0.9, 20_000)
    weights = np.ones_like(place)
    apart = [statistics.NormalDist().inv_cdf((index + 0.5) / 400) for index in range(400)]
    for losses, hours in counts:
        expected = hours / np.exp(place[:, None] + np.array(apart))
        weights *= (expected**losses * np.exp(-expected) / math.factorial(losses)).mean(axis=1)
    middle = np.average(place, weights=weights)
    return float(np.exp(middle)), math.sqrt(np.average((place - middle)**2, weights=weights) + 1.0)


@pytest.mark.parametrize("counts", [
    [(0, 0.1)], [(1, 0.1)], [(0, 100.0)], [(3, 41.0)], [(12, 6.0)], [(2, 30.0), (0, 5.0), (6, 12.0)],
    [(1, 10.0)] * 8])
def test_beliefs_are_what_draws_at_random_come_to(counts):
    found = learned(GUESS, tuple(lost(*one) for one in counts))
    middle, spread = drawn(counts)
    assert found.hours_to_loss == pytest.approx(middle, rel=0.05)
    assert found.loss_spread == pytest.approx(spread, rel=0.03)


def test_six_minutes_without_a_loss_say_nothing_and_a_loss_in_them_little():
    assert learned(GUESS, (lost(0, 0.1),)).hours_to_loss == pytest.approx(7.0, rel=0.04)
    assert 2.5 < learned(GUESS, (lost(1, 0.1),)).hours_to_loss < 7.0
    assert learned(GUESS, ()) == GUESS
    assert learned(GUESS, (lost(0, 0.0),)) == GUESS


def test_nothing_that_is_seen_makes_a_belief_wider_and_more_of_the_same_makes_it_narrower():
    rng = random.Random(2)
    for _ in range(60):
        seen = tuple(lost(rng.choice([0, 1, 3, 40]), 10**rng.uniform(-2, 4))
                     for _ in range(rng.randint(1, 5)))
        once, often = learned(GUESS, seen), learned(GUESS, seen * 4)
        assert 1.0 < often.loss_spread <= once.loss_spread <= GUESS_LOSS_SPREAD
        assert (once.hours_to_machine, once.wait_spread) == (1.0, GUESS_WAIT_SPREAD)


def test_more_hours_without_a_loss_never_shorten_a_life_nor_do_losses_lengthen_it():
    by_hours = [learned(GUESS, (lost(2, hours),)).hours_to_loss for hours in (0.0, 1.0, 10.0, 100.0, 1e5)]
    by_losses = [learned(GUESS, (lost(number, 10.0),)).hours_to_loss for number in (0, 1, 2, 10, 1000)]
    assert by_hours == sorted(by_hours) and by_losses == sorted(by_losses, reverse=True)


def test_one_run_however_long_moves_a_guess_less_than_half_the_way_and_many_replace_it():
    once, often = (learned(GUESS, (lost(1000, 700.0),) * number).hours_to_loss for number in (1, 60))
    assert math.sqrt(7.0 * 0.7) < once < 7.0
    assert often == pytest.approx(0.7, rel=0.08)


@pytest.mark.parametrize("mean_h", [0.5, 7.0, 80.0])
def test_beliefs_come_to_the_mean_life_and_the_mean_wait_that_machines_have(mean_h):
    rng, seen = random.Random(9), []
    for _ in range(60):
        length_h, losses = rng.uniform(5, 30) * mean_h, 0
        at_h = rng.expovariate(1 / mean_h)
        while at_h < length_h:
            losses, at_h = losses + 1, at_h + rng.expovariate(1 / mean_h)
        waits = [rng.expovariate(1 / (mean_h / 10)) for _ in range(losses)]
        seen.append(Seen(losses=losses, up_h=length_h, returns=losses, down_h=sum(waits)))
    simple_h = sum(one.up_h for one in seen) / sum(one.losses for one in seen)
    found = learned(GUESS, tuple(seen))
    assert found.hours_to_loss == pytest.approx(mean_h, rel=0.2)
    assert found.hours_to_loss == pytest.approx(simple_h, rel=0.2)
    assert found.hours_to_machine == pytest.approx(mean_h / 10, rel=0.2)


def test_runs_much_shorter_than_a_life_foretell_as_many_losses_as_they_had():
    """Most of them see none: their hours count all the same, or lives would seem short."""
    rng = random.Random(4)
    seen = tuple(lost(sum(rng.random() < 0.02 for _ in range(5)), 5.0) for _ in range(400))
    found = learned(GUESS, seen)
    losses_per_hour = math.exp(found.loss_spread**2 / 2) / found.hours_to_loss  # the mean over next runs
    assert losses_per_hour == pytest.approx(sum(one.losses for one in seen) / 2000.0, rel=0.2)


def test_absurd_hours_leave_numbers():
    for seen in (lost(5, 0.0), lost(0, 1e9), lost(10**6, 1e-9)):
        found = learned(GUESS, (seen,))
        assert math.isfinite(found.hours_to_loss) and 0.01 < found.hours_to_loss < 5000


def test_what_is_there_always_stays_so():
    here = GUESS.model_copy(update={"hours_to_machine": 0.0})
    assert learned(here, (Seen(losses=0, up_h=1.0, returns=2, down_h=3.0),)).hours_to_machine == 0.0


def test_its_ends_are_percentiles():
    low, middle, high = GUESS.life_h
    normal = statistics.NormalDist(math.log(7.0), GUESS_LOSS_SPREAD)
    assert middle == 7.0
    assert (low, high) == pytest.approx([math.exp(normal.inv_cdf(share)) for share in (0.1, 0.9)])
