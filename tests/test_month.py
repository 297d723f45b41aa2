"""What all runs of a store may cost in a month, and the settings that say so."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cli_lab import ldlm, refused
from launch_examples import example_plan, example_task
from run_stories import ELSEWHERE, ENDED, NOON, PLAN, RUNNING, Story

from launcher.engine import EngineState
from launcher.errors import LdlmError, Refused
from launcher.history import recorded_recipe
from launcher.month import (
    Month,
    check_month,
    hold_month,
    keep_spent,
    month_of,
    month_start,
    month_warning,
    over_month,
)
from launcher.proposal import Proposal
from launcher.report import cost_report
from launcher.run_record import RunView, create_record, load_record, look_at
from launcher.settings import Settings, settings_path, settings_text
from trainer.contract import Name, Outcome
from trainer.run_folder import RunFolder

DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
SECONDS = (DECEMBER - NOON).total_seconds()


def rented(store: str, run_id: str, begins: float, ends: float | None) -> Story:
    """A dollar for every thousand seconds, of which somebody sends a bill."""
    story = Story(store, run_id)
    offers = {"train": {"infra": "vast"}, "bench": {"infra": "vast"}}
    story.folder.write_bytes(Name.PLAN, json.dumps(PLAN | {"offers": offers}).encode())
    story.attempt(1, begins)
    if ends is not None:
        story.end(1, ends, 0)
        story.outcome(Outcome.FINISHED, ends, 400)
    return story


def view(story: Story, engine: EngineState, now: datetime) -> RunView:
    return look_at(load_record(story.folder.store, story.folder.run_id), engine, now)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def test_a_month_is_what_its_runs_have_cost_in_it_and_what_running_ones_may_still_spend(store: str) -> None:
    now = DECEMBER + timedelta(seconds=2000)
    ended = rented(store, "ended-1", SECONDS + 100, SECONDS + 1100)
    over_midnight = rented(store, "over-1", SECONDS - 3000, SECONDS + 1000)
    runs = rented(store, "runs-1", SECONDS + 1500, None)
    simulated = Story(store, "home-1")
    simulated.attempt(1, SECONDS)
    views = [view(ended, ENDED, now), view(over_midnight, ENDED, now), view(runs, RUNNING, now),
             view(simulated, RUNNING, now)]
    found = month_of([(one, Decimal(9)) for one in views], now)
    # A dollar, one of four, and half a dollar of nine.
    assert found == Month(pytest.approx(Decimal("2.5")), pytest.approx(Decimal("8.5")))


def test_a_month_begins_at_midnight_of_greenwich() -> None:
    assert month_start(datetime.fromisoformat("2026-12-01T00:30+01:00")) == datetime(2026, 11, 1, tzinfo=UTC)
    assert month_start(DECEMBER) == DECEMBER


@pytest.mark.parametrize(("cap", "over", "fix"), [
    ("40", None, None),
    ("37.50", "$2.50", "add --max-cost 7.50, or ldlm config set monthly_cap 40.00"),
    ("20", "$20.00", "ldlm config set monthly_cap 40.00")])
def test_one_run_more_is_refused_by_how_much_it_would_pass_the_cap(
        cap: str, over: str | None, fix: str | None) -> None:
    found = over_month(Month(Decimal("12.50"), Decimal("17.50")), Decimal(cap), Decimal(10))
    if over is None:
        assert found is None
    else:
        assert found is not None and found.fix == fix
        assert found.problem == (
            "runs of this month have cost $12.50, those that run may spend $17.50 more and this one $10.00: "
            f"{over} over your monthly cap of ${Decimal(cap):.2f}")


def proposal(store: str, cloud: str) -> Proposal:
    story = Story(store, "recipe-of-1")
    recipe = recorded_recipe(story.folder).model_copy(update={"store": store})
    story.folder.store.delete([story.folder.key(Name.RECIPE)])
    return Proposal(recipe, example_plan(cloud))


def test_a_launch_looks_at_all_runs_of_its_store_and_at_home_at_none(
        store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOON + timedelta(days=1)
    # No server of SkyPilot is asked where these runs are.
    monkeypatch.setattr("launcher.runs.view", lambda record, store: look_at(record, ENDED, now))
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="1.50")))
    rented(store, "ended-1", 100, 1100)
    with pytest.raises(Refused, match=r"have cost \$1.00, .* over your monthly cap of \$1.50"):
        check_month(proposal(store, "vast"), now)
    check_month(proposal(store, "local"), now)
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="2000")))
    check_month(proposal(store, "vast"), now)
    rented(store, "torn-1", 100, None).folder.write_bytes(Name.PLAN, b"{")
    with pytest.raises(LdlmError, match="torn-1"):  # it may have cost anything
        check_month(proposal(store, "vast"), now)
    settings_path().unlink()
    check_month(proposal(store, "vast"), now)


def test_a_run_whose_plan_is_gone_counts_as_real_money_and_its_bill_doubts(store: str) -> None:
    gone = rented(store, "gone-1", SECONDS + 100, SECONDS + 1100)
    gone.folder.store.delete([gone.folder.key(Name.PLAN)])
    now = DECEMBER + timedelta(seconds=2000)
    seen = view(gone, ENDED, now)
    assert month_of([(seen, Decimal(9))], now) == Month(pytest.approx(Decimal(1)), Decimal(0))
    (doubt,) = cost_report(seen).doubts
    assert doubt.startswith("its plan is gone from the store") and doubt.endswith("cap counts it as real")


def test_a_plan_at_a_simulated_price_says_that_the_monthly_cap_does_not_count_it() -> None:
    assert [month_warning(example_plan(cloud)) for cloud in (None, "vast")] == [None, None]
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="0.00001")))
    assert month_warning(example_plan("vast")) is None
    assert "! the monthly cap of $0.00001 does not count this run: its price is simulated" in " ".join(
        ldlm("plan", "smoke", "--infra", "local").stdout.split())


def test_a_month_s_part_of_a_run_goes_by_what_its_hours_cost_and_not_by_how_many_they_are(store: str) -> None:
    """3,000 s before midnight at $3.60 an hour, 1,000 s after it at $36."""
    story = rented(store, "moved-1", SECONDS - 3000, SECONDS)
    story.attempt(2, SECONDS, price=Decimal(36))
    story.end(2, SECONDS + 1000, 0)
    found = month_of([(view(story, ENDED, DECEMBER + timedelta(hours=1)), Decimal(99))], DECEMBER)
    assert found.spent_usd == pytest.approx(Decimal(10))


def test_of_two_runs_that_are_started_at_once_not_both_are_let(
        store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was looked at before the other had a record; no engine has either."""
    monkeypatch.setattr("launcher.runs.view", lambda record, store: look_at(record, ELSEWHERE, NOON))
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="1.50")))  # each may spend a dollar
    mine, other = proposal(store, "vast"), rented(store, "other-1", 0, None)
    folder = RunFolder(other.folder.store, mine.plan.run_id)
    create_record(folder, mine.recipe, mine.plan, example_task("vast"), NOON)
    with pytest.raises(Refused, match=r"started meanwhile: .* over your monthly cap of \$1.50"):
        hold_month(mine, folder)
    closed = load_record(folder.store, folder.run_id)
    assert closed.has_ended and closed.outcome is not None and closed.outcome.outcome is Outcome.LIMIT
    # The other one sees a run that has ended, or, had it looked before, would have been refused as well.
    assert month_of([(look_at(closed, ELSEWHERE, NOON), Decimal(1))], NOON).promised_usd == 0
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="9")))
    hold_month(mine, folder)


