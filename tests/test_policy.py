"""One decision: what it rests on, and that it is the same one by one and in thousands."""

from dataclasses import replace

import numpy as np
import pytest

from launcher.errors import NoOfferError, UsageError
from launcher.policies_known import GREEDY, ON_DEMAND, SPOT_ONLY, UNIFORM_PROGRESS
from launcher.policy import Action, Decision, PlaceNow, Setting, Situation, decide, run_lengths

SETTING = Setting(work_h=20, deadline_h=26, overhead_h=0.2, spot_usd_per_hour=0.97,
                  on_demand_usd_per_hour=3.06, tick_h=1 / 6)
FRESH = Situation(elapsed_h=0, work_left_h=20, held=Action.WAIT, place=None, overhead_left_h=0,
                  places=(PlaceNow("1u", 0.97),))


def down(situation):
    return replace(situation, places=(PlaceNow("1d", 0.97),))


def test_spot_is_taken_where_it_is_up_and_waited_for_where_it_is_not():
    assert decide(GREEDY, SETTING, FRESH) == Decision(
        Action.SPOT, 0, "spot is up in 1 of 1 places; it takes $0.97/h")
    assert decide(GREEDY, SETTING, down(FRESH)) == Decision(
        Action.WAIT, None, "spot is up nowhere; 5.80 h to spare, so waiting costs least")


def test_on_demand_is_taken_in_the_last_tick_in_which_it_still_ends_in_time():
    last = SETTING.deadline_h - 20 - SETTING.overhead_h
    waits = decide(GREEDY, SETTING, down(replace(FRESH, elapsed_h=last - SETTING.tick_h)))
    pays = decide(GREEDY, SETTING, down(replace(FRESH, elapsed_h=last - SETTING.tick_h + 0.001)))
    assert (waits.action, pays.action) == (Action.WAIT, Action.ON_DEMAND)
    assert decide(SPOT_ONLY, SETTING, down(replace(FRESH, elapsed_h=last))).action is Action.WAIT


def test_uniform_progress_keeps_up_with_its_line_and_leaves_on_demand_once_it_is_ahead():
    behind = down(replace(FRESH, elapsed_h=13, work_left_h=10.1))
    assert decide(UNIFORM_PROGRESS, SETTING, behind).action is Action.ON_DEMAND
    paying = replace(FRESH, elapsed_h=13, work_left_h=9.8, held=Action.ON_DEMAND)
    assert decide(UNIFORM_PROGRESS, SETTING, paying).action is Action.ON_DEMAND
    assert decide(UNIFORM_PROGRESS, SETTING, replace(paying, work_left_h=9.6)).action is Action.SPOT


def test_of_two_places_the_cheaper_is_taken_unless_the_move_costs_more():
    two = replace(FRESH, places=(PlaceNow("2d,1u", 0.97), PlaceNow("3u", 0.90)))
    assert decide(GREEDY, SETTING, two).place == 1
    far = replace(two, places=(two.places[0], replace(two.places[1], move_usd=2.0)))
    assert decide(GREEDY, SETTING, far).place == 0
    held = replace(two, held=Action.SPOT, place=0, work_left_h=1)
    assert decide(GREEDY, SETTING, held) == Decision(
        Action.SPOT, 0, "spot is up in 2 of 2 places; it stays on $0.97/h")


def test_a_deadline_below_the_work_is_refused_with_what_is_missing():
    with pytest.raises(NoOfferError, match=r"0\.70 h are missing, even on demand from the first minute"):
        replace(SETTING, deadline_h=19.5)


@pytest.mark.parametrize(("name", "value"), [
    ("work_h", 0), ("deadline_h", float("nan")), ("overhead_h", -0.1), ("spot_usd_per_hour", float("inf")),
    ("on_demand_usd_per_hour", -3.0), ("tick_h", 0)])
def test_a_setting_of_no_sense_is_refused(name, value):
    with pytest.raises(UsageError, match=name):
        replace(SETTING, **{name: value})


@pytest.mark.parametrize("seen", ["", "3x", "u", "3u,,2d", "-1u", "0u", "1.5u", "10000000u"])
def test_what_was_seen_must_be_run_lengths(seen):
    with pytest.raises(UsageError, match="is no run length"):
        decide(ON_DEMAND, SETTING, replace(FRESH, places=(PlaceNow(seen, 0.97),)))


def test_looks_add_up_to_run_lengths():
    assert run_lengths([True, True, False, True, True, True]) == "2u,1d,3u"
    assert (run_lengths([False]), run_lengths([])) == ("1d", "")


def test_a_place_that_was_added_later_was_down_before():
    class Seeing:
        name, looks = "seeing", []

        def begin(self, setting, num_windows, num_places):
            return self

        def see(self, is_up):
            self.looks.append(is_up.tolist())

        def choose(self, now):
            return np.array([0]), np.array([0])

    decide(Seeing(), SETTING, replace(FRESH, places=(PlaceNow("1u,2d", 0.97), PlaceNow("1u", 0.97))))
    assert Seeing.looks == [[[True, False]], [[False, False]], [[False, True]]]
