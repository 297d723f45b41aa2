"""Plans as quotes: kept as files, found by their digests, carried out exactly, or said to be stale."""

import json
import os
import re
import stat
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cli_lab import FAKE_NODE, RECIPE, Checkout, Terminal, ldlm, refused
from launch_examples import NOW, example_plan, example_recipe
from run_stories import preempted_once

from launcher.commands import PlanOptions
from launcher.errors import UsageError
from launcher.proposal import Proposal
from launcher.quotes import Order, Quote, find, keep
from trainer.run_folder import RunFolder
from trainer.store import open_store

DIGEST = re.compile(r"^  holds       until 2\d{3}-\d\d-\d\d \d\d:\d\d UTC, as --plan ([0-9a-f]{12})$", re.M)
TRAINS = f"{FAKE_NODE} beat:400,400 exit:0"


@pytest.fixture
def home() -> Path:
    return Path(os.environ["LDLM_HOME"])


def quote(*changes: str, command: str = "launch", what: str = "example", **options: object) -> Quote:
    order = Order(command=command, what=what, options=PlanOptions(**options))
    return Quote.of(order, Proposal(example_recipe(*changes), example_plan("vast", *changes)), None)


def shown_digest(screen: str) -> str:
    found = DIGEST.search(screen)
    assert found, screen
    return found[1]


def test_a_quote_is_kept_for_its_owner_alone_and_comes_back_whole(home):
    kept = quote("train.steps=300", overrides=("train.steps=300",))
    keep(kept, NOW)
    (path,) = (home / "quotes").iterdir()
    assert path.stem == kept.digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for typed in (kept.digest, kept.short_digest, kept.digest[:8].upper()):
        assert find(typed, "launch", None).text == kept.text


def test_a_digest_covers_the_plan_the_recipe_the_task_the_words_and_the_commit():
    one = quote()
    others = [quote("train.steps=401"), quote("train.optimizer.learning_rate=0.01"), quote(what="other"),
              quote(max_cost="1"), one.model_copy(update={"commit": "c"}),
              one.model_copy(update={"task_digest": "0" * 64}),
              one.model_copy(update={"plan": one.plan.model_copy(update={"run_id": "example-2"})})]
    assert len({other.digest for other in [one, *others]}) == 8
    assert quote().digest == one.digest


def test_what_is_older_than_a_week_is_deleted_when_another_is_kept(home):
    keep(quote(), NOW)
    (old,) = (home / "quotes").iterdir()
    age = timedelta(days=6, hours=23)
    os.utime(old, times=(NOW.timestamp(), NOW.timestamp()))
    keep(quote("train.steps=401"), NOW + age)
    assert old.exists()
    keep(quote("train.steps=402"), NOW + age + timedelta(hours=2))
    assert not old.exists()


def said_of(typed: str, command: str = "launch", what: str | None = None) -> str:
    with pytest.raises(UsageError) as raised:
        find(typed, command, what)
    return f"{raised.value.place}: {raised.value.problem} | {raised.value.fix}"


@pytest.mark.parametrize(("typed", "says"), [
    ("latest", "--plan latest: is no digest of a plan"),
    ("abc", "--plan abc: is too short to be the digest of one plan: 3 digits | type at least its first 8"),
    ("0" * 64, f"--plan {'0' * 64}: no plan with this digest is kept here | ldlm plan RECIPE makes one"),
    ("0" * 65, "is no digest of a plan, which has 64"),
    ("../../../etc", "--plan ../../../etc: is no digest of a plan"),
])
def test_what_is_no_digest_of_a_kept_plan_is_told_so(typed, says):
    assert says in said_of(typed)


def test_two_plans_that_begin_alike_and_plans_of_another_command_are_told_apart(home):
    kept = quote(command="resume", what="run-1")
    keep(kept, NOW)
    (path,) = (home / "quotes").iterdir()
    assert said_of(kept.short_digest) == (
        f"--plan {kept.short_digest}: it is the plan of ldlm resume run-1 | "
        f"type ldlm resume run-1 --plan {kept.short_digest}")
    assert "it is the plan of ldlm resume run-1" in said_of(kept.digest, "resume", "run-2")
    assert find(kept.digest, "resume", "run-1").text == kept.text
    (path.parent / f"{kept.digest[:12]}{'0' * 52}.json").write_text("{}")
    assert said_of(kept.short_digest, "resume") == (
        f"--plan {kept.short_digest}: several plans begin like this | type more of it: " + " and ".join(
            sorted([kept.digest[:20], kept.digest[:12] + "0" * 8])))


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: "",
                                    lambda text: text.replace('"steps":400', '"steps":9')])
def test_a_file_that_is_torn_or_was_changed_is_not_the_plan_of_its_digest(home, damage):
    kept = quote()
    keep(kept, NOW)
    (path,) = (home / "quotes").iterdir()
    path.write_text(damage(kept.text))
    assert f"{path}: is torn, or was changed after it was shown" in said_of(kept.digest)


