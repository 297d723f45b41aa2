"""A run of which a record is torn or gone: the rest is shown and billed, and what stands in is said."""

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from run_stories import ENDED, NOON, PRICE, Story, at, every_fate, preempted_once

from launcher.rentals import Price, Rental, Rentals, Terms
from launcher.report import CostReport, cost_report
from launcher.run_record import ending_words, look_at, read_record
from trainer.contract import Document, Name, Outcome, attempt_file
from trainer.rental_terms import RentalTerms
from trainer.run_folder import Attempt, RunOutcome

BY_BEATS, BY_THE_LAST = "as its heartbeats tell", "when the one before it was last heard of"


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return preempted_once(f"file://{tmp_path}/store")


@pytest.fixture
def finished(tmp_path: Path) -> Story:
    return every_fate(f"file://{tmp_path}/store")


def report_of(story: Story) -> CostReport:
    return cost_report(look_at(read_record(story.folder), ENDED, NOON + timedelta(days=1)))


def tear(story: Story, name: str) -> None:
    """As a write leaves it that a full disk has cut short."""
    story.folder.write_bytes(name, b'{"number": 1, ')


def lose(story: Story, *names: str) -> None:
    story.folder.store.delete([story.folder.key(name) for name in names])


def in_doubt(number: int, since: str, by: str, beside: str = "") -> str:
    return (f"attempts/{number}/attempt.json is not a valid Attempt: attempt {number} is in doubt, and "
            f"billed from 2026-11-23 {since} UTC on, {by}, at $7.20 an hour, the dearest that is "
            f"known{beside}; if there is a backup, restore it")


def test_a_torn_attempt_is_billed_from_its_heartbeats_at_the_dearest_price_of_its_run(finished):
    tear(finished, "attempts/4/attempt.json")
    report = report_of(finished)
    assert report.doubts == [in_doubt(4, "12:25:00", BY_BEATS)]
    # Its 600 s at the $7.20 of the benchmark, not at $3.60; all else as it was.
    assert report.spent_usd == Decimal("2.34") + Decimal("0.60") == sum(report.by_category().values())
    assert [attempt.end for attempt in report.attempts][3:] == ["done", "done"]


def test_an_attempt_that_names_another_number_is_not_taken_for_that(finished):
    record = finished.folder.read_json("attempts/2/attempt.json") | {"number": 1}
    finished.folder.write_bytes("attempts/2/attempt.json", json.dumps(record).encode())
    (doubt,) = report_of(finished).doubts
    assert doubt.startswith("attempts/2/attempt.json is none of attempt 2: attempt 2 is in doubt, and billed")


@pytest.mark.parametrize(("lost", "by", "usd"), [
    ([], BY_BEATS, "1.20"), (["heartbeat"], BY_THE_LAST, "1.20"),
    (["end"], BY_BEATS, "1.18"),  # to the last heartbeat
])
def test_what_is_left_of_an_attempt_is_billed_and_never_as_nothing(story, lost, by, usd):
    tear(story, "attempts/1/attempt.json")
    lose(story, *(f"attempts/1/{name}.json" for name in lost))
    report = report_of(story)
    assert (report.doubts, report.spent_usd) == ([in_doubt(1, "12:00:00", by)], Decimal(usd))


def test_an_attempt_of_which_all_is_torn_is_billed_between_those_beside_it(finished):
    for name in ("attempt", "heartbeat", "end"):
        tear(finished, f"attempts/3/{name}.json")
    report = report_of(finished)
    # Attempt 2 was last heard of at 900 s, attempt 4 begins at 1,500 s: 600 s at $7.20. Attempt 2 ends where
    # the next one begins.
    assert report.doubts[0] == in_doubt(3, "12:15:00", BY_THE_LAST)
    assert [attempt.usd for attempt in report.attempts[1:3]] == [Decimal("0.30"), Decimal("1.20")]


def test_an_attempt_of_which_no_price_is_known_is_billed_by_the_sum_that_its_node_told(story):
    lose(story, "attempts/1/attempt.json", "plan.json")
    report = report_of(story)
    assert report.doubts[1].startswith("attempts/1/attempt.json is gone: attempt 1 is in doubt, and billed")
    # 590 s when it told of $0.50, and ten seconds more.
    assert report.spent_usd == pytest.approx(Decimal("0.50") * 600 / 590, abs=Decimal("0.0001"))
    lose(story, "attempts/1/heartbeat.json")
    assert report_of(story).doubts[1] == (
        "attempts/1/attempt.json is gone: no price of attempt 1 is known, and nothing is billed for its "
        "hours; if there is a backup, restore it")


