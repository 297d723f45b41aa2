import json
import re
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_stories import (
    ENDED,
    KILLED,
    NOON,
    PLAN,
    RUN_ID,
    RUNNING,
    Story,
    at,
    every_fate,
    preempted_once,
)

from launcher.attempt_cost import Category
from launcher.report import CostReport, amounts_that_add_up, cost_report
from launcher.run_record import load_record, look_at
from trainer.contract import Document, Name

LATER = at(9999)


def report_of(story: Story, engine, now=LATER) -> CostReport:
    return cost_report(look_at(load_record(story.folder.store, RUN_ID), engine, now))


def dollars(report: CostReport) -> dict[str, str]:
    """Categories with money in them, rounded for people."""
    return {name.value: f"{usd:.4f}" for name, usd in report.by_category().items() if usd}


@pytest.fixture
def store_url(tmp_path):
    return f"file://{tmp_path}/store"


def test_every_fate_of_an_attempt_is_billed_to_the_cent(store_url):
    report = report_of(every_fate(store_url), ENDED)
    # By hand, at $0.001 a second: 300 + 200 + 100 + 500 useful seconds, and so on.
    assert dollars(report) == {
        "set-up": "0.2600", "useful": "1.1000", "recomputed": "0.4900", "checkpoint stall": "0.0600",
        "evaluation": "0.0600", "crashed or stopped": "0.1300", "benchmark": "0.2400"}
    assert report.spent_usd == Decimal("2.34")
    assert [cost.end for cost in report.attempts] == ["preempted", "vanished", "crashed (1)", "done", "done"]
    assert [f"{cost.usd:.2f}" for cost in report.attempts] == ["0.60", "0.60", "0.30", "0.60", "0.24"]
    assert [cost.wasted_s for cost in report.attempts] == [150, 340, 130, 0, 0]


def test_time_in_which_a_run_hung_is_lost_although_it_asks_to_be_run_again(store_url):
    story = Story(store_url)
    story.attempt(1, 0)  # 40 set-up, 50 useful, 310 without a step that was kept
    story.beat(1, 390, step=30, durable=20, setup=40, train=350, durable_train=50)
    story.end(1, 400, 75, hung=True)
    report = report_of(story, ENDED)
    assert [cost.end for cost in report.attempts] == ["hung"]
    assert dollars(report) == {"set-up": "0.0400", "useful": "0.0500", "crashed or stopped": "0.3100"}


def test_what_on_demand_would_have_cost_leaves_out_what_only_spot_pays(store_url):
    report = report_of(every_fate(store_url), ENDED)
    # One set-up of 100 s, 1100 useful, 60 saving, 60 evaluating, 120 benchmark; at $0.002 a second.
    assert report.on_demand_usd == Decimal("2.88")
    assert report.planned_usd.mid == 2
    assert report.goodput == pytest.approx(1100 / 2100)
    assert report.tokens == 400 * 512


def test_on_demand_counts_one_set_up_that_led_to_training_and_one_benchmark_that_succeeded(store_url):
    story = Story(store_url)
    story.attempt(1, 0)  # 70 s of set-up that led nowhere
    story.end(1, 70, 1)
    story.attempt(2, 70)
    story.beat(2, 170, step=400, durable=400, setup=40, train=50, durable_train=50, checkpoint=10)
    story.end(2, 170, 0)
    for number, begins, code in ((3, 170, 78), (4, 200, 1), (5, 230, 0)):
        story.attempt(number, begins, Document.BENCH)
        story.end(number, begins + 30 * (1 + (code == 0)), code)
    # 40 set-up, 50 useful, 10 saving at $0.002 a second; 60 benchmark at the $0.001 that was paid.
    assert report_of(story, ENDED).on_demand_usd == Decimal("0.26")