def test_a_new_plan_is_made_by_the_words_that_were_typed():
    kept = quote(infra="vast", max_cost="3", overrides=("train.steps=300", "train.seed=1"))
    assert kept.order.to_plan_anew == (
        "ldlm plan example --infra vast --max-cost 3 --set train.steps=300 --set train.seed=1")
    assert quote(command="resume", what="run-1").order.to_plan_anew == "ldlm resume run-1"


def test_launch_carries_out_exactly_the_plan_of_the_digest_and_only_once(tmp_path):
    checkout, store = Checkout(tmp_path, TRAINS), str(tmp_path / "store")
    planned = json.loads(checkout.ldlm("plan", "example", "--store", store, "--json").stdout)
    done = checkout.ldlm("launch", "--plan", planned["plan_digest"])
    assert done.returncode == 0, done.stderr
    folder = RunFolder(open_store(store), planned["run_id"])
    recorded = folder.read_json("plan.json")
    assert recorded == {name: planned[name] for name in recorded}
    (submitted,) = [event for event in folder.events() if event.kind == "submitted"]
    assert submitted.detail["task_digest"] == planned["task_digest"]
    again = refused(6, "launch", "--plan", planned["plan_digest"], cwd=checkout.folder)
    assert f"a run '{planned['run_id']}' exists already" in again


def test_launch_says_what_has_moved_and_starts_nothing(tmp_path):
    checkout, store = Checkout(tmp_path, TRAINS), str(tmp_path / "store")
    digest = shown_digest(checkout.ldlm("plan", "example", "--store", store).stdout)
    recipe = checkout.folder / "recipes" / "example.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("price_usd_per_hour: 0.50", "price_usd_per_hour: 0.75"))
    said = refused(4, "launch", "--plan", digest, cwd=checkout.folder)
    assert (f"--plan {digest}: this plan is stale: hardware.train.0.price_usd_per_hour was 0.5, and is 0.75; "
            "the price of 2 CPU cores here was $0.5/h, and is $0.75/h (+50%)") in said
    assert f"fix: a new one comes from: ldlm plan example --store {store}" in said
    recipe.write_text("name: [")
    assert "it could not be made now" in refused(4, "launch", "--plan", digest, cwd=checkout.folder)
    recipe.write_text(text)
    template = checkout.folder / "sky" / "train.yaml"
    template.write_text(template.read_text().replace("exit:0", "exit:78"))
    assert "its task would not be the same" in refused(4, "launch", "--plan", digest, cwd=checkout.folder)
    assert not Path(store).exists()


def test_a_digest_goes_with_no_option_that_would_change_its_plan(home):
    keep(quote(), NOW)
    said = refused(2, "launch", "--plan", quote().digest, "--max-cost", "5")
    assert "carries out a plan as it is" in said
    assert "name a recipe, or a plan: --plan DIGEST" in refused(2, "launch")
    expired = refused(4, "launch", "--plan", quote().short_digest)
    assert "this plan is stale: it held until 2026-11-23 12:15 UTC\n" in expired
    assert "ldlm plan example" in expired


def test_a_run_goes_on_by_the_digest_of_the_plan_that_its_resume_has_shown(tmp_path, home):
    checkout = Checkout(tmp_path, f"{FAKE_NODE} beat:400,400 exit:0")
    story = preempted_once(f"file://{home}/store")
    asked = checkout.ldlm("resume", "story-1")
    assert (asked.returncode, "nobody is here to answer" in asked.stderr) == (1, True)
    digest = shown_digest(asked.stdout)
    assert f"ldlm resume story-1 --plan {digest}" in refused(2, "launch", "--plan", digest)
    done = checkout.ldlm("resume", "story-1", "--plan", digest)
    assert done.returncode == 0, done.stderr
    assert [event.kind for event in story.folder.events() if event.kind == "resumed"] == ["resumed"]


def test_an_answer_that_comes_after_the_quote_has_expired_is_asked_for_again(tmp_path):
    checkout = Checkout(tmp_path, TRAINS)
    quotes = checkout.folder / "launcher" / "quotes.py"
    quotes.write_text(quotes.read_text().replace("timedelta(hours=1)", "timedelta(seconds=6)"))
    terminal = Terminal("launch", "example", "--store", str(tmp_path / "store"), cwd=checkout.folder)
    terminal.wait_for("Start it? [y/N]")
    first = shown_digest(terminal.plain())
    time.sleep(7)
    terminal.type("y\n")
    terminal.wait_for("the answer came too late for this plan: it held until")
    terminal.wait_for("Start it? [y/N]", times=2)
    assert shown_digest(terminal.plain().partition("the answer came too late")[2]) != first
    terminal.type("y\n")
    assert terminal.wait() == 0
    assert len(list((tmp_path / "store").iterdir())) == 1


def test_a_home_that_cannot_be_written_keeps_no_plan_and_shows_it_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    done = ldlm("plan", RECIPE, env={**os.environ, "LDLM_HOME": str(tmp_path / "file" / "home")})
    assert done.returncode == 0
    assert "this plan cannot be kept (Not a directory), so --plan will not find it" in done.stderr
