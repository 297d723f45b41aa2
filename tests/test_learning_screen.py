"""What `ldlm status` says of a run's learning, and from which parts of its record."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_lab import FAKE_NODE, Checkout, Terminal, check_golden, ldlm, refused, without_names
from launch_examples import example_recipe
from run_stories import Story
from test_learning import SCORES

from launcher.learning import learned
from launcher.run_record import load_record
from trainer.contract import Name
from trainer.learning import State

COLLAPSED = {"latent_variance": 0.08, "latent_rank": 9.0, "diffusion_loss": 0.02,
             "diffusion_loss_trivial": 0.08, "encoder_grad_ratio": 1.2}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The default store, under a name short enough that no screen folds it."""
    with tempfile.TemporaryDirectory(prefix="ldlm-", dir="/tmp") as home:
        monkeypatch.setenv("LDLM_HOME", home)
        yield Path(home) / "store"


def evaluate(story: Story, attempt: int, step: int, **scores: float) -> None:
    """An evaluation of one attempt, healthy but for some scores."""
    kept = {"step": step, "scores": SCORES | scores, "reconstructions": [["a", "b"]],
            "samples": [f"what it wrote at step {step} " * 4, "two\nlines"]}
    story.folder.write_bytes(f"attempts/{attempt}/evaluations/{step:08d}.json", json.dumps(kept).encode())


def begun(store: Path, *changes: str) -> Story:
    """A run at step 380 of 400, 300 of them durable, of a recipe that can be judged."""
    story = Story(f"file://{store}")
    story.folder.write(Name.RECIPE, example_recipe("train.optimizer.warmup_steps=20",
                                                   "train.evaluate_every_steps=100", *changes))
    story.attempt(1, 0)
    story.beat(1, 590, step=380, durable=300, train=500, durable_train=400)
    story.folder.write_bytes("attempts/1/metrics/000000.jsonl",
                             b'{"step": 0, "hidden/clipped": 0.0}\n{"step": 10, "loss/token": 9.0}\n')
    return story


def verdict(story: Story) -> tuple[State, int]:
    found = learned(load_record(story.folder.store, story.folder.run_id))
    assert found is not None
    return found.learning.state, found.learning.step


def test_status_shows_verdict_reasons_settings_and_what_the_run_writes(store: Path) -> None:
    story = begun(store, "train.diffusion.encoder_warmup_steps=100")
    evaluate(story, 1, 200, latent_variance=0.78)
    evaluate(story, 1, 300, **COLLAPSED)
    done = ldlm("status", "story-1")
    assert done.returncode == 0, done.stderr
    shown = without_names(done.stdout, (f"file://{store}", "STORE"))
    assert max(map(len, shown.splitlines())) <= 80
    check_golden("screen-status-collapsed.txt", shown)
    terminal = Terminal("status", "story-1")
    assert terminal.wait() == 0
    assert without_names(terminal.plain(), (f"file://{store}", "STORE")) == shown


def test_programs_get_the_verdict_as_a_word_with_its_reasons(store: Path) -> None:
    story = begun(store)
    said: dict[str, Any] = json.loads(ldlm("status", "story-1", "--json").stdout)["learning"]
    assert said["state"] == "too early" and said["samples"] == []
    assert said["reasons"] == [{"says": "step 380 of 400; it is judged by the evaluation at step 400",
                                "change": None}]
    evaluate(story, 1, 300)
    said = json.loads(ldlm("status", "story-1", "--json").stdout)["learning"]
    assert (said["state"], said["step"], len(said["samples"])) == ("learning", 300, 2)
    assert said["reasons"][0]["says"].startswith("96.0% of held-out tokens come back")


def test_before_it_trains_there_is_nothing_to_judge(store: Path) -> None:
    Story(f"file://{store}")
    assert json.loads(ldlm("status", "story-1", "--json").stdout)["learning"] is None
    assert "Verdict" not in ldlm("status", "story-1").stdout


def test_an_evaluation_that_a_resume_has_made_void_does_not_count(store: Path) -> None:
    story = begun(store)
    evaluate(story, 1, 200)
    evaluate(story, 1, 300, **COLLAPSED)
    assert verdict(story) == (State.COLLAPSED, 300)
    story.attempt(2, 600)
    story.beat(2, 610, step=0, durable=0)  # it is loading: what the first attempt left is still the newest
    assert verdict(story) == (State.COLLAPSED, 300)
    story.beat(2, 700, step=220, durable=200, resumed=200)
    assert verdict(story) == (State.LEARNING, 200)
    evaluate(story, 2, 300)
    assert verdict(story) == (State.LEARNING, 300)


def test_first_losses_and_the_newest_are_read_too(store: Path) -> None:
    story = begun(store)
    evaluate(story, 1, 300, token_loss=8.9, reconstruction_accuracy=0.03, reconstruction_accuracy_noisy=0.03)
    assert verdict(story) == (State.STUCK, 300)
    beat = story.folder.attempts()[0].heartbeat
    assert beat is not None
    broken = beat.model_copy(update={"metrics": {"loss/hidden": float("nan")}})
    story.folder.write("attempts/1/heartbeat.json", broken)
    assert verdict(story) == (State.STUCK, 380)


def test_a_damaged_evaluation_is_named(store: Path) -> None:
    story = begun(store)
    story.folder.write_bytes("attempts/1/evaluations/00000300.json", b"{")
    said = refused(6, "status", "story-1")
    assert "attempts/1/evaluations/00000300.json: is no evaluation" in said


def test_a_recipe_of_another_version_only_costs_the_verdict(store: Path) -> None:
    story = begun(store)
    story.folder.write_bytes(Name.RECIPE, b'{"name": "x", "train": {"new": 1}}')
    done = ldlm("status", "story-1")
    assert done.returncode == 0 and "Verdict" not in done.stdout


def test_a_launch_that_was_watched_ends_with_the_verdict(tmp_path: Path, store: Path) -> None:
    done = Checkout(tmp_path, f"{FAKE_NODE} beat:400,400 exit:0").ldlm(
        "launch", "example", "--run-id", "r1", "--yes", "--store", str(store))
    assert done.returncode == 0, done.stderr
    verdict_at, bill_at = done.stdout.index("Verdict at step 400: too early"), done.stdout.index("Cost of r1")
    assert verdict_at < bill_at
    assert "a run of 400 steps is too short to judge: 10,000 are needed" in " ".join(done.stdout.split())
