"""A canary from the command line: when it loses its machine, who takes it, what it prints and leaves."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from canary_examples import RECIPE, at, good, plan_on
from cli_lab import check_golden, ldlm, refused
from run_stories import Story

from launcher import canary
from launcher.canary import own_preemption, taker
from launcher.canary_claims import judge
from launcher.canary_file import as_text, contents, secrets_of, without_secrets
from launcher.errors import EngineError
from launcher.proposal import Proposal
from launcher.recipe import load_recipe
from launcher.reconcile import Charge, Charges
from launcher.run_record import load_record
from trainer.contract import Name, attempt_file

STORED_KEY, OWN_KEY = "wJalrXUtnFEMI/K7MDENG", "hf_abcdefghijklm"


def test_only_a_recipe_that_says_so_loses_its_machine_half_way_between_two_checkpoints() -> None:
    assert str(own_preemption(RECIPE)) == "step:350"
    assert own_preemption(load_recipe("smoke")) is None
    assert own_preemption(load_recipe("canary", ["canary=false"])) is None
    short = load_recipe("canary", ["train.steps=2", "train.checkpoint.every_steps=1"])
    assert str(own_preemption(short)) == "step:1"


class Provider:
    """In place of SkyPilot: it is asked for machines, and may not answer."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.problem = ""

    def take_machines(self, run_id: str) -> None:
        if self.problem:
            raise EngineError(self.problem)
        self.taken.append(run_id)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A canary that trains on Vast, and what the launch that watches it does at each look."""
    url, provider, said = f"file://{tmp_path}/store", Provider(), []
    story = Story(url, "canary-1")
    monkeypatch.setattr(canary, "sky_engine", lambda store: provider)
    proposal = Proposal(RECIPE.model_copy(update={"store": url}), plan_on("vast"))
    take = taker(proposal, said.append)
    return SimpleNamespace(story=story, provider=provider, said=said, proposal=proposal,
                           look=lambda: take(load_record(story.folder.store, "canary-1")))


def test_its_machine_is_taken_once_and_not_before_there_is_something_to_resume_from(watched) -> None:
    watched.look()
    watched.story.attempt(1, 0)
    for step, durable in ((349, 300), (360, 0)):
        watched.story.beat(1, 10, step=step, durable=durable, train=5)
        watched.look()
    assert watched.provider.taken == []
    watched.story.beat(1, 20, step=351, durable=300, train=5)
    watched.look()
    watched.look()
    assert watched.provider.taken == ["canary-1"]
    assert watched.said == ["took the machine away, as a cloud does: nothing on it was told"]
    (told,) = [event for event in load_record(watched.story.folder.store, "canary-1").events
               if event.kind == "taken_on_purpose"]
    assert told.detail == {"attempt": 1}


def test_a_provider_that_does_not_answer_is_asked_again_and_named_once(watched) -> None:
    watched.story.attempt(1, 0)
    watched.story.beat(1, 20, step=351, durable=300, train=5)
    watched.provider.problem = "SkyPilot's API server does not answer"
    watched.look()
    watched.look()
    watched.provider.problem = ""
    watched.look()
    assert watched.provider.taken == ["canary-1"]
    assert watched.said == [
        "the machine could not be taken away, trying again: SkyPilot's API server does not answer",
        "took the machine away, as a cloud does: nothing on it was told"]


def test_who_lost_its_machine_to_the_market_before_is_left_alone(watched) -> None:
    watched.story.attempt(1, 0)
    watched.story.beat(1, 20, step=351, durable=300, train=5)
    watched.story.end(1, 21, None, preempted=True)
    watched.story.attempt(2, 30)
    watched.story.beat(2, 40, step=400, durable=300, resumed=300, train=5)
    watched.look()
    assert watched.provider.taken == []


def test_a_canary_that_nobody_watches_is_refused(tmp_path: Path) -> None:
    said = refused(2, "launch", "canary", "--infra", "local", "--store", f"file://{tmp_path}/store", "--yes",
                   "--detach")
    assert "--detach: a canary is watched to its end" in said and "leave --detach out" in said
    assert not (tmp_path / "store").exists()


# -- what it prints and leaves ------------------------------------------------------------------


def kept(tmp_path: Path, *, is_canary: bool = True, step: int = 600) -> str:
    """The example's record in a store, as a run on this machine. Returns the store's URL."""
    url, example = f"file://{tmp_path}/store", good().record
    folder = Story(url, "canary-1").folder
    folder.write(Name.RECIPE, RECIPE.model_copy(update={"canary": is_canary}))
    folder.write(Name.PLAN, plan_on("local"))
    folder.write_bytes(Name.TASK, b"name: canary-1\n")
    for files in example.attempts:
        folder.write(attempt_file(files.attempt.number, "attempt.json"), files.attempt)
        folder.write(attempt_file(files.attempt.number, "end.json"), files.end)
        if files.heartbeat:
            folder.write(attempt_file(files.attempt.number, "heartbeat.json"), files.heartbeat)
    for number, rows in good().losses.items():
        lines = [{"step": at_step, "loss/token": loss, "time": 0.0} for at_step, loss in rows.items()]
        folder.write_bytes(attempt_file(number, "metrics/000000.jsonl"),
                           "".join(json.dumps(line) + "\n" for line in lines).encode())
    folder.write_bytes(Name.BENCH, json.dumps(example.bench).encode())
    folder.write(Name.OUTCOME, example.outcome.model_copy(update={"step": step}))
    folder.add_event("ended", at(1560))
    return url


def test_a_canary_is_judged_on_a_screen_of_80_columns_and_leaves_its_file(tmp_path: Path) -> None:
    done = ldlm("canary", "canary-1", "--store", kept(tmp_path), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    check_golden("screen-canary.txt", done.stdout)
    written = json.loads((tmp_path / "canary-canary-1.json").read_text())
    assert [verdict["verdict"] for verdict in written["verdicts"]].count("pass") == 11
    assert written["versions"]["skypilot"] == "0.14.1"


def test_a_promise_that_was_not_kept_is_named_and_the_command_fails(tmp_path: Path) -> None:
    url = kept(tmp_path, step=500)
    done = ldlm("canary", "canary-1", "--store", url, "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert "run canary-1: 1 of 16 promises were not kept: it trains to its last step" in done.stderr
    found = json.loads(done.stdout)
    assert found["run_id"] == "canary-1"
    assert {"claim": "it trains to its last step", "verdict": "FAIL",
            "because": "step 500 of 600 is durable; finished (600 steps)"} in found["verdicts"]


def test_what_is_no_canary_is_not_judged_as_one(tmp_path: Path) -> None:
    said = refused(6, "canary", "canary-1", "--store", kept(tmp_path, is_canary=False))
    assert "run canary-1 is no canary" in said and "ldlm cost canary-1" in said


def test_the_file_has_no_secret_no_name_and_no_home() -> None:
    evidence = good()
    record = replace(evidence.record, url=f"https://ann:{OWN_KEY}@x/y", events=[event.model_copy(update={
        "detail": {"reason": f"no {STORED_KEY} at /home/ann/.aws on anns-laptop", "ann": 3}})
        for event in evidence.record.events])
    environ = {"AWS_SECRET_ACCESS_KEY": STORED_KEY, "HF_TOKEN": OWN_KEY, "MY_KEY": "no", "PATH": "/usr/bin"}
    task = f"envs:\n  A: az://ann:pass@host/c\n  B: {OWN_KEY}\nworkdir: /home/ann/ldlm\n"
    found = contents(replace(evidence, record=record), judge(evidence), Charges(charges=(Charge(
        instance_id="5001", usd=0, usd_by_kind={}),)), task, {"ldlm": "c0ffee"})
    text = as_text(without_secrets(found, secrets_of(environ), {
        "/home/ann": "~", "anns-laptop": "HOST", "ann": "USER"}))
    for word in (STORED_KEY, OWN_KEY, "ann:", "/home/ann", "anns-laptop", "pass@"):
        assert word not in text
    read = json.loads(text)
    assert read["task"] == "envs:\n  A: az://(hidden)@host/c\n  B: (hidden)\nworkdir: ~/ldlm\n"
    assert read["events"][0]["detail"]["reason"] == "no (hidden) at ~/.aws on HOST"
    assert read["versions"] == {"ldlm": "c0ffee"} and read["charges"][0]["instance_id"] == "5001"
    assert set(read) == {
        "run_id", "versions", "verdicts", "machines", "cost", "reconciliation", "charges", "rentals",
        "attempts", "events", "outcome", "benchmark", "plan", "recipe", "task"}


def test_what_a_secret_is_called_decides_and_its_parts_are_hidden_after_it() -> None:
    environ = {"WANDB_API_KEY": "12345678", "X_PASSWORD": "123456789", "HOME": "/home/ann", "A_TOKEN": "s"}
    assert secrets_of(environ, ["more-of-them"]) == ["more-of-them", "123456789", "12345678"]
    assert without_secrets("a123456789b", secrets_of(environ), {}) == "a(hidden)b"
