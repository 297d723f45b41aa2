"""What a store's earlier runs teach a plan, and what becomes of those that cannot be read."""

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from cli_lab import environment, ldlm
from launch_examples import NOW, RECIPE, example_plan, example_recipe

from launcher.commands import PlanOptions, propose
from launcher.history import Past, past_of
from launcher.quotes import Order, Quote
from launcher.render import Templates, render
from launcher.run_record import create_record
from trainer.contract import AwayError, Document
from trainer.run_folder import AttemptEnd, Heartbeat, Phases, RunFolder
from trainer.store import Store, local_store_url, open_store

LATER = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(local_store_url(tmp_path / "store"))


def add_run(store: Store, run_id: str, lived_h: float = 2.0) -> RunFolder:
    """One on Vast whose machine was taken back once, and which then finished elsewhere there."""
    recipe, plan = example_recipe(), example_plan("vast")
    folder = RunFolder(store, run_id)
    create_record(folder, recipe, plan, render(plan, recipe, Templates.load(), None), NOW)
    for number, began_h in enumerate((0.0, lived_h + 0.5), 1):
        folder.claim_attempt(Document.TRAIN, billed_from=NOW + timedelta(hours=began_h), host="",
                             price_usd_per_hour=Decimal("0.4"), offer=plan.offers[Document.TRAIN].label,
                             cloud="vast", region="us")
        folder.write(f"attempts/{number}/end.json", AttemptEnd(
            at=NOW + timedelta(hours=began_h + lived_h), exit_code=None if number == 1 else 0,
            preempted=number == 1, reason=""))
    return folder


def test_runs_of_a_store_tell_how_their_machines_lived(store):
    add_run(store, "a")
    past = past_of(store, LATER)
    ((run_id, place, seen),) = past.sightings
    assert (run_id, place.infra, place.gpu, place.spot) == ("a", "vast/us", "RTX5090", True)
    assert (seen.losses, seen.up_h, seen.returns, seen.down_h) == (1, 4.0, 1, 0.5)
    assert (past.speeds, past.warnings) == ([], [])


@pytest.mark.parametrize("torn", ["plan.json", "attempts/1/attempt.json", "attempts/2/end.json", "events"])
def test_a_run_that_is_torn_is_named_and_says_nothing_of_machines_and_the_others_do(store, tmp_path, torn):
    add_run(store, "a")
    add_run(store, "b")
    path = tmp_path / "store" / "b" / torn
    (next(path.iterdir()) if path.is_dir() else path).write_text('{"at": "no')
    past = past_of(store, LATER)
    assert [one.run_id for one in past.sightings] == ["a"]
    assert past.warnings == ["nothing but speeds is learned from b: torn, or not readable by this version"]


def beat(folder: RunFolder, number: int, steps: int, train_s: float) -> None:
    """What an attempt has trained."""
    folder.write(f"attempts/{number}/heartbeat.json", Heartbeat(
        at=NOW + timedelta(hours=1), step=steps, total_steps=400, resumed_from_step=0, durable_step=0,
        durable_train_s=0, durable_evaluate_s=0, phases=Phases(train_s=train_s), tokens_per_s=1,
        spent_usd=Decimal(0)))


@pytest.mark.parametrize(("torn", "steps_per_s"), [
    ("attempts/1/attempt.json", 3), ("attempts/1/end.json", 2.5), ("attempts/2/heartbeat.json", 2),
    ("events", 2.5), ("plan.json", None), ("recipe.json", None)])
def test_a_run_that_is_torn_still_tells_how_fast_it_trained(store, tmp_path, torn, steps_per_s):
    """100 steps at 2 a second, and then as many seconds at 3."""
    folder = add_run(store, "a")
    beat(folder, 1, 100, 50)
    beat(folder, 2, 150, 50)
    path = tmp_path / "store" / "a" / torn
    (next(path.iterdir()) if path.is_dir() else path).write_text('{"at": "no')
    past = past_of(store, LATER)
    each = example_recipe().train.tokens_per_step
    assert [one.tokens_per_s for one in past.speeds] == ([each * steps_per_s] if steps_per_s else [])
    assert past.sightings == [] and len(past.warnings) == 1


