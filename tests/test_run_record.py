import json

import pytest
from launch_examples import NOW, example_plan, example_recipe, example_task
from run_stories import (
    ELSEWHERE,
    ENDED,
    KILLED,
    NOON,
    RUNNING,
    Story,
    at,
    every_fate,
    preempted_once,
)

from launcher.engine import EnginePhase, EngineState
from launcher.errors import RunRecordError, StoreError
from launcher.run_record import (
    create_record,
    ending_words,
    list_run_ids,
    load_record,
    look_at,
    outcome_words,
    read_record,
    status_of,
)
from launcher.runs import view_all_runs
from trainer.contract import Document, Name, Outcome
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import open_store


@pytest.fixture
def store_url(tmp_path):
    return f"file://{tmp_path}/store"


def record_of(story: Story):
    return load_record(story.folder.store, story.folder.run_id)


def status(story: Story, engine: EngineState, now=NOON) -> str:
    return status_of(record_of(story), engine, now).value


def test_the_record_holds_what_was_approved_and_claims_the_id(store_url):
    folder = RunFolder(open_store(store_url), "example-1")
    create_record(folder, example_recipe(), example_plan(), example_task(), NOW)
    assert {item.key.split("/")[1] for item in folder.store.objects("example-1")} == {
        "recipe.json", "plan.json", "task.yaml", "events"}
    assert folder.read_bytes(Name.TASK) == example_task().text.encode()
    record = load_record(folder.store, "example-1")
    assert record.plan.usd == example_plan().usd
    assert record.plan.offers[Document.TRAIN].price_is_simulated
    assert [event.kind for event in record.events] == ["submitted"]
    assert (record.attempts, record.outcome, record.bench, record.training) == ([], None, None, None)


def test_whoever_rents_is_asked_about_machines_until_all_of_them_are_known_to_have_ended(store_url):
    story = Story(store_url)
    assert not record_of(story).may_have_rentals  # planned for this machine alone

    story.folder.add_event("resumed", NOON, infra="vast", clouds=["vast"])
    assert record_of(story).may_have_rentals
    story.folder.add_event("resumed", at(3600), infra="local", clouds=["local"])
    assert record_of(story).may_have_rentals  # home again, and the bill of the rental is still to come

    rented = {"run_id": story.folder.run_id, "instance_id": "1", "machine_id": 1,
              "prices": [{"at": NOON.isoformat(), "usd_per_hour": "1"}],
              "rented_at": NOON.isoformat(), "terms": {"disk_gb": 10}}
    for ended_at, is_open in ((None, True), (at(1800).isoformat(), False)):
        known = {"rentals": [rented | {"ended_at": ended_at}]}
        story.folder.write_bytes(Name.RENTALS, json.dumps(known).encode())
        assert record_of(story).may_have_rentals is is_open


def test_a_run_id_that_exists_is_left_as_it_is(store_url):
    story = Story(store_url)
    before = story.folder.read_bytes(Name.PLAN)
    with pytest.raises(RunRecordError, match="exists already") as caught:
        create_record(story.folder, example_recipe(), example_plan(), example_task(), NOW)
    assert "ldlm status story-1" in caught.value.fix
    assert story.folder.read_bytes(Name.PLAN) == before


def test_an_unknown_run_is_answered_with_those_of_a_similar_name(store_url):
    for run_id in ("smoke-1", "smoke-2", "base-1", "base-2"):
        Story(store_url, run_id)
    with pytest.raises(RunRecordError) as caught:
        load_record(open_store(store_url), "smoke-3")
    assert caught.value.fix == "take one of: smoke-2, smoke-1 (all: `ldlm status`)"


def test_an_unknown_run_in_an_empty_store_is_answered_with_a_first_step(store_url):
    with pytest.raises(RunRecordError) as caught:
        load_record(open_store(store_url), "smoke-3")
    assert caught.value.fix == "launch one: `ldlm launch smoke`"


