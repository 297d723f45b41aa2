"""Records that cannot be true: the bill survives each, never bills more than was paid, and says so."""

import dataclasses
import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cli_lab import ldlm
from run_stories import ENDED, NOON, RUN_ID, Story, at, every_fate, preempted_once

from launcher.report import CostReport, cost_report
from launcher.run_record import RunRecord, load_record, look_at, read_record
from trainer.contract import Name, Outcome


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(f"file://{tmp_path}/store")


def report_of(record: RunRecord | Story) -> CostReport:
    found = load_record(record.folder.store, RUN_ID) if isinstance(record, Story) else record
    return cost_report(look_at(found, ENDED, NOON + timedelta(days=1)))


def assert_billed(story: Story, usd: str, doubt: str) -> None:
    """So much, with this doubt and no other."""
    report = report_of(story)
    assert (report.doubts, report.spent_usd) == ([doubt], Decimal(usd))


def test_records_that_agree_raise_no_doubt(tmp_path):
    assert report_of(preempted_once(f"file://{tmp_path}/store")).doubts == []


def test_two_attempts_that_overlap_are_both_billed(story):
    story.attempt(1, 0)
    story.end(1, 130, 75)
    story.attempt(2, 100)
    story.end(2, 200, 0)
    assert_billed(story, "0.23", "attempts 1 and 2 overlap by 30 s: both are billed, since two machines were "
                                 "paid at once")


def test_attempts_in_another_order_than_their_numbers_are_each_billed_by_their_own_clock(story):
    story.attempt(1, 500)
    story.end(1, 600, 75)
    story.attempt(2, 100)
    story.end(2, 200, 0)
    assert_billed(story, "0.20", "attempt 2 begins 6 min 40 s before attempt 1: their clocks disagree; each "
                                 "is billed by its own")


def test_a_clock_that_was_set_back_fills_no_category_beyond_what_was_billed(story):
    story.attempt(1, 0)
    story.beat(1, 90, step=5, durable=5, setup=80, train=500, durable_train=500)
    story.end(1, 100, 0)
    report = report_of(story)
    assert report.doubts == ["attempt 1 tells of 8 min 00 s more than it is billed for: its clock was set; "
                             "no more than was billed is shown"]
    assert report.spent_usd == Decimal("0.10") == sum(report.by_category().values())


def test_a_sign_of_life_after_the_end_is_said(story):
    story.attempt(1, 0)
    story.beat(1, 300, step=5, durable=5, setup=10, train=20)
    story.end(1, 100, None, preempted=True)
    assert_billed(story, "0.10", "attempt 1 gave a sign of life 3 min 20 s after its end: who ended it has "
                                 "another clock, or it lived on; it is billed to that end")


def test_an_end_that_is_dated_before_the_start_is_said(story):
    story.outcome(Outcome.FINISHED, -3600, 0)
    (doubt,) = report_of(story).doubts
    assert doubt.startswith("the run's end is dated before its start: a clock was wrong")


def test_a_run_whose_start_no_event_tells_says_what_its_bill_lacks(story):
    story.attempt(1, 0)
    story.end(1, 100, 0)
    folder = story.folder
    folder.store.delete([one.key for one in folder.store.objects(folder.key(Name.EVENTS))])
    assert_billed(story, "0.10", "no event tells when it was started: what its supervision has cost is not "
                                 "in the bill")


def test_torn_lines_of_the_log_of_rentals_are_told_of(story):
    record = dataclasses.replace(load_record(story.folder.store, RUN_ID), num_torn=1)
    (doubt,) = report_of(record).doubts
    assert doubt.startswith("1 of the lines in which SkyPilot's server notes what it rents cannot be read")
    assert doubt.endswith("compare: ldlm cost story-1 --reconcile")


def test_doubts_stand_on_the_screen(tmp_path, monkeypatch):
    monkeypatch.setenv("LDLM_HOME", str(tmp_path))
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    story.end(1, 130, 75)
    story.attempt(2, 100)
    assert "! attempts 1 and 2 overlap by 30 s" in ldlm("cost", RUN_ID).stdout
    story.end(2, 50, 0)
    assert "! attempt 2 ends 50 s before it begins" in ldlm("cost", RUN_ID).stdout