def test_the_benchmark_is_compared_at_the_on_demand_price_of_its_own_machine_also_while_it_runs(store_url):
    story = every_fate(store_url)
    offers = PLAN["offers"] | {"bench": {"on_demand_usd_per_hour": "0.36"}}
    story.folder.write_bytes(Name.PLAN, json.dumps(PLAN | {"offers": offers}).encode())
    # 1,320 s at $0.002, and 120 s at $0.0001.
    assert report_of(story, ENDED).on_demand_usd == Decimal("2.652")
    story.folder.store.delete([story.folder.key("attempts/5/end.json")])
    running = report_of(story, RUNNING, at(2160))
    assert running.attempts[-1].end == "running"
    assert running.on_demand_usd == Decimal("2.646")  # 60 s of it by now


def test_the_bill_since_a_moment_says_what_began_before_and_is_not_beside_the_plan_of_the_whole(store_url):
    view = look_at(load_record(every_fate(store_url).folder.store, RUN_ID), ENDED, at(9999))
    report = cost_report(view, at(1200))  # attempts begin at 0, 10, 20, 25 and 35 minutes
    assert (report.spent_usd, report.before_usd) == (Decimal("1.14"), Decimal("1.20"))
    assert report.planned_usd is None
    assert cost_report(view, at(0)).before_usd == 0 and cost_report(view, at(0)).planned_usd is not None


@pytest.mark.parametrize(("resumed", "useful", "lost"), [
    (100, "0.3000", "0.1500"),  # as the heartbeat knew
    (120, "0.3560", "0.0940"),  # 20 of the 50 steps after it: 20/50 of 140 s more
    (150, "0.4400", "0.0100"),
    (170, "0.4400", "0.0100"),  # beyond the last heartbeat: no more time is known
])
def test_steps_that_the_next_attempt_found_durable_are_kept_in_the_bill(store_url, resumed, useful, lost):
    story = preempted_once(store_url)
    story.attempt(2, 600)  # says step 0 all its life: it never loaded a checkpoint
    story.beat(2, 650, step=0, durable=0, setup=50)
    story.end(2, 700, None, preempted=True)
    story.attempt(3, 700)
    story.beat(3, 800, step=resumed, durable=resumed, resumed=resumed, setup=100)
    report = report_of(story, RUNNING, at(800))
    # Of the first attempt by hand: 600 s, of which 100 set-up, 20 saving, 30 evaluating.
    first = report.attempts[0]
    assert (first.from_step, first.durable_step) == (0, resumed)
    assert dollars(report)["useful"] == useful
    assert dollars(report)["recomputed"] == lost