def test_a_folder_without_a_recipe_is_no_run(store_url):
    store = open_store(store_url)
    store.put("lost+found/x", b"")
    assert list_run_ids(store) == []


@pytest.mark.parametrize(("name", "text", "says"), [
    ("plan.json", "{", "EOF while parsing"),
    ("plan.json", "[]", "cannot be understood"),
    ("plan.json", '{"usd": null, "offers": {}}', "tokens_per_step"),
    ("plan.json", '{"tokens_per_step": 1, "usd": {"low": "x"}, "offers": {}}', "usd.low"),
    ("attempts/1/heartbeat.json", "{", "Heartbeat"),
    ("attempts/1/attempt.json", "null", "Attempt"),
    ("outcome.json", '{"outcome": "nonsense"}', "RunOutcome"),
    ("bench/result.json", '{"step": 4}', "scores"),
    ("events/20261123T000000.000000Z-x.json", "", "Event"),
])
def test_a_damaged_object_is_named_with_its_place_and_a_way_out(store_url, name, text, says):
    story = preempted_once(store_url)
    story.folder.write_bytes(name, text.encode())
    with pytest.raises(StoreError, match=says) as caught:
        record_of(story)
    assert caught.value.place == f"{story.folder.url}/{name}"
    assert caught.value.fix.startswith("restore it from a backup, or delete")


def test_what_is_whole_of_a_record_is_read_and_what_goes_on_from_it_wants_all(store_url):
    story = preempted_once(store_url)
    story.folder.write_bytes("attempts/1/end.json", b'{"at": "2026')
    record = read_record(story.folder)
    assert record.attempts[0].end is None and record.attempts[0].heartbeat is not None
    assert [problem.place for problem in record.torn] == [f"{story.folder.url}/attempts/1/end.json"]
    with pytest.raises(StoreError, match="AttemptEnd"):
        record_of(story)


@pytest.mark.parametrize("wrong", [
    {"price_usd_per_hour": "-0.5"}, {"price_usd_per_hour": "1e30"}, {"price_usd_per_hour": "NaN"},
    {"billed_from": "2026-11-23T12:00:00"}, {"billed_from": "9999-12-31T23:59:59Z"},
    {"billed_from": "0001-01-01T00:00:00Z"}, {"lease_until": "9999-12-31T23:59:59Z"},
])
def test_an_attempt_of_no_price_or_no_moment_is_named_and_another_record_stands_in(store_url, wrong):
    story = preempted_once(store_url, "broken")
    preempted_once(store_url, "whole")
    name = "attempts/1/attempt.json"
    story.folder.write_bytes(name, json.dumps({**story.folder.read_json(name), **wrong}).encode())
    views, problems = view_all_runs(open_store(store_url))
    assert ([view.record.torn_names for view in views], problems) == ([[name], []], [])
    assert next(iter(wrong)) in views[0].record.torn[0].problem


def test_status_follows_a_run_from_launch_to_end(store_url):
    story = Story(store_url)
    assert status(story, RUNNING) == "starting"
    story.attempt(1, 0)
    assert status(story, RUNNING) == "starting"
    story.beat(1, 10, step=0, durable=0, setup=10)
    assert status(story, RUNNING) == "starting"
    story.beat(1, 20, step=5, durable=0, setup=10, train=10)
    assert status(story, RUNNING) == "running"
    story.end(1, 30, None, preempted=True)
    assert status(story, RUNNING) == "recovering"
    story.attempt(2, 40)
    story.beat(2, 50, step=0, durable=0, setup=10)
    assert status(story, RUNNING) == "recovering"
    story.beat(2, 60, step=9, durable=4, resumed=4, setup=10, train=10)
    assert status(story, RUNNING) == "running"
    assert status(story, EngineState(EnginePhase.STOPPING)) == "stopping"
    story.end(2, 70, 0)
    story.attempt(3, 70, Document.BENCH)
    assert status(story, RUNNING) == "benchmarking"
    story.end(3, 80, 0)
    story.outcome(Outcome.FINISHED, 80, 400)
    assert status(story, ENDED) == "ended"
    assert status(story, ELSEWHERE) == "ended"