def test_an_end_before_the_begin_is_billed_by_what_the_heartbeat_tells(story):
    story.attempt(1, 100)
    story.beat(1, 150, step=5, durable=5, setup=20, train=30, durable_train=30)
    story.end(1, 40, 0)
    assert_billed(story, "0.05", "attempt 1 ends 1 min 00 s before it begins: two clocks disagree; it is "
                                 "billed for 50 s, as its heartbeats tell")


def test_an_attempt_before_its_submission_is_billed_from_there(story):
    story.attempt(1, -7200)
    story.end(1, 100, 0)
    assert_billed(story, "0.10", "attempt 1 begins 2 h 00 min before its run was submitted: a clock was "
                                 "wrong; it is billed from the submission on")


def test_attempts_that_all_come_before_their_submission_are_billed_as_they_say(story):
    """It is the clock of who submitted that was ahead: 20 min of a machine that vanished, 15 of the next."""
    story.attempt(1, -7200)
    story.beat(1, -6900, step=5, durable=5, setup=20, train=30, durable_train=30)
    story.attempt(2, -6000)
    story.end(2, -5100, 0)
    report = report_of(story)
    assert report.spent_usd == Decimal("2.10") == sum(report.by_category().values())
    billed = [doubt.rpartition("; ")[2] for doubt in report.doubts]
    assert billed == ["it is billed for as long as it says"] * 2


def test_an_attempt_without_an_end_is_billed_by_the_events_else_by_its_lease_else_said(story):
    story.attempt(1, 0)
    story.outcome(Outcome.FINISHED, 500, 0)
    assert report_of(story).doubts == ["attempt 1 left no sign of life and no end: nothing is billed for it"]
    leased = story.folder.attempt(1).attempt.model_copy(update={"lease_until": at(300)})
    story.folder.write("attempts/1/attempt.json", leased)
    assert_billed(story, "0.30", "attempt 1 left no end: it is billed to the end of its lease, or of the run")
    story.folder.add_event("attempt_ended", at(200), attempt=1)
    assert_billed(story, "0.20", "attempt 1 left no end: it is billed to the one that the run's events tell")


def test_a_torn_record_is_named_and_the_rest_is_billed(story):
    story.attempt(1, 0)
    story.end(1, 100, 75)
    story.attempt(2, 100)
    story.end(2, 150, 0)
    story.folder.write_bytes("attempts/1/heartbeat.json", b'{"at": "2026')
    story.folder.write_bytes("events/garbage-ended.json", b"{}")
    report = report_of(read_record(story.folder))
    assert report.doubts == [
        "attempts/1/heartbeat.json is not a valid Heartbeat: the bill is made without it; if there is a "
        "backup, restore it",
        "events/garbage-ended.json is not a valid Event: the bill is made without it; if there is a backup, "
        "restore it"]
    assert report.spent_usd == Decimal("0.15")


def test_moments_of_an_attempt_may_be_in_any_order_and_no_second_is_billed_twice(story):
    """Began, so says its node, before it was billed, and never heard of again."""
    story.attempt(1, 0)
    early = story.folder.attempt(1).attempt.model_copy(update={"began_at": at(-50)})
    story.folder.write("attempts/1/attempt.json", early)
    story.beat(1, 90, step=9, durable=9, setup=40, train=50, durable_train=50)
    story.end(1, 100, 0)
    seconds = report_of(story).attempts[0].seconds
    assert {category.value: length for category, length in seconds.items()} == {"set-up": 50, "useful": 50}


def edit(story: Story, name: str, **changes: object) -> None:
    """As by hand."""
    story.folder.write_bytes(name, json.dumps(story.folder.read_json(name) | changes).encode())


def test_a_number_that_no_attempt_has_is_said(tmp_path):
    story = every_fate(f"file://{tmp_path}/store")
    gone = [story.folder.key(f"attempts/3/{name}.json") for name in ("attempt", "heartbeat", "end")]
    story.folder.store.delete(gone)
    (doubt,) = report_of(story).doubts
    assert doubt == "attempt 3 has left no record: if it had a machine, that is not in the bill"