def test_what_a_deleted_run_has_cost_still_counts_in_its_month_once(
        store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOON + timedelta(days=1)
    for module in ("runs", "month"):
        monkeypatch.setattr(f"launcher.{module}.view", lambda record, store: look_at(record, ENDED, now))
    settings_path().write_text(settings_text(Settings(monthly_cap_usd="1.50")))
    gone, home = rented(store, "gone-1", 100, 1100), Story(store, "home-1")
    for _ in range(2):  # a deletion that was interrupted is repeated
        keep_spent(gone.folder, now)
    keep_spent(home.folder, now)  # nobody sends a bill for it
    for story in (gone, home):
        story.folder.store.delete([found.key for found in story.folder.store.objects(story.folder.run_id)])
    with pytest.raises(Refused, match=r"have cost \$1.00, .* over your monthly cap of \$1.50"):
        check_month(proposal(store, "vast"), now)
    check_month(proposal(store, "vast"), now + timedelta(days=9))  # in December


def test_a_setting_is_set_and_shown_and_unset() -> None:
    said = ldlm("config", "set", "monthly_cap", "200")
    assert (said.returncode, said.stdout) == (0, "monthly_cap: none -> 200\n")
    assert ldlm("config", "get", "monthly_cap").stdout == "200\n"
    assert ldlm("config", "get", "monthly_cap_usd").stdout == "200\n"
    assert json.loads(ldlm("config", "list", "--json").stdout)["monthly_cap"] == "200"
    assert ldlm("config", "set", "monthly_cap", "200").stdout == (
        "monthly_cap is 200 already: nothing was changed\n")
    assert ldlm("config", "set", "monthly_cap", "none").stdout == "monthly_cap: 200 -> none\n"
    assert json.loads(settings_path().read_text()) == {}


@pytest.mark.parametrize(("name", "value", "words"), [
    ("monthly_cap", "NaN", "'NaN' is no number of dollars"),
    ("monthly_cap", "-5", "'-5' is no number of dollars"),
    ("monthly_cap", "0", "'0' is no number of dollars"),
    ("monthly_cap", "1e9", "'1e9' is no number of dollars"),
    ("monthly_cup", "9", "did you mean monthly_cap?"),
    ("store", "s3://key:secret@bucket/x", "key")])
def test_what_is_no_setting_or_no_value_of_it_is_refused(name: str, value: str, words: str) -> None:
    assert words in refused(2, "config", "set", name, value)
    assert not settings_path().exists()


def test_settings_that_were_damaged_are_no_cap() -> None:
    settings_path().write_text('{"monthly_cap_usd": "-5"}')
    assert "monthly_cap_usd is -5" in refused(3, "config", "get", "monthly_cap")
