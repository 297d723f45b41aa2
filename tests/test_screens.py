"""What a run looks like, on a pipe and on a terminal of 80 columns: whole screens beside their goldens."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_lab import RECIPE, Terminal, check_golden, environment, ldlm, without_names
from run_stories import BENCH, RUNNING, Story, every_fate, preempted_once

from launcher.engine_folder import EngineFolder, engine_home
from launcher.recipe import list_recipes
from trainer.contract import Name, Outcome
from trainer.run_folder import IdleGpu


@pytest.fixture
def store(monkeypatch) -> Iterator[Path]:
    """The default store, under a name short enough that no screen folds it."""
    with tempfile.TemporaryDirectory(prefix="ldlm-", dir="/tmp") as home:
        monkeypatch.setenv("LDLM_HOME", home)
        monkeypatch.setenv("HOME", home)  # whose catalogs of SkyPilot would price its plans
        yield Path(home) / "store"


def screen(store: Path, *args: str) -> str:
    done = ldlm(*args)
    assert done.returncode == 0, done.stderr
    return without_names(done.stdout, (f"file://{store}", "STORE"))


def test_the_bill_of_every_fate(store):
    every_fate(f"file://{store}")
    check_golden("screen-cost.txt", screen(store, "cost", "story-1"))


@pytest.mark.parametrize(("outcome", "compares"), [
    (Outcome.FINISHED, True), (Outcome.STOPPED, False), (Outcome.LIMIT, False), (Outcome.LOST, False)])
def test_only_a_run_that_finished_is_compared_with_its_planned_range(store, outcome, compares):
    preempted_once(f"file://{store}").outcome(outcome, 600, 100)  # $0.60; planned were 1 to 4
    said = screen(store, "cost", "story-1")
    assert ("$0.6000, below the planned range" in said) is compares


def test_a_run_that_has_ended_shows_its_outcome_and_what_it_learned(store):
    every_fate(f"file://{store}")
    check_golden("screen-status-ended.txt", screen(store, "status", "story-1"))


@pytest.mark.parametrize("score", [{"diffusion_loss_trivial": None}, {}])
def test_a_score_that_was_no_number_leaves_the_others_readable(store, score):
    story = every_fate(f"file://{store}")
    kept = {name: value for name, value in BENCH["scores"].items() if name != "diffusion_loss_trivial"}
    story.folder.write_bytes(Name.BENCH, json.dumps(BENCH | {"scores": kept | score}).encode())
    said = screen(store, "status", "story-1")
    assert "50.0% of tokens" in said and "L_diff 0.750, of a trivial predictor (no number)" in said


def test_a_run_that_nobody_supervises_says_so_and_names_resume(store):
    every = preempted_once(f"file://{store}")
    every.attempt(2, 600)
    check_golden("screen-status-lost.txt", screen(store, "status", "story-1"))


def test_a_launch_that_was_interrupted_left_a_run_that_never_started(store):
    Story(f"file://{store}")
    said = screen(store, "status", "story-1")
    assert "it was recorded and never started; continue it: ldlm resume story-1" in " ".join(said.split())


def test_the_list_of_runs(store):
    preempted_once(f"file://{store}", "lost-1")
    every_fate(f"file://{store}", "ended-1")
    Story(f"file://{store}", "recorded-1")
    check_golden("screen-runs.txt", screen(store, "status"))


def test_an_empty_store_says_what_to_type(store):
    assert screen(store, "status") == "no runs in STORE yet; start one: ldlm launch smoke\n"


def test_a_run_that_is_starting_can_be_looked_at(store):
    Story(f"file://{store}")
    folder = EngineFolder(engine_home() / "story-1")
    folder.path.mkdir(parents=True)
    lock = folder.take_lock()
    try:
        folder.write_state(RUNNING)
        check_golden("screen-status-starting.txt", screen(store, "status", "story-1"))
        check_golden("screen-cost-starting.txt", screen(store, "cost", "story-1"))
        assert screen(store, "logs", "story-1") == ""
    finally:
        os.close(lock)


def test_a_gpu_that_does_nothing_is_named_while_the_run_is_running(store):
    story = preempted_once(f"file://{store}")
    story.attempt(2, 600)
    story.beat(2, 900, step=180, durable=170, resumed=100, setup=50, train=230)
    beat = story.folder.attempt(2).heartbeat
    idle = tuple(IdleGpu(number=number, name="NVIDIA H100 80GB HBM3", idle_s=idle_s)
                 for number, idle_s in ((1, 130), (3, 720)))
    story.folder.write("attempts/2/heartbeat.json", beat.model_copy(update={"idle_gpus": idle}))
    folder = EngineFolder(engine_home() / "story-1")
    folder.path.mkdir(parents=True)
    lock = folder.take_lock()
    try:
        folder.write_state(RUNNING)
        said = screen(store, "status", "story-1")
    finally:
        os.close(lock)
    assert "  idle       GPU 3 for 12 min, GPU 1 for 2 min: does nothing, and is paid for\n" in said
    assert json.loads(screen(store, "status", "story-1", "--json"))["idle_gpus"][1] == {
        "number": 3, "name": "NVIDIA H100 80GB HBM3", "idle_s": 720.0}


@pytest.mark.parametrize("args", [["cost", "story-1"], ["status", "story-1"], ["status"],
                                  ["plan", RECIPE, "--store", "/tmp/ldlm-store"]])
def test_on_a_terminal_of_80_columns_no_line_is_broken(store, args):
    every_fate(f"file://{store}")
    terminal = Terminal(*args)
    assert terminal.wait() == 0
    assert "\x1b[" in terminal.text
    piped = screen(store, *args).splitlines()
    shown = without_names(terminal.plain(), (f"file://{store}", "STORE")).splitlines()
    assert shown == piped
    assert max(len(line) for line in shown if not line.startswith("  ldlm launch ")) <= 80


def test_recipes_and_their_plans_keep_to_80_columns(store):
    assert max(len(recipe.summary) for recipe in list_recipes()) <= 80
    summary = "summary=" + "words that go on " * 6
    for args in (["recipes"], ["plan", "home-2gpu", "--set", summary], ["plan", "qwen3.6-27b"],
                 ["plan", "seed-27b", "--infra", "gcp"]):
        lines = screen(store, *args).splitlines()
        assert max(len(line) for line in lines if not line.startswith("  ldlm launch ")) <= 80, args


def test_an_error_is_folded_at_words_and_what_is_to_be_typed_is_left_whole(store):
    path = "/tmp/long-name-of-a-folder/text.txt"
    folded = Terminal("plan", "smoke", "--set", f"train.data.source={path}")
    assert folded.wait() == 3
    first, *others = folded.plain().splitlines()
    assert first.startswith("error: --set train.data.source=")
    assert all(line.startswith("       ") for line in others[:-1]) and len(others) > 2
    assert max(map(len, [first, *others])) <= 80
    whole = Terminal("plan", "qwen3.6-27b", "--max-cost", "1", "--deadline", "0.5",
                     "--set", "train.global_batch_size=1001")
    assert whole.wait() == 3
    fix = whole.plain().splitlines()[-1]
    assert len(fix) > 80
    assert fix.startswith("  fix: add --set train.global_batch_size=")


@pytest.mark.parametrize(("golden", "infra", "encoder"), [
    ("screen-plan-gpu.txt", "vast", "{}"),
    ("screen-plan-next-gpu.txt", "slurm", "{placement: next_gpu, weights: fp8}"),
    ("screen-plan-sharded.txt", "slurm", "{placement: sharded}")])
def test_a_plan_for_gpus_shows_what_each_holds(store, golden, infra, encoder):
    # Of a share that nobody has timed, so that no new figure in recipes/measured changes this screen.
    train = ("train={profile: qwen3.6-27b, steps: 1, data: {source: 'shards:x'}, token_loss_fraction: 0.3, "
             f"checkpoint: {{every_steps: 1}}, token_encoder: {encoder}}}")
    said = screen(store, "plan", RECIPE, "--infra", infra, "--max-cost", "3",
                  "--set", train, "--set", "store=", "--set",
                  "hardware.train.1={infra: vast, gpu: 'H100:1', bid_usd_per_hour: 1.2}")
    shown = said.replace(RECIPE, "RECIPE.yaml").split("nothing was started")[0]
    assert max(map(len, shown.splitlines())) <= 80
    check_golden(golden, shown)


def test_a_plan_without_a_store_says_that_a_launch_needs_one(store):
    done = ldlm("plan", RECIPE, "--infra", "vast", "--set", "store=")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  store       not set: a launch needs --store\n" in done.stdout
    assert json.loads(ldlm("plan", RECIPE, "--infra", "vast", "--set", "store=", "--json").stdout
                      )["task_digest"] is None


def test_no_color_means_no_colour(store):
    every_fate(f"file://{store}")
    terminal = Terminal("cost", "story-1", env=environment(NO_COLOR="1"))
    assert terminal.wait() == 0
    assert "\x1b[3" not in terminal.text


@pytest.mark.parametrize(("outcome", "words"), [
    (Outcome.LOST, "failed: crashed"), (Outcome.DIVERGED, "failed: diverged"),
    (Outcome.BAD_CONFIG, "failed: bad recipe"), (Outcome.STOPPED, "stopped")])
def test_the_list_of_runs_says_in_words_how_one_failed(store, outcome, words):
    preempted_once(f"file://{store}").outcome(outcome, 600, 100)
    (line,) = [line for line in screen(store, "status").splitlines() if "story-1" in line]
    assert f"  {words}  " in line