def test_a_resumed_run_has_not_ended_although_its_old_outcome_stands(store_url):
    story = every_fate(store_url)
    assert record_of(story).has_ended
    story.folder.add_event("resumed", at(9000))
    assert not record_of(story).has_ended
    assert status(story, KILLED) == "unknown"


def test_an_attempt_after_one_that_never_trained_is_starting(store_url):
    story = Story(store_url)
    story.attempt(1, 0)
    story.beat(1, 5, step=0, durable=0, setup=5)
    story.end(1, 10, 143)
    assert status(story, RUNNING) == "starting"
    story.attempt(2, 20)
    assert status(story, RUNNING) == "starting"


@pytest.mark.parametrize(("outcome", "bench", "words", "failed"), [
    (Outcome.FINISHED, "lost", "trained; benchmark failed (why): ldlm bench story-1", True),
    (Outcome.FINISHED, "bad_config", "trained; benchmark failed (why): ldlm bench story-1", True),
    (Outcome.FINISHED, "stopped", "trained; benchmark stopped by you (why): ldlm bench story-1", False),
    (Outcome.FINISHED, "no_capacity", "trained; benchmark found no machine (why): ldlm bench story-1", False),
    (Outcome.NO_CAPACITY, "finished", "no machine to be had (all steps done): ldlm resume story-1, "
                                      "or elsewhere: ldlm resume story-1 --infra CLOUD", True),
    (Outcome.LIMIT, "lost", "stopped at its limit (all steps done); benchmark failed (why): "
                            "ldlm resume story-1", True),
    (Outcome.FINISHED, "finished", "finished (all steps done)", False),
    (Outcome.FINISHED, "of a later version", "finished (all steps done)", False),
])
def test_a_benchmark_without_a_result_is_told_beside_the_training(store_url, outcome, bench, words, failed):
    story = preempted_once(store_url)
    story.outcome(outcome, 700, 400, bench=bench, reason="why")
    record = record_of(story)
    assert (ending_words(record), record.has_failed) == (words, failed)
    story.folder.add_event("resumed", at(9000))
    assert record_of(story).bench_end is None


def test_while_an_attempt_resumes_the_steps_of_the_one_before_count(store_url):
    story = preempted_once(store_url)
    story.attempt(2, 600)
    story.beat(2, 610, step=0, durable=0, setup=10)
    assert record_of(story).training.heartbeat.durable_step == 100


def test_a_run_of_another_machine_is_judged_by_its_signs_of_life(store_url):
    story = preempted_once(store_url)
    story.attempt(2, 600)
    story.beat(2, 700, step=120, durable=100, resumed=100, setup=50, train=50)
    assert status(story, ELSEWHERE, at(700 + 60)) == "running"
    assert status(story, ELSEWHERE, at(700 + 3600)) == "unknown"


def test_a_lost_run_is_charged_to_its_last_sign_of_life_and_a_live_one_until_now(store_url):
    story = preempted_once(store_url)
    story.attempt(2, 600)
    assert look_at(record_of(story), KILLED, at(5000)).spent_usd * 1000 == 600
    story.beat(2, 700, step=120, durable=100, resumed=100)
    assert look_at(record_of(story), KILLED, at(5000)).spent_usd * 1000 == 700
    assert look_at(record_of(story), RUNNING, at(5000)).spent_usd * 1000 == 5000


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_words_with_its_reason(outcome):
    words = outcome_words(RunOutcome(outcome=outcome, at=NOON, step=1, reason="because"))
    assert words.endswith("(because)")
    failed = outcome in (Outcome.DIVERGED, Outcome.BAD_CONFIG, Outcome.LOST)
    assert words.startswith("failed") == failed