def test_a_run_on_gpus_tells_how_it_lay_on_them_so_that_other_hardware_is_scaled_from_it(store):
    folder = add_run(store, "a")
    beat(folder, 1, 100, 50)
    (speed,) = past_of(store, LATER).speeds
    config, each = example_recipe().train, example_recipe().train.tokens_per_step
    told = speed.to_scale
    assert (told.words, told.gpu, told.num_ranks, told.num_nodes, told.tokens_per_s) == (
        "run a", "RTX5090", 1, 1, 2 * each)
    assert told.config.token_encoder.placement == "gpu" and told.is_of(config)
    there, here = example_plan("gcp/us-east5", "train.global_batch_size=64", history=(speed,)), example_plan(
        history=(speed,))
    assert (there.speed_origin, there.speed_source) == ("scaled", "scaled from RTX5090: run a")
    assert here.speed_origin == "model"  # a CPU is not scaled from a GPU


def test_of_many_that_are_torn_the_newest_are_named(store, tmp_path):
    for number in range(5):
        add_run(store, f"r{number}")
        (tmp_path / "store" / f"r{number}" / "plan.json").write_text("")
    assert past_of(store, LATER).warnings == [
        "nothing but speeds is learned from r2, r3, r4 and 2 more: torn, or not readable by this version"]


def test_a_run_whose_launch_is_still_writing_is_passed_over(store, tmp_path):
    add_run(store, "a")
    (tmp_path / "store" / "a" / "plan.json").unlink()
    assert past_of(store, LATER) == Past([], [], [])


def test_of_a_store_that_goes_away_what_it_gave_before_counts(store, monkeypatch):
    def get(key: str) -> bytes:
        if key == "b/plan.json":
            raise AwayError("no answer", place=key)
        return whole(key)

    for run_id in ("a", "b", "c"):
        add_run(store, run_id)
    whole = store.get
    monkeypatch.setattr(store, "get", get)
    past = past_of(store, LATER)
    assert [one.run_id for one in past.sightings] == ["a"]
    assert past.warnings == ["nothing is learned from b and later runs: the store gave no answer"]


def test_a_plan_learns_from_its_store_and_its_digest_covers_what_it_has_learned(store, tmp_path):
    options = PlanOptions(store=str(tmp_path / "store"), infra="vast")
    for number in range(3):
        add_run(store, f"r{number}", lived_h=1.0)
    (tmp_path / "store" / "r2" / "plan.json").write_text("{")
    proposal = propose(str(RECIPE), options)
    plan = proposal.plan
    assert plan.availability_source == "2 of your runs, 4 h"
    assert plan.availability.hours_to_loss < 7
    assert plan.ranking[0].availability == plan.availability
    assert any(warning.startswith("nothing but speeds is learned from r2") for warning in plan.warnings)
    quote = Quote.of(Order(command="launch", what=str(RECIPE), options=options), proposal, None)
    said = json.loads(quote.text)["plan"]["offers"]["train"]["seen"]  # the text is what a digest is of
    assert said == [{"losses": 1, "up_h": 2.0, "returns": 1, "down_h": 0.5}] * 2


def test_a_screen_names_what_was_learned_and_what_was_not(store, tmp_path):
    for number in range(3):
        add_run(store, f"r{number}", lived_h=1.0)
    (tmp_path / "store" / "r2" / "plan.json").write_text("{")
    done = ldlm("plan", str(RECIPE), "--infra", "vast", "--store", str(tmp_path / "store"),
                env=environment(HOME=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert re.search(r" machines live ~[1-6]\.\d h \([\d.]+ - \d+\), the next comes after ~0\.\d+ h "
                     r"\([\d.]+ - [\d.]+\): 2 of your runs, 4 h ", shown)
    assert "! nothing but speeds is learned from r2: torn, or not readable by this version" in shown