def test_a_price_that_has_changed_is_billed_from_then_on_where_no_contract_is_known(story):
    """100 s at a tenth of a cent, 50 s at two, 50 s at a half."""
    story.attempt(1, 0)
    story.beat(1, 200, step=5, durable=5, setup=100, train=100, durable_train=100)
    story.end(1, 200, 0)
    edit(story, "attempts/1/heartbeat.json", prices=[
        {"at": at(since).isoformat(), "usd_per_hour": usd} for since, usd in ((100, "7.2"), (150, "1.8"))])
    report = report_of(story)
    assert report.spent_usd == Decimal("0.225") == sum(report.by_category().values())
    assert look_at(read_record(story.folder), ENDED, at(999)).spent_usd == Decimal("0.225")


def test_moments_of_another_zone_are_shown_in_utc(story):
    story.attempt(1, 0)
    story.end(1, 3600, 0)
    edit(story, "attempts/1/attempt.json", billed_from="2026-11-23T17:30:00+05:30")
    edit(story, "attempts/1/end.json", at="2026-11-23T05:00:00-08:00")
    (cost,) = report_of(story).to_json()["attempts"]
    assert (cost["began_at"], cost["ended_at"]) == ("2026-11-23T12:00:00+00:00", "2026-11-23T13:00:00+00:00")


@pytest.mark.parametrize("wrong", [
    {"traffic": {"received_bytes": -1}}, {"traffic": {"sent_bytes": 10**30}}, {"spent_usd": "1e400"},
    {"spent_usd": "-5"}, {"spent_usd": "NaN"},
])
def test_a_heartbeat_of_numbers_that_cannot_be_is_torn(story, wrong):
    story.attempt(1, 0)
    story.beat(1, 90, step=5, durable=5, setup=80, train=10)
    story.end(1, 100, 0)
    edit(story, "attempts/1/heartbeat.json", **wrong)
    report = report_of(read_record(story.folder))
    assert (report.spent_usd, report.doubts[0].partition(":")[0]) == (
        Decimal("0.10"), "attempts/1/heartbeat.json is not a valid Heartbeat")


@pytest.mark.parametrize(("wrong", "told"), [
    ({"durable_step": 999999}, "step 999,999 of 400"), ({"step": -3}, "step -3 of 400"),
    ({"phases": {"setup_s": 40, "train_s": -100}}, "-100 s as its train_s"),
    ({"phases": {"setup_s": 40, "train_s": "NaN"}}, "nan s as its train_s"),
    ({"durable_train_s": "-Infinity"}, "-inf s as its durable_train_s")])
def test_steps_and_lengths_of_time_that_nothing_has_are_said_and_the_total_stands(story, wrong, told):
    story.attempt(1, 0)
    story.beat(1, 90, step=5, durable=5, setup=40, train=50, durable_train=50)
    story.end(1, 100, 0)
    edit(story, "attempts/1/heartbeat.json", **wrong)
    report = report_of(read_record(story.folder))
    (doubt,) = report.doubts
    assert doubt.startswith(f"attempt 1 tells of {told}, which cannot be: what is billed stands, ")
    assert report.spent_usd == Decimal("0.10") == sum(report.by_category().values())


@pytest.mark.parametrize("detail", [{"clouds": 5}, {"attempt": [1]}, {"limits": "none"}, {"infra": 7}])
def test_an_event_whose_detail_cannot_be_is_torn(story, detail):
    event = {"at": at(1).isoformat(), "kind": "attempt_ended", "detail": detail}
    story.folder.write_bytes("events/x.json", json.dumps(event).encode())
    assert read_record(story.folder).torn_names == ["events/x.json"]


def test_seconds_that_are_no_number_make_no_json_that_is_none(story):
    story.attempt(1, 0)
    story.beat(1, 90, step=5, durable=5, setup=80, train=10)
    edit(story, "attempts/1/heartbeat.json", start_s={"node": "NaN", "imports": 2.5})
    assert report_of(story).to_json()["attempts"][0]["start_s"] == {"imports": 2.5}
