"""The clairvoyant's bound against a search through every plan of tiny windows, written on its own."""

from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import pytest

from launcher.clairvoyant import clairvoyant_usd
from launcher.policy import Setting
from launcher.traces import Windows, flat_prices

HOUR = 3600


def cheapest(up, usd_spot, usd_on_demand, work, overhead, lengths):
    """Try everything at every tick: nothing, on demand, spot of each place. Times and dollars as fractions.

    Args:
        up: [tick][place]; usd_spot: [tick][place] and usd_on_demand: [tick], dollars a unit of time.
        lengths: Of the ticks, in the unit of work and overhead.
    """
    @cache
    def best(tick, held, owed, left):
        if left == 0:
            return Fraction(0)
        if tick == len(lengths):
            return None
        machines = [(place, usd_spot[tick][place]) for place, is_up in enumerate(up[tick]) if is_up]
        found = [best(tick + 1, None, Fraction(0), left)]
        for machine, usd in [*machines, ("on demand", usd_on_demand[tick])]:
            owes = owed if machine == held else overhead
            used = min(lengths[tick], owes + left)
            paid = min(used, owes)
            rest = best(tick + 1, machine, owes - paid, left - (used - paid))
            found.append(None if rest is None else usd * used + rest)
        return min((usd for usd in found if usd is not None), default=None)

    return best(0, None, Fraction(0), work)


def random_case(rng, num_places):
    """A window of a few ticks whose tick, overhead and work share only a small unit."""
    tick_s = int(rng.choice([600, 900, 1800]))
    overhead_s = int(rng.choice([0, 300, 600, 720, 1500, 2000]))
    work_s = int(rng.integers(2, 6)) * 600 + int(rng.choice([0, 130, 450]))
    deadline_s = work_s + overhead_s + int(rng.integers(0, 5)) * 700
    num_ticks = -(-deadline_s // tick_s)
    up = rng.random((num_ticks, num_places)) < 0.6
    return tick_s, overhead_s, work_s, deadline_s, up


@pytest.mark.parametrize("seed", range(60))
def test_the_bound_is_the_cheapest_of_all_plans(seed):
    rng = np.random.default_rng(seed)
    num_places = 1 + seed % 2
    tick_s, overhead_s, work_s, deadline_s, up = random_case(rng, num_places)
    spot = rng.integers(20, 120, up.shape) / 64 if seed % 3 == 0 else np.full(up.shape, 62 / 64)
    on_demand = rng.integers(100, 250, len(up)) / 64 if seed % 3 == 0 else np.full(len(up), 196 / 64)
    lengths = [min(tick_s, deadline_s - tick * tick_s) for tick in range(len(up))]
    hourly = [[Fraction(usd) / HOUR for usd in row] for row in spot.tolist()]
    truth = cheapest(up.tolist(), hourly, [Fraction(usd) / HOUR for usd in on_demand.tolist()],
                     Fraction(work_s), Fraction(overhead_s), lengths)
    setting = Setting(work_s / HOUR, deadline_s / HOUR, overhead_s / HOUR, 62 / 64, 196 / 64, tick_s / HOUR)
    windows = Windows(tick_s, up[:, None], spot[:, None], on_demand[:, None])
    assert clairvoyant_usd(setting, windows)[0] == pytest.approx(float(truth), rel=1e-5)


def test_windows_at_once_have_the_same_bound_as_one_by_one():
    rng = np.random.default_rng(5)
    setting = Setting(4, 7, 0.2, 0.97, 3.06)
    up = np.repeat(rng.random((14, 40, 1)) < 0.5, 3, axis=0)
    whole = clairvoyant_usd(setting, flat_prices(600, up, setting))
    alone = [clairvoyant_usd(setting, flat_prices(600, up[:, [row]], setting))[0] for row in range(40)]
    assert whole.tolist() == alone
    assert len(set(alone)) > 10


def test_spot_all_the_time_costs_one_start_and_none_at_all_costs_on_demand():
    setting = Setting(20, 26, 0.2, 0.97, 3.06)
    up = np.stack([np.ones((156, 1), dtype=bool), np.zeros((156, 1), dtype=bool)], axis=1)
    usd = clairvoyant_usd(setting, flat_prices(600, up, setting))
    assert usd == pytest.approx([20.2 * 0.97, 20.2 * 3.06], rel=1e-5)
    # Spot that costs more than on demand is never taken.
    dear = replace(setting, spot_usd_per_hour=4.0)
    assert clairvoyant_usd(dear, flat_prices(600, up, dear)) == pytest.approx([20.2 * 3.06] * 2, rel=1e-5)