def test_how_a_run_ended_is_told_by_its_events_where_its_record_is_torn(story):
    story.folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.LIMIT, at=at(700), step=100, reason="cap"))
    story.folder.add_event("ended", at(700), outcome="limit", reason="the cap is reached")
    tear(story, "outcome.json")
    record = read_record(story.folder)
    assert record.has_ended and ending_words(record) == "stopped at its limit (the cap is reached)"
    assert report_of(story).doubts == [
        "outcome.json is not a valid RunOutcome: how the run ended is what its events tell; if there is a "
        "backup, restore it"]


@pytest.mark.parametrize(("name", "says"), [
    ("plan.json", "cannot be understood: whether its price was simulated nobody"),
    ("bench/result.json", "cannot be understood: what the benchmark has found is not known, what it cost is"),
    ("rentals.json", "is not a valid Rentals: machines are billed by what their nodes tell"),
])
def test_what_is_torn_beside_attempts_changes_no_dollar(finished, name, says):
    tear(finished, name)
    report = report_of(finished)
    (doubt,) = report.doubts
    assert doubt.startswith(f"{name} {says}")
    assert report.spent_usd == Decimal("2.34")


def two_on_gcp(store_url: str, rented: tuple[float, float] = (0, 7200)) -> Story:
    """Two hours each: $0.60 an hour for disk and address, 100 GB up from each machine at 12 cents."""
    story = Story(store_url)
    for number, since in enumerate(rented, 1):
        begins = 7200 * (number - 1)
        story.folder.write(attempt_file(number, "attempt.json"), Attempt(
            number=number, document=Document.TRAIN, billed_from=at(begins), price_usd_per_hour=PRICE,
            offer="", host="h", cloud="gcp", terms=RentalTerms(
                rented_at=at(since), by_list=True, disk_usd_per_hour=Decimal("0.50"),
                address_usd_per_hour=Decimal("0.10"), sent_usd_per_gb=Decimal("0.12"))))
        story.beat(number, begins + 7190, step=100 * number, durable=100 * number, setup=100, train=7090)
        on_machine = number if rented[0] == rented[-1] else 1
        beat = story.folder.read_json(f"attempts/{number}/heartbeat.json")
        story.folder.write_bytes(f"attempts/{number}/heartbeat.json", json.dumps(
            beat | {"traffic": {"sent_bytes": on_machine * 100 * 10**9}}).encode())
        story.end(number, begins + 7200, None, preempted=True)
    return story


@pytest.mark.parametrize("rented", [(0, 7200), (0, 0)])
@pytest.mark.parametrize("number", [1, 2])
def test_a_torn_attempt_on_a_cloud_with_a_list_keeps_its_disk_address_and_network(tmp_path, rented, number):
    story = two_on_gcp(f"file://{tmp_path}/store", rented)
    tear(story, f"attempts/{number}/attempt.json")
    report = report_of(story)
    assert report.doubts == [in_doubt(number, ("12:00:00", "14:00:00")[number - 1], BY_BEATS,
                                      ", its disk and network by the list prices of the attempt beside it")]
    # Four hours at $7.20 and $3.60, of disk and address, and 2 x 100 GB; of a second attempt on the first
    # machine nothing tells that it was there, and that what both have sent is not its own alone.
    is_twice = rented == (0, 0) and number == 2
    assert report.spent_usd == 2 * (Decimal("7.20") + PRICE) + 4 * Decimal("0.60") + (36 if is_twice else 24)


def test_a_torn_attempt_beside_no_other_says_that_its_disk_and_network_are_not_known(tmp_path):
    story = two_on_gcp(f"file://{tmp_path}/store", (0,))
    story.folder.add_event("resumed", NOON, infra="gcp")
    tear(story, "attempts/1/attempt.json")
    (doubt,) = report_of(story).doubts
    assert doubt.endswith("known, its disk and network not at all: what they cost is not known; if "
                          "there is a backup, restore it")
    rented = Rental(run_id="one", instance_id="5", machine_id=7, rented_at=NOON, ended_at=at(7200),
                    prices=(Price(at=NOON, usd_per_hour=Decimal("7.20")),), terms=Terms(disk_gb=1))
    story.folder.write(Name.RENTALS, Rentals.of([rented]))  # then its contract tells
    assert report_of(story).doubts == [in_doubt(1, "12:00:00", BY_BEATS)]
