"""Replays: against a replay written anew in plain Python, and through the command."""

import json
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import synthetic_traces as made
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import UsageError
from launcher.policies_known import GREEDY, KNOWN, ON_DEMAND, SPOT_ONLY, UNIFORM_PROGRESS
from launcher.policy import Action, PlaceNow, Setting, Situation, decide, run_lengths
from launcher.price_history import Period
from launcher.simulate import Saves, Score, replay, score_all
from launcher.simulate_command import POLICIES
from launcher.simulate_screen import show_scores
from launcher.traces import flat_prices, one_by_one, read_traces, stack

SETTING = Setting(3, 4.3, 0.2, 0.97, 3.06, tick_h=1 / 6)


def one_run(policy, setting, up):
    """A run alone, asked at every tick: dollars, hours or None, and what was held, tick by tick.

    Args:
        up: [tick][place]
    """
    usd, left, owed, held, place = 0.0, setting.work_h, 0.0, Action.WAIT, None
    actions = []
    for tick, is_up in enumerate(up):
        elapsed = tick * setting.tick_h
        if held is Action.SPOT and not is_up[place]:
            held, place = Action.WAIT, None
        places = tuple(PlaceNow(run_lengths(seen), setting.spot_usd_per_hour)
                       for seen in zip(*up[:tick + 1], strict=True))
        choice = decide(policy, setting, Situation(elapsed, left, held, place, owed, places))
        actions.append((choice.action, choice.place))
        if choice.action is not Action.WAIT:
            if (choice.action, choice.place) != (held, place):
                owed = setting.overhead_h
            price = {Action.SPOT: setting.spot_usd_per_hour,
                     Action.ON_DEMAND: setting.on_demand_usd_per_hour}[choice.action]
            used = min(setting.tick_h, setting.deadline_h - elapsed, owed + left)
            usd, left, owed = usd + used * price, left - max(0.0, used - owed), max(0.0, owed - used)
            if left < 1e-9:
                return usd, elapsed + used, actions
        held, place = choice.action, choice.place
    return usd, None, actions


def windows_of(num_places, seed, num_windows=12):
    rng = np.random.default_rng(seed)
    changes = rng.random((26, num_windows, num_places)) < 0.25
    return (np.cumsum(changes, axis=0) + rng.integers(0, 2, (num_windows, num_places))) % 2 == 1


@pytest.mark.parametrize("num_places", [1, 3])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_a_run_alone_decides_and_pays_as_in_the_replay_tick_by_tick(policy, num_places):
    up = windows_of(num_places, seed=num_places)
    together = replay(policy, SETTING, flat_prices(600, up, SETTING))
    for row in range(up.shape[1]):
        usd, ended, actions = one_run(policy, SETTING, up[:, row].tolist())
        assert together.usd[row] == pytest.approx(usd)
        assert together.ended_h[row] == pytest.approx(ended, nan_ok=True) if ended else np.isnan(
            together.ended_h[row])
        held = [(Action(int(action)), int(place) if action == Action.SPOT else None)
                for action, place in zip(together.actions[:, row], together.places[:, row], strict=True)]
        assert held[:len(actions)] == actions


def test_what_simple_policies_cost_can_be_worked_out_by_hand():
    up = np.array([[True]] * 6 + [[False]] * 20)[:, :, None]
    usd = {policy.name: replay(policy, SETTING, flat_prices(600, up, SETTING)).usd[0] for policy in KNOWN}
    # An hour of spot, of which 0.2 h start; then on demand, from the last tick that is in time.
    assert usd["on-demand"] == pytest.approx(3.2 * 3.06)
    assert usd["spot-only"] == pytest.approx(1 * 0.97)
    assert usd["greedy"] == pytest.approx(1 * 0.97 + (2.2 + 0.2) * 3.06)


@pytest.mark.parametrize("setting", [
    SETTING, replace(SETTING, deadline_h=3.2), replace(SETTING, overhead_h=0.02),
    replace(SETTING, overhead_h=0), replace(SETTING, spot_usd_per_hour=2.9),
    replace(SETTING, deadline_h=4.25, overhead_h=0.35)])