def test_what_a_user_stopped_at_once_is_not_called_a_crash(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.beat(1, 90, step=9, durable=5, setup=40, train=50, durable_train=20)
    story.folder.add_event("stop_requested", at(95), attempt=1)
    story.end(1, 100, 137)
    story.attempt(2, 100)
    story.folder.add_event("stop_requested", at(105), attempt=2)
    story.end(2, 110, 143)
    story.attempt(3, 110, Document.BENCH)
    story.folder.add_event("stop_requested", at(115), attempt=3)
    story.end(3, 120, 75)
    report = report_of(story, ENDED)
    assert dollars(report) == {
        "set-up": "0.0500", "useful": "0.0200", "crashed or stopped": "0.0400", "benchmark": "0.0100"}
    assert [cost.end for cost in report.attempts] == ["stopped at once", "stopped", "stopped"]


def test_before_any_training_there_is_nothing_to_compare_with_on_demand(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.end(1, 70, 1)
    assert report_of(story, ENDED).on_demand_usd is None


def test_a_running_attempt_is_charged_until_now_and_what_is_not_yet_saved_is_said(store_url):
    story = preempted_once(store_url)
    story.attempt(2, 600)
    story.beat(2, 800, step=160, durable=150, resumed=100, setup=50, train=140, durable_train=90,
               checkpoint=10)
    report = report_of(story, RUNNING, at(900))
    assert dollars(report) == {
        "set-up": "0.1500", "useful": "0.5400", "recomputed": "0.1500", "checkpoint stall": "0.0300",
        "evaluation": "0.0300"}
    assert report.unsaved_usd == Decimal("0.15")  # 50 s since its checkpoint, 100 since its heartbeat
    assert report.spent_usd == Decimal("0.90")
    assert report.attempts[-1].end == "running"


def test_what_the_preemptions_cost_is_work_done_again_and_the_starts_after_them(store_url):
    # 150 + 340 s of work, the starts of attempts 2 and 3: 50 and 60 s; not the crash, nor the start after it.
    assert report_of(every_fate(store_url), ENDED).preemptions_usd == Decimal("0.60")
    story = Story(store_url, "taken-while-it-starts")
    for number, ends in ((1, 100), (2, 200)):
        story.attempt(number, ends - 100)
        story.end(number, ends, None, preempted=True)
    story.attempt(3, 200)
    story.beat(3, 290, step=9, durable=9, setup=40, train=50, durable_train=50)
    story.end(3, 290, 0)
    story.attempt(4, 290, Document.BENCH)
    story.end(4, 300, None, preempted=True)
    found = cost_report(look_at(load_record(story.folder.store, "taken-while-it-starts"), ENDED, at(999)))
    # One start would have been: the second and the third, and the benchmark that was lost.
    assert found.preemptions_usd == Decimal("0.15")


def test_a_rented_machine_boots_starts_restores_and_waits_each_in_its_own_category(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    began = story.folder.attempt(1).attempt.model_copy(update={"began_at": at(25)})
    story.folder.write("attempts/1/attempt.json", began)
    story.beat(1, 200, step=60, durable=60, resumed=20, setup=60, train=70, durable_train=70)
    beat = story.folder.attempt(1).heartbeat
    phases = beat.phases.model_copy(update={"restore_s": 30, "waiting_s": 40})
    story.folder.write("attempts/1/heartbeat.json", beat.model_copy(update={"phases": phases}))
    story.end(1, 200, 0)
    assert dollars(report_of(story, ENDED)) == {
        "provisioning": "0.0250", "set-up": "0.0350", "restore": "0.0300", "useful": "0.0700",
        "waiting": "0.0400"}


@pytest.mark.parametrize(("offer", "told"), [
    ("2 CPU cores here", ("local", "2 CPU cores", "")),
    ("RTX5090:1 here (spot)", ("local", "RTX5090:1", "spot")),
    ("2x H100:8 on gcp/us-central1 (on-demand)", ("", "2x H100:8", "on-demand")),
    ("RTX5090:1 on a machine of yours", ("", "RTX5090:1", "")), ("of old", ("", "of old", "")),
    ("", ("", "", ""))])
def test_an_attempt_is_on_what_its_label_says(store_url, offer, told):
    story = Story(store_url)
    story.attempt(1, 0)
    attempt = story.folder.attempt(1).attempt.model_copy(update={"offer": offer})
    story.folder.write("attempts/1/attempt.json", attempt)
    (cost,) = report_of(story, RUNNING).attempts
    assert (cost.cloud, cost.hardware, cost.market) == told


def test_every_category_is_in_every_report_and_there_are_thirteen(store_url):
    report = report_of(Story(store_url), RUNNING)
    assert list(report.by_category()) == list(Category) and len(Category) == 13
    assert report.to_json()["usd_by_category"] == dict.fromkeys(Category, "0.000000")


def test_the_json_has_what_its_docstring_names(store_url):
    said = report_of(every_fate(store_url), ENDED).to_json()
    named = set(re.findall(r"^        (\w[\w, ]*?)(?: \(|:)", CostReport.to_json.__doc__, re.MULTILINE))
    assert set(said) == {name for names in named for name in names.split(", ")}
    of_attempts = CostReport.to_json.__doc__.partition("attempts: ")[2].partition("doubts:")[0]
    assert all(name.replace("attempt", "number") in of_attempts for name in said["attempts"][0])


def test_before_the_first_step_everything_is_set_up(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.beat(1, 30, step=0, durable=0, setup=30)
    assert dollars(report_of(story, RUNNING, at(50))) == {"set-up": "0.0500"}


def test_a_run_whose_supervisor_was_killed_costs_nothing_after_its_last_sign_of_life(store_url):
    story = preempted_once(store_url)
    story.attempt(2, 600)
    story.beat(2, 700, step=120, durable=100, resumed=100, setup=40, train=60)
    report = report_of(story, KILLED, at(999_999))
    assert report.spent_usd == Decimal("0.70")
    assert report.attempts[-1].end == "vanished"


def test_an_attempt_that_its_engine_closed_for_it_has_vanished(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.end(1, 10, None)
    assert report_of(story, KILLED).attempts[0].end == "vanished"


def test_a_run_without_attempts_costs_nothing(store_url):
    report = report_of(Story(store_url), RUNNING)
    assert (report.spent_usd, report.on_demand_usd, report.goodput, report.tokens) == (0, None, None, 0)


def test_a_clock_that_was_set_back_never_bills_more_than_passed(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.beat(1, 90, step=5, durable=5, setup=80, train=500, durable_train=500)
    story.end(1, 100, 0)
    assert dollars(report_of(story, ENDED)) == {"set-up": "0.0800", "useful": "0.0200"}


def test_a_controller_is_a_category_of_its_own_from_submission_to_the_end(store_url):
    story = every_fate(store_url)  # 2220 s, $2.34
    story.folder.add_event("submitted", at(-180), controller_usd_per_hour="0.36")  # $0.0001 a second
    report = report_of(story, ENDED, NOON + timedelta(days=99))
    # Two starts: the second, at noon, says nothing of a price.
    assert dollars(report)["controller"] == "0.0180"
    assert report.spent_usd == Decimal("2.358") == sum(report.by_category().values())
    said = report.to_json()
    assert said["usd_by_category"]["controller"] == "0.018000" and said["spent_usd"] == "2.358000"
    assert look_at(load_record(story.folder.store, RUN_ID), ENDED, at(9999)).spent_usd == Decimal("2.358")


@settings(deadline=None)
@given(durations=st.lists(st.floats(0, 1e6), min_size=1, max_size=5), price=st.decimals(0, 99, places=4),
       data=st.data())
def test_categories_and_attempts_always_add_up_to_the_total(tmp_path_factory, durations, price, data):
    story = Story(f"file://{tmp_path_factory.mktemp('store')}")
    begins = 0.0
    for number, length in enumerate(durations, 1):
        story.attempt(number, begins, data.draw(st.sampled_from(Document)), price)
        share = data.draw(st.floats(0, 0.4))
        story.beat(number, begins + length, step=1, durable=1, setup=share * length, train=share * length,
                   durable_train=share * length, checkpoint=share * length)
        begins += length
        story.end(number, begins, data.draw(st.sampled_from([0, 1, 75, None])))
    report = report_of(story, ENDED, NOON + timedelta(days=99))
    assert sum(report.by_category().values()) == report.spent_usd
    said = report.to_json()
    total = Decimal(said["spent_usd"])
    assert sum(map(Decimal, said["usd_by_category"].values())) == total
    assert sum(Decimal(attempt["usd"]) for attempt in said["attempts"]) == total


@given(st.lists(st.decimals(0, 1000, places=9), max_size=9))
def test_rounded_amounts_add_up_and_stay_within_one_unit(amounts):
    cent = Decimal("0.01")
    rounded = amounts_that_add_up(amounts, cent)
    assert sum(rounded, Decimal(0)) == sum(amounts, Decimal(0)).quantize(cent)
    assert all(abs(shown - amount) < cent for shown, amount in zip(rounded, amounts, strict=True))
