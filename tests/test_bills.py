"""`ldlm cost` of all runs, as CSV, as a page: what is shown adds up, and what cannot be read is named."""

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_lab import check_golden, ldlm, refused, without_names
from run_stories import ENDED, NOON, PLAN, RUN_ID, Story, at, every_fate, preempted_once

from launcher.attempt_cost import Category
from launcher.bills import is_over_before
from launcher.report import CostReport, cost_report
from launcher.report_html import Page, as_html
from launcher.report_png import figures
from launcher.report_svg import category_words, spent_over_time
from launcher.run_record import load_record, look_at
from launcher.runs import view_all_runs
from trainer.contract import Document, Name
from trainer.run_folder import Attempt


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LDLM_HOME", str(tmp_path))
    return f"file://{tmp_path}/store"


def answer(*args: str) -> str:
    done = ldlm("cost", *args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def report_of(story: Story) -> CostReport:
    return cost_report(look_at(load_record(story.folder.store, RUN_ID), ENDED, NOON + timedelta(days=1)))


def hide_plan(story):
    """Its disk does not give it any more."""
    path = story.folder.store.local_folder / story.folder.run_id / Name.PLAN
    path.unlink()
    path.symlink_to(path)


def test_the_bill_of_all_runs_names_those_that_it_lacks(store):
    every_fate(store, "every-1")
    preempted_once(store, "once-1")
    hide_plan(preempted_once(store, "torn-1"))
    done = ldlm("cost")
    assert done.returncode == 6
    check_golden("screen-cost-all.txt", without_names(done.stdout, (store, "STORE")))
    assert "not in it, since it cannot be read: " in done.stderr and "torn-1/plan.json" in done.stderr


@pytest.mark.parametrize("name", ["attempts/1/heartbeat.json", "events/0.json"])
@pytest.mark.parametrize("command", ["status", "cost"])
def test_a_run_with_a_damaged_heartbeat_or_event_is_shown_without_it_and_it_is_named(store, name, command):
    preempted_once(store, "torn-1").folder.write_bytes(name, b"{")
    done = ldlm(command, "torn-1")
    assert (done.returncode, name in done.stdout, "$0.6000" in done.stdout) == (0, True, True)


def test_the_bill_of_all_runs_says_what_began_before_and_what_contradicts_itself(store):
    every_fate(store)
    twice = preempted_once(store, "twice-1")
    twice.attempt(2, 500)
    twice.end(2, 700, 1)
    assert "not in it: $1.2000 of what began before" in answer("--since", "2026-11-23T12:20")
    assert "! twice-1: attempts 1 and 2 overlap by 1 min 40 s: both are billed" in answer()


def test_dollars_at_simulated_prices_are_told_apart_from_those_that_somebody_bills(store):
    preempted_once(store, "at-home")
    rented = preempted_once(store, "rented")
    rented.folder.write_bytes(Name.PLAN, json.dumps(PLAN | {"offers": {"train": {}, "bench": {}}}).encode())
    said = json.loads(answer("--json"))
    assert (said["spent_usd"], said["simulated_usd"]) == ("1.200000", "0.600000")
    assert "$0.6000 of it at simulated prices" in answer()


def test_all_runs_as_json_add_up_to_the_last_digit(store):
    for number in range(3):
        story = Story(store, f"run-{number}")
        for attempt in range(1, 4):  # thirds of cents
            story.attempt(attempt, 100 * attempt, price=Decimal("0.1234567"))
            story.beat(attempt, 100 * attempt + 90, step=3, durable=2, setup=10.1, train=60.3,
                       durable_train=30.7, checkpoint=3.3, evaluate=5.1)
            story.end(attempt, 100 * attempt + 97, None, preempted=True)
    said = json.loads(answer("--json"))
    parts = [run["usd_by_category"] for run in said["runs"]]
    assert sum(map(Decimal, said["usd_by_category"].values())) == Decimal(said["spent_usd"])
    assert sum(Decimal(run["spent_usd"]) for run in said["runs"]) == Decimal(said["spent_usd"])
    assert all(sum(Decimal(part[name]) for part in parts) == Decimal(said["usd_by_category"][name])
               for name in Category)
    assert list(said["usd_by_category"]) == list(Category)


@pytest.mark.parametrize(("since", "spent"), [
    ("2026-11-23", "2.340000"), ("2026-11-23T12:20", "1.140000"), ("2026-11-23T13:20:00+01:00", "1.140000"),
    ("2026-11-23T12:35:01", None), ("2026-11-24", None)])
def test_since_leaves_out_what_began_before_and_runs_that_were_over(store, since, spent):
    every_fate(store)  # attempts at 0, 10, 20, 25 and 35 minutes past noon
    runs = json.loads(answer("--since", since, "--json"))["runs"]
    assert [run["spent_usd"] for run in runs] == ([spent] if spent else [])


def test_a_run_whose_events_were_written_by_a_clock_that_was_hours_behind_is_not_left_out(store):
    folder = every_fate(store).folder
    folder.store.delete([event.key for event in folder.store.objects(folder.key("events"))])
    for kind, seconds in (("submitted", -7210), ("ended", -4970)):
        folder.add_event(kind, at(seconds))
    runs = json.loads(answer("--since", "2026-11-23T12:20", "--json"))["runs"]
    assert [run["spent_usd"] for run in runs] == ["1.140000"]


def test_a_run_that_was_over_before_costs_one_listing(store):
    story = every_fate(store)
    asked = []

    class Counting(type(story.folder.store)):
        def get(self, key):
            asked.append(key)
            return super().get(key)

    story.folder.store.__class__ = Counting
    later = datetime(2026, 11, 25, tzinfo=UTC)
    assert view_all_runs(story.folder.store, lambda folder: not is_over_before(folder, later)) == ([], [])
    assert asked == []


@pytest.mark.parametrize(("args", "why"), [
    (("--since", "yesterday"), "'yesterday' is no date"), (("--since", "2999-01-01"), "is yet to come"),
    (("--since", ""), "is no date"), (("--json", "--csv"), "two forms of one answer"),
    (("--html", "x.html"), "are about one run")])
def test_what_does_not_go_together_is_refused(store, args, why):
    assert why in refused(2, "cost", *args)


def test_csv_has_a_row_an_attempt_and_adds_up(store):
    story = every_fate(store)
    story.folder.add_event("submitted", at(-180), controller_usd_per_hour="0.36")
    rows = list(csv.DictReader(io.StringIO(answer("--csv"))))
    assert [(row["attempt"], row["document"], row["end"]) for row in rows] == [
        ("1", "train", "preempted"), ("2", "train", "vanished"), ("3", "train", "crashed (1)"),
        ("4", "train", "done"), ("5", "bench", "done"), ("", "", "")]
    assert (rows[0]["cloud"], rows[0]["hardware"], rows[0]["began_at"], rows[0]["price_usd_per_hour"]) == (
        "local", "2 CPU cores", "2026-11-23T12:00:00+00:00", "3.60")
    assert rows[2]["reason"] == "the machine was taken back"
    assert all(sum(Decimal(row[name]) for name in Category) == Decimal(row["usd"]) for row in rows)
    assert sum(Decimal(row["usd"]) for row in rows) == Decimal("2.358")
    assert rows[-1]["controller"] == rows[-1]["usd"] == "0.018000"


# -- the page --------------------------------------------------------------------------------------


def page_of(report: CostReport, cap: str | None = "3") -> str:
    return as_html(Page(report, Decimal(cap) if cap else None, at(9000)))


def tree(html: str) -> ElementTree.Element:
    """Closed where HTML may leave a tag open, the page is XML: what is nested wrongly would not be."""
    text = re.sub(r"<(meta|!doctype)[^>]*>", "", html).strip()
    return ElementTree.fromstring(text)


def test_a_page_is_whole_and_fetches_and_runs_nothing(store):
    html = page_of(report_of(every_fate(store)))
    names = {element.tag for element in tree(html).iter()}
    assert not names & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert "http" not in html and "url(" not in html and "@import" not in html
    assert "prefers-color-scheme:dark" in html and 'name="viewport"' in html


def test_a_page_says_what_the_screen_says(store):
    found = [text.strip() for text in tree(page_of(report_of(every_fate(store)))).itertext() if text.strip()]
    for words in ("Cost of story-1", "$2.3400", "$1.1000", "recomputed", "$0.4900", "cap $3.0000",
                  "planned $2.0000", "3 train · crashed (1) · $0.3000", "170 - 200", "11-23 12:20:00",
                  "~$2.8800 for the same work undisturbed, training at $7.20/h: 19% saved",
                  "$2.3400, within the planned range"):
        assert words in found, words
    assert all(category in found for category in Category)


def thirds_of_cents(store: str, run_id: str = RUN_ID) -> Story:
    """Three attempts of $0.033335 and a controller of $0.03: rounded one by one, three are too low."""
    story = Story(store, run_id)
    for number in (1, 2, 3):
        story.attempt(number, 100 * number, price=Decimal("1.20006"))
        story.beat(number, 100 * number + 90, step=3, durable=2, setup=40, train=50, durable_train=49.999)
        story.end(number, 100 * number + 100, None, preempted=True)
    story.folder.add_event("submitted", at(-300), controller_usd_per_hour="0.36")
    return story


def test_attempts_on_a_page_add_up_to_its_total_as_those_of_the_screen_do(store, tmp_path):
    thirds_of_cents(store)
    screen = answer("story-1", "--html", str(tmp_path / "page.html"))
    page = tree((tmp_path / "page.html").read_text())
    (table,) = [found for found in page.iter("div") if found.get("class") == "wide"]
    cells = [cell.text for cell in table.iter("td") if cell.get("data-name") == "dollars"]
    labels = [text.text.rpartition(" · ")[2] for text in page.iter("text") if " train · " in text.text]
    (total,) = [found.text for found in page.iter("p") if found.get("class") == "spent"]
    assert sum(Decimal(cell[1:]) for cell in cells) == Decimal(total[1:]) and labels == cells[:3]
    assert re.findall(r"(\$\S+)   (?:preempted|beside attempts)\n", screen) == cells


def test_a_page_and_a_screen_call_no_dollars_nothing_that_are_some(store):
    story = Story(store)
    story.attempt(1, 0)
    story.beat(1, 90, step=9, durable=9, setup=40, train=49.99, durable_train=49.99, checkpoint=0.01)
    words = dict(zip(Category, category_words(report_of(story), 4), strict=True))
    assert (words[Category.CHECKPOINT], words[Category.DISK]) == ("<$0.0001", "$0.0000")
    assert "checkpoint stall     <$0.0001" in answer(RUN_ID)


def test_the_picture_has_the_amounts_of_the_page_and_is_as_high(store):
    report = report_of(thirds_of_cents(store))
    drawn = figures(Page(report, Decimal(99), at(9000)))
    page = tree(page_of(report))
    shown = [cell.text for cell in page.iter("td") if cell.get("class") == "num"]
    assert [*drawn["labels"], drawn["total"]] == shown
    assert drawn["top_usd"] == "4.320000"  # the plan's $4 and a margin


@pytest.mark.parametrize(("cap", "words"), [("4.5", "cap $4.5000"), ("99", "cap $99.0000, above this frame")])
def test_a_cap_far_above_the_spending_leaves_the_spending_readable(store, cap, words):
    page = tree(page_of(report_of(every_fate(store)), cap))  # $2.34 of a plan of up to $4
    (line,) = [found.get("points") for found in page.iter("polyline")]
    highest = min(float(point.partition(",")[2]) for point in line.split())
    assert highest < 60 and words in [text.text for text in page.iter("text")]
    assert ("cap" in [found.get("class") for found in page.iter("line")]) is (cap == "4.5")


def test_each_run_has_the_same_total_beside_others_as_alone_and_all_have_the_exact_sum(store):
    for number in range(3):
        preempted = Story(store, f"run-{number}")
        preempted.attempt(1, 0, price=Decimal("1.20144"))  # $0.033373 each, $0.10012 in all
        preempted.end(1, 100, None, preempted=True)
    rows = re.findall(r"run-\d .*(\$\S+)\n", answer())
    assert rows == ["$0.0334"] * 3 and "run-1: unknown; $0.0334 spent\n" in answer("run-1")
    assert re.findall(r"total +(\$\S+)\n", answer()) == ["$0.1001"] * 2
    assert "each line is rounded by itself: together they would be $0.1002\n" in answer()


def test_bars_of_an_attempt_fill_its_lane_and_no_more(store):
    svg = next(element for element in tree(page_of(report_of(every_fate(store)))).iter("svg")
               if element.get("aria-label") == "Timeline of attempts")
    bars = [(float(bar.get("x")[:-1]), float(bar.get("width")[:-1])) for bar in svg.iter("rect")]
    assert min(x for x, _ in bars) == 0
    assert max(x + width for x, width in bars) == pytest.approx(100, abs=0.01)
    assert sum(width for _, width in bars) == pytest.approx(100, abs=0.05)  # these attempts leave no gap


def test_dollars_over_time_rise_by_each_attempt_and_stand_still_between_them(store):
    story = Story(store)
    for number, begins, ends in ((1, 0, 100), (2, 300, 400)):
        story.attempt(number, begins)
        story.end(number, ends, 75)
    points = list(spent_over_time(report_of(story), at(9000)))
    assert points == [(at(0), 0), (at(100), Decimal("0.1")), (at(300), Decimal("0.1")),
                      (at(400), Decimal("0.2"))]


def test_a_page_of_names_that_look_like_html_shows_them(store):
    story = Story(store)
    story.folder.write("attempts/1/attempt.json", Attempt(
        number=1, document=Document.TRAIN, billed_from=at(0), price_usd_per_hour=Decimal(1),
        offer="<b>:1 on gcp & co", host="h", cloud="<i>"))
    html = page_of(report_of(story))
    assert "<b>" not in html and "&lt;b&gt;:1" in {cell for cell in re.findall(r"<td[^>]*>([^<]*)", html)}


@pytest.mark.parametrize("cap", [None, "0.0001"])
def test_a_run_without_attempts_or_dollars_has_a_page(store, cap):
    assert "$0.0000" in page_of(report_of(Story(store)), cap)
    story = Story(store, "short")
    story.attempt(1, 0, price=Decimal(0))
    story.end(1, 0, 0)
    free = cost_report(look_at(load_record(story.folder.store, "short"), ENDED, at(1)))
    tree(page_of(free, cap))


def test_html_is_written_beside_the_answer_and_a_file_that_cannot_be_is_refused(store, tmp_path):
    every_fate(store)
    said = json.loads(answer("story-1", "--html", str(tmp_path / "page.html"), "--json"))
    assert said["spent_usd"] == "2.340000" and "$2.3400" in (tmp_path / "page.html").read_text()
    assert "cannot be written" in refused(2, "cost", "story-1", "--html", str(tmp_path / "no" / "page.html"))