@pytest.mark.parametrize("num_places", [1, 2])
def test_no_policy_beats_the_clairvoyant_and_none_but_spot_alone_is_late(setting, num_places):
    up = windows_of(num_places, seed=9, num_windows=200)
    safe = [policy for policy in POLICIES if policy is not SPOT_ONLY]
    scores = score_all(safe, setting, [flat_prices(600, up, setting)])
    assert [score.missed for score in scores] == [0] * (len(safe) + 1)
    assert scores[-1].ratio_to_clairvoyant == 1
    for policy in safe:
        outcome = replay(policy, setting, flat_prices(600, up, setting))
        alone = score_all([policy], setting, [flat_prices(600, up[:, [0]], setting)])[-1].mean_usd
        assert outcome.usd[0] >= alone * (1 - 1e-5)


def test_an_hour_of_work_at_odds_with_the_tick_is_in_time_too():
    setting = Setting(2.345, 3.1, 0.137, 0.97, 3.06, tick_h=195 / 3600)
    up = np.repeat(windows_of(1, seed=3, num_windows=300), 3, axis=0)
    scores = score_all([GREEDY, UNIFORM_PROGRESS, ON_DEMAND], setting, [flat_prices(195, up, setting)])
    assert [score.missed for score in scores] == [0, 0, 0, 0]


@pytest.fixture
def traces(tmp_path):
    return made.write(tmp_path / "made.jsonl.gz", made.rows(6, num_zones=2))


