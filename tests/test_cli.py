"""Bad input, help and JSON of the command line: one clear message, the documented code, nothing started."""

import json
import os
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from cli_lab import (
    LDLM,
    RECIPE,
    ROOT,
    check_golden,
    environment,
    files_below,
    ldlm,
    refused,
    without_names,
    without_quotes,
)
from launch_examples import example_recipe
from run_stories import NOON, every_fate, preempted_once

from trainer.contract import Name, Outcome

COMMANDS = ["doctor", "init", "recipes", "plan", "launch", "status", "logs", "stop", "resume", "cost", "rm",
            "pull", "offers"]


@pytest.fixture
def home() -> Path:
    """The folder in which nothing may appear when a command is refused."""
    return Path(os.environ["LDLM_HOME"])


def test_help_shows_two_panels_and_the_exit_codes():
    check_golden("help.txt", ldlm("--help").stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_within_80_columns(command):
    done = ldlm(command, "--help")
    assert done.returncode == 0
    assert f"Usage: ldlm {command}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_no_command_at_all_shows_the_help():
    done = ldlm()
    assert (done.returncode, "Advanced:" in done.stdout + done.stderr) == (2, True)


@pytest.mark.parametrize(("args", "code", "place", "fix"), [
    (["plan", "exampel"], 3, "recipes/exampel.yaml", "the recipes are"),
    (["plan", "missing/x.yaml"], 3, "missing/x.yaml", "the recipes are"),
    (["plan", "recipes"], 3, "recipes/recipes.yaml", "the recipes are"),
    (["plan", RECIPE, "--set", "train.stepz=4"], 3, "train.stepz", "did you mean train.steps?"),
    (["plan", RECIPE, "--set", "train.optimizer.learning_rate=3e-4"], 3, "the text `3e-4`", "write 3.0e-4"),
    (["plan", RECIPE, "--set", "train.global_batch_size=7"], 3, "micro_batch_size 4 advance 8",
     "add --set train.global_batch_size=8"),
    (["plan", RECIPE, "--set", "train.steps=-1"], 3, "train.steps is -1", "more than 0"),
    (["plan", RECIPE, "--set", "train.steps=0"], 3, "train.steps is 0", "more than 0"),
    (["plan", RECIPE, "--set", f"train.steps={10**30}"], 3, "too large to plan", "lower train.steps"),
    (["plan", RECIPE, "--set", "train.data.source=/nowhere/x.txt"], 3, "/nowhere/x.txt", "python-docs"),
    (["plan", RECIPE, "--set", "nonsense"], 2, "--set nonsense", "--set train.steps=100"),
    (["plan", RECIPE, "--set", "=1"], 2, "--set =1", "--set train.steps=100"),
    (["plan", RECIPE, "--max-cost", "much"], 2, "--max-cost: 'much'", "--max-cost 12.5"),
    (["plan", RECIPE, "--max-cost", "-3"], 2, "--max-cost: '-3'", "above 0"),
    (["plan", RECIPE, "--max-cost", "nan"], 2, "--max-cost: 'nan'", "above 0"),
    (["plan", RECIPE, "--max-cost", "1e999999"], 2, "--max-cost: '1e999999'", "above 0"),
    (["plan", RECIPE, "--deadline", "soon"], 2, "--deadline: 'soon'", "--deadline 12.5"),
    (["plan", RECIPE, "--deadline", "0"], 2, "--deadline: '0'", "above 0"),
    (["plan", RECIPE, "--max-cost", "0.001"], 4, "--max-cost 0.001: this run", "add --max-cost 0."),
    (["plan", RECIPE, "--deadline", "0.001"], 4, "--deadline 0.001: to train would take", "add --deadline"),
    (["plan", RECIPE, "--infra", "k8s"], 4, "no hardware on k8s", "use --infra local (the recipe also has"),
    (["plan", RECIPE, "--infra", "mars"], 2, "--infra: 'mars' is no infrastructure", "use one of local"),
    (["plan", RECIPE, "--store", "ftp://x"], 6, "cannot open a store at 'ftp://x'", "s3://bucket/prefix"),
    (["launch", RECIPE, "--infra", "vast", "--infra=local", "--yes"], 2, "--infra: is there twice", "leave"),
    (["launch", RECIPE, "--infra", "vast", "--yes"], 5, "no Vast.ai credentials",
     "~/.config/vastai/vast_api_key"),
    (["launch", RECIPE, "--preempt-at", "noon"], 2, "--preempt-at: cannot preempt at 'noon'", "step:N or"),
    (["launch", RECIPE, "--preempt-at", "step:0"], 2, "--preempt-at", "step:N or"),
    (["launch", RECIPE, "--run-id", "Mine!"], 2, "--run-id: 'Mine!' is not a run id", "lower-case letters"),
    (["launch", RECIPE, "--yes", "--store", "/dev/null/x"], 6, "/dev/null/x", "check the folder"),
    (["launch", RECIPE, "--store", "/dev/null/x", "--run-id", "x"], 1, "nobody is here", "add --yes"),
    (["status", "nope"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["cost", "nope"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["stop", "nope"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["resume", "nope"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["rm", "nope", "--yes"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["pull", "nope", "--yes"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["pull", "nope", "--checkpoints", "two"], 2, "--checkpoints: 'two' is no choice", "newest, all, none"),
    (["logs", "nope"], 6, "no run 'nope'", "ldlm launch smoke"),
    (["status", "../x"], 2, "RUN: '../x' is not a run id", "lower-case letters"),
    (["logs", ".."], 2, "RUN: '..' is not a run id", "lower-case letters"),
    (["rm", ""], 2, "RUN: '' is not a run id", "lower-case letters"),
])
def test_bad_input_gets_one_message_with_place_and_fix_and_starts_nothing(home, args, code, place, fix):
    if args[0] == "launch" and "/dev/null/x" not in args:
        args = [*args, "--store", str(home / "store")]
    said = refused(code, *args)
    assert place in said
    assert fix in said.split("fix:", 1)[1]
    assert [name for name in without_quotes(home) if name != "store"] == []
    assert files_below(home / "store") == []


@pytest.mark.parametrize("args", [
    ["launch", RECIPE, "--run-id", ""], ["launch", RECIPE, "--infra", ""], ["launch", RECIPE, "--store", ""],
    ["plan", RECIPE, "--infra", ""], ["resume", "r1", "--store="], ["status", "--store", ""],
    ["rm", "r1", "--store", ""],
])
def test_an_empty_value_is_a_shell_variable_that_is_not_set_and_never_passed_over(home, args):
    said = refused(2, *args)
    option = next(arg.rstrip("=") for arg in args if arg.startswith("--"))
    assert f"error: {option}: is empty" in said
    assert files_below(home) == []


@pytest.mark.parametrize("args", [["bogus"], ["plan"], ["plan", RECIPE, "--set"], ["status", "--bogus"]])
def test_a_command_line_that_cannot_be_parsed_is_a_usage_error(args):
    done = ldlm(*args)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_terminal_and_without_yes_nothing_is_started(home):
    said = refused(1, "launch", RECIPE, "--store", str(home / "store"))
    assert "nobody is here to answer, so nothing was done" in said
    assert without_quotes(home) == []


def test_a_plan_writes_nothing_but_its_quote(home):
    assert ldlm("plan", RECIPE, "--store", str(home / "store")).returncode == 0
    assert without_quotes(home) == []


def test_a_home_that_cannot_be_written_is_told_before_the_store_holds_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    env = environment(LDLM_HOME=str(tmp_path / "file" / "home"))
    said = refused(5, "launch", RECIPE, "--yes", "--store", str(tmp_path / "store"), env=env)
    assert "set LDLM_HOME to another folder" in said
    assert files_below(tmp_path) == ["file"]
    assert "error: " in refused(1, "logs", "some-run", env=env)


def test_a_run_id_that_exists_is_refused_before_anybody_is_asked(home):
    story = preempted_once(f"file://{home}/store", "story-1")
    before = files_below(home)
    said = refused(6, "launch", RECIPE, "--run-id", "story-1", "--store", str(home / "store"))
    assert "a run 'story-1' exists already" in said
    assert "ldlm status story-1" in said
    assert files_below(home) == before
    assert story.folder.exists()


@pytest.mark.parametrize(("option", "text"), [("--max-cost", "x"), ("--deadline", "-1")])
def test_resume_checks_its_limits_as_launch_does(home, option, text):
    preempted_once(f"file://{home}/store")
    assert f"{option}: '{text}'" in refused(2, "resume", "story-1", option, text)


def test_advice_names_the_store_where_the_run_would_not_be_found_without_it(home):
    preempted_once(f"file://{home}/other store")
    said = "".join(ldlm("status", "story-1", "--store", str(home / "other store")).stdout.split())
    assert f"continueit:ldlmresumestory-1--storefile://{home}/other%20store" in said  # folded at 80 columns
    known = environment(LDLM_STORE=str(home / "other store"))
    assert ldlm("status", "story-1", env=known).stdout.rstrip().endswith("resume story-1")


def resumed_plan(*args: str) -> str:
    """The plan that a resume shows before it asks; nobody answers."""
    return ldlm("resume", "story-1", *args).stdout


def test_resume_plans_only_what_is_left_and_counts_what_is_spent(home):
    preempted_once(f"file://{home}/store")  # 600 s at $3.60 an hour; step 100 of 400 is durable
    words = " ".join(resumed_plan("--max-cost", "2").split())
    assert "so far already spent $0.6000, step 100 of 400 is durable" in words
    assert "left to do" in words
    said = refused(4, "resume", "story-1", "--yes", "--max-cost", "0.6")
    assert "error: --max-cost: this run has spent $0.6000, what is left would cost ~$0.0" in said
    assert ", and --max-cost is $0.6" in said
    assert float(said.split("fix: add --max-cost ")[1].split()[0]) > 0.6
    late = refused(4, "resume", "story-1", "--deadline", "0.001")
    assert re.search(r"fix: add --deadline 0\.\d+ \(--deadline 0\.\d+ for the p90\)$", late.strip())
    before = files_below(home)
    assert "--max-cost" in refused(4, "resume", "story-1", "--yes", "--max-cost", "0.03")
    assert files_below(home) == before


def test_when_only_the_benchmark_is_left_the_plan_is_the_benchmark(home):
    story = preempted_once(f"file://{home}/store")
    story.outcome(Outcome.FINISHED, 600, 400)
    shown = resumed_plan()
    assert "step 400 of 400 is durable" in shown
    assert "  benchmark  " in shown
    assert "  set-up" not in shown and "evaluating and saving" not in shown
    assert "training    done: no machine is taken for it" in shown and "  speed  " not in shown


def test_a_plain_resume_takes_the_limits_of_the_newest_one(home):
    story = preempted_once(f"file://{home}/store")
    assert "stops at    $1.00" in resumed_plan()
    for hour, cap in ((1, "7.5"), (2, "3.25")):
        story.folder.add_event("resumed", NOON + timedelta(hours=hour),
                               limits={"max_cost_usd": cap, "deadline_hours": None})
    assert "stops at    $3.25" in resumed_plan()
    assert "stops at    $9.00" in resumed_plan("--max-cost", "9")
    story.folder.add_event("resumed", NOON + timedelta(hours=3), limits={"max_cost_usd": "much"})
    assert "its limits are not of this version" in refused(6, "resume", "story-1")


def test_a_run_that_has_finished_cannot_be_resumed(home):
    every_fate(f"file://{home}/store")
    assert "fix: see what it cost: ldlm cost story-1" in refused(6, "resume", "story-1", "--yes")


@pytest.mark.parametrize("command", ["status", "cost"])
def test_a_damaged_plan_is_named_and_the_rest_of_the_list_still_shown(home, command):
    preempted_once(f"file://{home}/store", "whole-1")
    preempted_once(f"file://{home}/store", "torn-1").folder.write_bytes("plan.json", b"{")
    assert all(words in ldlm(command, "torn-1").stdout for words in ("plan.json cannot be", "$0.6000"))
    assert "torn-1/plan.json: cannot be understood" in refused(6, "resume", "torn-1", "--yes")
    listed = ldlm("status")
    assert listed.returncode == 0 and "whole-1" in listed.stdout and "torn-1" in listed.stdout
    assert listed.stderr == "damaged: plan.json of torn-1 cannot be read: torn-1 is shown without it\n"


def test_a_damaged_recipe_stops_a_resume_and_a_damaged_run_can_be_deleted(home):
    preempted_once(f"file://{home}/store").folder.write_bytes("recipe.json", b"{}")
    assert "is not a recipe of this version" in refused(6, "resume", "story-1", "--yes")
    assert "nobody is here" in refused(1, "rm", "story-1")
    assert ldlm("rm", "story-1", "--all", "--yes").returncode == 0
    assert "no run 'story-1'" in refused(6, "status", "story-1")


def test_a_plan_for_people_says_what_would_start_it():
    words = ["--set", "train.steps=300", "--store", "/tmp/ldlm-store"]
    done = ldlm("plan", RECIPE, *words, env=environment(PATH="/nowhere"))
    assert (done.returncode, done.stderr) == (0, "")
    screen = without_names(done.stdout, (RECIPE, "RECIPE.yaml"))
    assert max(map(len, screen.splitlines())) <= 80
    check_golden("screen-plan.txt", screen)


def keys(value: object) -> object:
    """The shape of a JSON value: keys of objects, the first element of lists."""
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return type(value).__name__


def test_json_is_all_that_stands_on_stdout_and_its_keys_stay(home):
    every_fate(f"file://{home}/store")
    shapes = {}
    commands = {"recipes": ["recipes"], "plan": ["plan", RECIPE, "--store", str(home / "store")],
                "status": ["status", "story-1"], "runs": ["status"], "cost": ["cost", "story-1"]}
    for name, args in commands.items():
        done = ldlm(*args, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        shapes[name] = keys(json.loads(done.stdout, parse_constant=lambda word: pytest.fail(word)))
    check_golden("json-keys.json", json.dumps(shapes, indent=1) + "\n")


def test_json_has_no_nan(home):
    story = preempted_once(f"file://{home}/store")
    beat = story.folder.attempts()[0].heartbeat
    broken = beat.model_copy(update={"metrics": {"loss": float("nan")}})
    story.folder.write("attempts/1/heartbeat.json", broken)
    said = ldlm("status", "story-1", "--json").stdout
    assert json.loads(said, parse_constant=lambda word: pytest.fail(word))["metrics"] == {"loss": None}


def test_a_reader_that_has_had_enough_is_no_error():
    command = f"{subprocess.list2cmdline(LDLM)} plan {RECIPE} --json | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True,
                          text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


@pytest.mark.parametrize(("name", "gpu"), [("home-5090", "RTX5090:1"), ("home-2gpu", "RTX4090:2"),
                                           ("home-3090", "RTX3090:1")])
@pytest.mark.parametrize("infra", [[], ["--infra", "local"]])
def test_a_home_recipe_is_planned_anywhere_and_launched_only_where_its_card_is(home, name, gpu, infra):
    planned = ldlm("plan", name, *infra)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert f"a launch would be refused now:\n  - recipes/{name}.yaml:" in planned.stdout
    card = gpu.partition(":")[0]
    assert f"! this machine has no {card} (nor any other GPU); this plan is for a machine" in planned.stdout
    command = " ".join(["ldlm launch", name, *infra])
    assert planned.stdout.endswith(f"on a machine with {gpu} this would:\n  {command}\n")
    said = refused(4, "launch", name, *infra, "--yes")
    assert f"this machine has no {card}" in said
    assert "add --dry-run to print its task" in said.split("fix:")[1]
    printed = ldlm("launch", name, *infra, "--dry-run")
    assert printed.returncode == 0
    assert f"this machine has no {card}" in printed.stderr.split("a launch would be refused now:\n")[1]
    assert f"LDLM_GPU: {gpu}" in printed.stdout
    assert without_quotes(home) == []


NOTHING_DONE = "dry run: nothing was rented, started or written\n"


def test_a_dry_run_prints_the_task_alone_and_tells_the_plan_beside_it(home):
    done = ldlm("launch", RECIPE, "--infra", "vast", "--store", f"file://{home}/store", "--dry-run")
    assert done.returncode == 0
    header, train, bench = yaml.safe_load_all(done.stdout)
    assert (header["name"], train["name"], bench["name"]) == (train["envs"]["LDLM_RUN_ID"], "train", "bench")
    assert done.stderr.startswith("Plan for example\n")
    assert f"  run         {header['name']}\n" in done.stderr
    reasons = " ".join(done.stderr.split("a launch would be refused now:\n")[1].split())
    assert ("- train and bench: envs.LDLM_STORE: a file store on a rented machine is lost with it "
            "fix: set store to object storage: s3://, gs:// or az://") in reasons
    assert done.stderr.endswith(NOTHING_DONE)
    assert files_below(home) == []


@pytest.mark.parametrize("cloud", ["azure", "gcp"])
def test_a_task_without_a_known_price_is_printed_and_not_launched(home, cloud):
    args = ("launch", "qwen3.6-35b-a3b", "--infra", cloud, "--store", "s3://bucket/ldlm")
    done = ldlm(*args, "--dry-run")
    assert done.returncode == 0
    assert "the price is not known, so the run cannot stop itself at its cap" in " ".join(done.stderr.split())
    assert done.stderr.endswith(NOTHING_DONE)
    assert len(list(yaml.safe_load_all(done.stdout))) == 3
    refused(5, *args, "--yes")
    assert files_below(home) == []


def test_a_dry_run_of_what_could_start_says_only_that_it_has_not(home):
    done = ldlm("launch", "smoke", "--dry-run")
    assert done.returncode == 0
    assert "would be refused" not in done.stderr
    assert done.stderr.endswith(NOTHING_DONE)
    assert files_below(home) == []


def test_who_has_another_card_is_told_how_to_take_it(home, tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564, 570.86'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = environment(PATH=f"{tmp_path}:/usr/bin:/bin")
    said = refused(4, "launch", "home-3090", "--yes", env=env)
    assert "this machine has no RTX3090 (it has RTX4090)" in said
    assert "fix: add --set hardware.train.0.gpu=RTX4090:1 to take what is here" in said
    done = ldlm("plan", "home-3090", "--set", "hardware.train.0.gpu=RTX4090:1", env=env)
    assert "RTX4090:1 here" in done.stdout
    assert "to take what is here" not in refused(4, "launch", "home-5090", "--yes", env=env)  # too small


@pytest.mark.parametrize("args", [
    ["paper-gpt2"], ["qwen3.6-27b", "--infra", "gcp"], ["smoke", "--infra", "vast", "--store", "s3://b/p"]])
def test_the_last_line_of_a_plan_for_a_cloud_can_be_typed(args):
    done = ldlm("plan", *args)
    lines = done.stdout.splitlines()
    command = lines[-1].split()
    assert command == ["ldlm", "launch", *args, "--dry-run"]
    assert "nothing was started, and a launch would be refused now:\n  - " in done.stdout
    printed = ldlm(*command[1:])
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("name: ")


def test_a_resume_looks_at_text_and_encoder_again_before_anybody_is_asked(home, tmp_path):
    story = preempted_once(f"file://{home}/store")
    text = tmp_path / "text.txt"
    text.write_text("some text\n\n" * 1000)
    train = example_recipe(f"train.data.source={text}").train
    story.folder.write(Name.RECIPE, example_recipe().model_copy(update={"train": train}))
    assert "nobody is here" in refused(1, "resume", "story-1", "--max-cost", "9")
    text.unlink()
    said = refused(3, "resume", "story-1", "--max-cost", "9")
    assert f"train.data.source names {text}: there is no {text}" in said


def test_an_encoder_that_is_not_known_gives_lower_bounds_and_says_so_first():
    args = ["plan", "paper-gpt2", "--set", "train.token_encoder.name=gpt-neo/foo"]
    shown = ldlm(*args)
    assert shown.returncode == 0
    estimate = shown.stdout.split("estimate")[1]
    assert "  training (no encoder) " in estimate
    assert re.search(r"total, at least +> [\d.]+ +> \$[\d.]+\n", estimate)
    assert estimate.split("! ")[1].startswith("the encoder gpt-neo/foo is not known here")
    told = json.loads(ldlm(*args, "--json").stdout)
    assert (told["without_encoder"], told["sizes"]) == (True, None)
    said = refused(3, "plan", "home-5090", "--set", "train.token_encoder.name=/nope")
    assert "there is no /nope/config.json" in said


def test_a_terminal_without_unicode_gets_the_plan_too():
    done = ldlm("plan", RECIPE, "--store", "/tmp/ldlm-store", env=environment(PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
