"""Moments that cannot be: of clocks that were hours or days ahead. Every dollar is worked out by hand."""

import json
import os
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from run_stories import ENDED, KILLED, NOON, Story, at

from launcher.rentals import Price, Rental, Rentals, Terms
from launcher.report import CostReport, cost_report
from launcher.run_record import look_at, read_record
from trainer.at_most import standing_of
from trainer.contract import Name, Outcome, attempt_file
from trainer.spent import spent_usd

DAYS = 3 * 86400.0
NOW = NOON + timedelta(days=30)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """An attempt that has told of 500 s."""
    story = Story(f"file://{tmp_path}/store")
    story.attempt(1, 0)
    story.beat(1, 500, step=50, durable=50, setup=100, train=400, durable_train=400)
    story.end(1, DAYS, 0)
    written(story, "end", NOON + timedelta(days=9))  # much later: says nothing
    return story


def written(story: Story, name: str, moment: datetime) -> None:
    """As if a record of attempt 1 had been written then, by the clock of the store."""
    path = story.folder.store.local_folder / story.folder.key(attempt_file(1, f"{name}.json"))
    os.utime(path, (moment.timestamp(),) * 2)


def report_of(story: Story, now: datetime = NOW) -> CostReport:
    return cost_report(look_at(read_record(story.folder), ENDED, now))


def ahead(what: str, billed: str) -> str:
    return f"attempt 1 ends 2 d 23 h after {what}: a clock was wrong; it is billed for {billed}"


def assert_billed(story: Story, usd: str, doubt: str) -> None:
    """So much, with this doubt first; the screens of all runs say the same."""
    report = report_of(story)
    assert (report.doubts[:1], report.spent_usd) == ([doubt], Decimal(usd))


def test_a_begin_behind_all_that_was_heard_of_it_is_moved_and_the_one_before_billed_to_that(story):
    """One vanished after 500 s at least; the next took 200 s, by a clock that was first a day ahead."""
    story.folder.store.delete([story.folder.key(attempt_file(1, "end.json"))])
    story.attempt(2, 86400)
    story.beat(2, 800, step=70, durable=70, resumed=50, setup=100, train=100, durable_train=100)
    story.end(2, 810, 0)
    story.outcome(Outcome.FINISHED, 810, 70)
    assert_billed(story, "0.81", "attempt 2 begins 23 h 46 min behind its own end: its clock was set back; "
                                 "it is billed for as long as its heartbeats tell")


def test_an_end_that_nobody_contradicts_is_billed(story):
    report = report_of(story)
    assert (report.doubts, report.spent_usd) == ([], Decimal("259.2"))


def test_an_end_behind_that_of_its_run_is_billed_to_that(story):
    story.outcome(Outcome.FINISHED, 600, 50)
    assert_billed(story, "0.60", ahead("its run had ended", "10 min 00 s"))


def test_an_end_behind_the_contract_of_its_machine_is_billed_to_that(story):
    contract = Rental(run_id="story-1", instance_id="i1", machine_id=1, rented_at=at(0), ended_at=at(900),
                      prices=(Price(at=at(0), usd_per_hour=Decimal("3.60")),), terms=Terms(disk_gb=0))
    story.folder.write(Name.RENTALS, Rentals.of([contract]))
    attempt = story.folder.attempt(1).attempt.model_copy(update={"cloud": "vast"})
    story.folder.write("attempts/1/attempt.json", attempt)
    assert_billed(story, "0.90", ahead("its machine was given back", "15 min 00 s"))


def test_an_end_behind_the_moment_at_which_its_store_had_it_is_billed_to_that(story):
    written(story, "end", at(520))
    assert_billed(story, "0.52", ahead("its record was written", "8 min 40 s"))


def test_the_last_heartbeat_of_a_machine_that_is_gone_is_billed_to_where_its_store_had_it(story):
    """Its clock jumped; who found it gone, days later, has written its last moment as its end."""
    story.beat(1, DAYS, step=50, durable=50, setup=100, train=400, durable_train=400)
    written(story, "heartbeat", at(505))
    story.end(1, DAYS, None, preempted=True)
    assert_billed(story, "0.505", ahead("its record was written", "8 min 25 s"))


def test_an_attempt_whose_clock_was_ahead_from_the_beginning_is_billed_for_as_long_as_it_tells(story):
    story.attempt(1, DAYS)
    story.beat(1, DAYS + 500, step=50, durable=50, setup=100, train=400, durable_train=400)
    story.end(1, DAYS + 510, 0)
    story.outcome(Outcome.FINISHED, 600, 50)
    assert report_of(story).spent_usd == Decimal("0.51")


def test_a_sign_of_life_that_is_yet_to_come_is_as_old_as_its_attempt_tells(story):
    """Of a run that is lost, which is charged to its last sign of life."""
    story.beat(1, DAYS, step=50, durable=50, setup=100, train=400, durable_train=400)
    story.folder.store.delete([story.folder.key("attempts/1/end.json")])
    view = look_at(read_record(story.folder), KILLED, at(1000))
    assert (view.status, cost_report(view).spent_usd) == ("unknown", Decimal("0.50"))
    assert view.doubts == ["attempt 1 gave a sign of life 2 d 23 h from now: a clock was wrong; "
                           "it counts by what it tells of its age"]


def test_an_attempt_that_ended_before_its_run_was_submitted_is_as_long_as_it_says(story):
    """A day of summer time ends: 02:30 comes twice, an hour apart."""
    for name, key, moment in (("attempt", "billed_from", "2026-10-25T02:30:00+02:00"),
                              ("end", "at", "2026-10-25T02:30:00+01:00")):
        path = f"attempts/1/{name}.json"
        story.folder.write_bytes(path, json.dumps(story.folder.read_json(path) | {key: moment}).encode())
    report = report_of(story)
    assert report.spent_usd == Decimal("3.60")
    assert report.doubts[0] == ("attempt 1 begins 29 d 11 h before its run was submitted: a clock was wrong; "
                                "it is billed for as long as it says")


@pytest.mark.parametrize(("begins", "usd"), [(0, "1.00"), (2000, "0.50")])
def test_an_end_that_is_yet_to_come_is_billed_to_now_at_most_by_nodes_as_well(story, begins, usd):
    """Its node tells of 500 s: where it began in the future, too, it is as old as that."""
    story.attempt(1, begins)
    now = at(1000)
    assert spent_usd(story.folder.attempts(), now) == Decimal(usd)
    assert standing_of(story.folder.attempts(), [], now).spent_usd == Decimal(usd)
    report = report_of(story, now)
    assert report.spent_usd == Decimal(usd)
    (doubt,) = report.doubts
    until = "12:16:40" if begins == 0 else "12:41:40"
    assert doubt == ("attempt 1 ends 2 d 23 h later than can be: a clock was wrong; it is billed to "
                     f"2026-11-23 {until} UTC")


def test_a_run_whose_end_is_yet_to_come_is_supervised_until_now(tmp_path):
    story = Story(f"file://{tmp_path}/store")
    story.folder.add_event("resumed", at(1), controller_usd_per_hour="3.60")
    story.outcome(Outcome.STOPPED, DAYS, 0)
    report = report_of(story, at(101))
    assert report.spent_usd == Decimal("0.10")
    assert report.doubts == ["1 of the run's events is dated later than now: a clock was wrong; they count "
                             "as of now"]