def run(*arguments):
    done = CliRunner().invoke(app, ["simulate", *map(str, arguments)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stdout


def test_the_command_prints_a_row_per_policy_for_programs(traces):
    rows = json.loads(run("--traces", traces, "--policy", "all", "--json"))
    assert [row["policy"] for row in rows] == [*(policy.name for policy in POLICIES), "clairvoyant"]
    assert rows[0]["setting"] == {"work_h": 20.0, "deadline_h": 26.0, "overhead_h": 0.2, "spot_usd": 0.97,
                                  "on_demand_usd": 3.06}
    assert rows[0] | {"setting": None, "ratio_to_clairvoyant": None} == {
        "policy": "on-demand", "setting": None, "num_windows": 12, "mean_usd": pytest.approx(61.812),
        "p95_usd": pytest.approx(61.812), "ratio_to_clairvoyant": None, "missed": 0,
        "checkpoint_minutes": None, "price_periods": []}
    assert rows[-1]["ratio_to_clairvoyant"] == 1


def test_zones_of_one_start_are_open_at_once(traces):
    rows = json.loads(run("--traces", traces, "--policy", "greedy,clairvoyant", "--zones", "together",
                          "--json"))
    assert [(row["policy"], row["num_windows"]) for row in rows] == [
        ("greedy", 6), ("greedy, one place", 12), ("clairvoyant", 6)]


def test_the_screen_ends_with_the_cheapest_policy_that_was_in_time(traces):
    lines = run("--traces", traces, "--policy", "on-demand").splitlines()
    assert lines[-1] == "cheapest without a missed deadline: on-demand, $61.81 on average (replayed)"
    assert max(map(len, lines)) <= 80
    precise = run("--traces", traces, "--policy", "on-demand", "--work-h", "20.12345", "--deadline-h",
                  "26.12345", "--overhead-h", "0.1234567", "--spot-usd", "200", "--on-demand-usd", "1000")
    assert max(map(len, precise.splitlines())) <= 80


@pytest.mark.parametrize(("arguments", "problem"), [
    (["--policy", "best"], "no policy is called 'best'"),
    (["--deadline-h", "19"], r"1\.20 h are missing, even on demand"),
    (["--spot-usd", "nan"], "'nan' is no number, or out of bounds"),
    (["--on-demand-usd", "1e308"], "'1e308' is no number"),
    (["--work-h", "1e-12"], "'1e-12' is no number, or"), (["--deadline-h", "inf"], "'inf' is no number, or"),
    (["--machine-type", "a3"], "choose from a history of prices, and none is given"),
    (["--region", "us"], "choose from a history of prices, and none is given"),
    (["--save-s", "nan"], "'nan' is no number"), (["--save-s", "-5"], "'-5' is no number"),
    (["--checkpoint-min", "5", "--save-s", "1e300"], "'1e300' is no number"),
    (["--work-h", ""], "'' is no number"), (["--checkpoint-min", "5", "--save-s", ""], "'' is no number"),
    (["--save-s", "3"], "nothing is saved without --checkpoint-min"),
    (["--work-h", "60", "--deadline-h", "70"], "no window is 70 h long"),
    (["--zones", "all"], "zones are 'all'")])
def test_what_cannot_be_replayed_is_refused(traces, arguments, problem):
    with pytest.raises(Exception, match=problem):
        run("--traces", traces, *arguments)


def test_what_cannot_be_drawn_is_refused_before_anything_is_replayed(tmp_path, traces, monkeypatch, capfd):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -S "$@"\n')  # -S: without any package
    bare.chmod(0o755)
    monkeypatch.setenv("LDLM_TRAIN_PYTHON", str(bare))
    done = CliRunner().invoke(app, ["simulate", "--traces", str(traces), "--plot", str(tmp_path / "a.png")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert capfd.readouterr().err == (
        "error: --plot: matplotlib is not in the trainer's environment, and nothing was replayed\n"
        "  fix: make evaluation-tools (once, about 400 MB), or leave --plot out\n")


HISTORY = """date,machine_type,region,on_demand_usd_per_hour,spot_usd_per_hour
2025-01-01,a3,us,10.0,2.0
2025-05-01,a3,us,20.0,5.0
"""


@pytest.fixture
def history(tmp_path):
    """Of 120 days and then 30, as options."""
    (tmp_path / "prices.csv").write_text(HISTORY)
    return ["--prices", tmp_path / "prices.csv", "--machine-type", "a3", "--region", "us"]


@pytest.mark.parametrize("option", ["--spot-usd", "--on-demand-usd"])
def test_a_price_beside_a_history_of_prices_is_refused(traces, history, option):
    with pytest.raises(UsageError, match="the history of --prices says what an hour costs") as caught:
        run("--traces", traces, *history, option, "5")
    assert caught.value.place == option


def test_zones_that_are_open_at_once_stay_together_over_prices_in_a_file_sorted_by_zone(tmp_path, history):
    rows = sorted(made.rows(6, num_zones=2), key=lambda row: row["zone"])
    by_zone = made.write(tmp_path / "by-zone.gz", rows)
    rows = json.loads(run("--traces", by_zone, "--policy", "greedy", "--zones", "together", *history,
                          "--json"))
    assert [(row["setting"]["spot_usd"], row["policy"], row["num_windows"]) for row in rows] == [
        (2.0, "greedy", 5), (2.0, "greedy, one place", 10), (5.0, "greedy", 1), (5.0, "greedy, one place", 2)]


def test_the_last_line_is_over_the_windows_of_all_prices(traces, history):
    lines = run("--traces", traces, "--policy", "on-demand", *history).splitlines()
    # 20.2 h in each of 10 windows at $10 and 2 at $20.
    assert " ".join(lines[-2:]) == (
        "cheapest without a missed deadline: on-demand, $235.67 on average over 2 prices (replayed)")


def test_what_is_replayed_at_a_price_says_when_it_held(traces, history):
    Path(history[1]).write_text(HISTORY + "2025-05-31,a3,us,10.0,2.0\n2025-06-10,a3,us,20.0,5.0\n")
    words = ("--traces", traces, "--policy", "on-demand", *history)
    first, second = json.loads(run(*words, "--json"))
    assert first["price_periods"] == [{"first": "2025-01-01", "until": "2025-05-01"},
                                      {"first": "2025-05-31", "until": "2025-06-10"}]
    assert second["price_periods"] == [{"first": "2025-05-01", "until": "2025-05-31"},
                                       {"first": "2025-06-10", "until": None}]
    said = " ".join(run(*words).split())
    assert "$10.00/h on demand, prices of 2025-01-01 to 2025-04-30, 2025-05-31 to 2025-06-09 policy" in said
    assert "$20.00/h on demand, prices of 2025-05-01 to 2025-05-30, 2025-06-10 on policy" in said


def test_of_a_price_that_comes_back_often_the_first_periods_are_named(capsys):
    days = [date(2025, month, 1) for month in range(1, 9)]
    periods = tuple(map(Period, days[::2], days[1::2]))
    show_scores([Score("greedy", SETTING, 1, 1.0, 1.0, 1.0, 0, periods=periods)], [])
    said = " ".join(capsys.readouterr().out.split())
    assert ("prices of 2025-01-01 to 2025-01-31, 2025-03-01 to 2025-03-31, 2025-05-01 to 2025-05-31 and 1 "
            "more period policy") in said


def test_a_clairvoyant_alone_is_not_called_late(tmp_path):
    up = made.write(tmp_path / "up.gz", [{"start": "1", "tick_seconds": 600, "up": "200u"}])
    lines = run("--traces", up, "--policy", "clairvoyant").splitlines()
    assert lines[-1] == "a clairvoyant would have paid $19.59 on average (replayed)"  # 20.2 h at $0.97
    assert run("--traces", up, "--policy", "spot-only").splitlines()[-1] == (
        "cheapest without a missed deadline: spot-only, $19.59 on average (replayed)")
    down = made.write(tmp_path / "down.gz", [{"start": "1", "tick_seconds": 600, "up": "200d"}])
    assert run("--traces", down, "--policy", "spot-only").splitlines()[-1] == (
        "no policy was in time in every window")


def test_traces_of_the_command_line_are_those_of_the_reader(traces):
    windows, _ = stack(one_by_one(read_traces(traces)[0]), SETTING)
    assert sum(each.num_windows for each in windows) == 12


def test_a_lost_machine_takes_what_was_not_saved():
    # 7 ticks up: 0.2 h start and 0.9667 h work, of which saves of 0.25 h keep 0.75; then on demand.
    up = np.array([[True]] * 7 + [[False]] * 19)[:, :, None]
    saved = replay(GREEDY, SETTING, flat_prices(600, up, SETTING), Saves(0.25, 0))
    assert saved.usd[0] == pytest.approx(7 / 6 * 0.97 + (3 - 0.75 + 0.2) * 3.06)
    stalls = replay(ON_DEMAND, SETTING, flat_prices(600, up, SETTING), Saves(0.5, 0.05))
    assert stalls.usd[0] == pytest.approx((3 * 1.1 + 0.2) * 3.06)


def test_one_place_is_scored_with_the_same_saves():
    up = np.array([[True, False]] * 7 + [[False, False]] * 19)[:, None, :]
    scores = score_all([GREEDY], SETTING, [flat_prices(600, up, SETTING)], adds_one_place=True,
                       saves=[Saves(0.25, 0), Saves(0.5, 0)])
    late_usd = 2.4 * 3.06  # without spot: as in the place that is never up
    assert [(score.policy, score.checkpoint_minutes) for score in scores] == [
        ("greedy", 15), ("greedy, one place", 15), ("greedy", 30), ("greedy, one place", 30),
        ("clairvoyant", None)]
    by_kept = [7 / 6 * 0.97 + (3 - kept_h + 0.2) * 3.06 for kept_h in (0.75, 0.5)]
    assert [scores[index].mean_usd for index in (1, 3)] == pytest.approx(
        [(usd + late_usd + 0.8 * 3.06) / 2 for usd in by_kept])


def test_deadlines_hold_with_saves_too(traces):
    rows = json.loads(run("--traces", traces, "--policy", "greedy,ours,greedy",
                          "--checkpoint-min", "5,60,5.0", "--json"))
    assert [(row["policy"], row["checkpoint_minutes"], row["missed"]) for row in rows] == [
        ("greedy", 5.0, 0), ("greedy", 60.0, 0), ("ours", 5.0, 0), ("ours", 60.0, 0)]


@pytest.mark.parametrize("minutes", ["0", "-5", "nan", "5,x", "5,,6", "", "1e-300", "1e308"])
def test_intervals_of_no_sense_are_refused(traces, minutes):
    with pytest.raises(UsageError, match="no intervals of saving"):
        run("--traces", traces, "--checkpoint-min", minutes)
