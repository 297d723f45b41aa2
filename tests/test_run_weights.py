"""Mirrors that a plan looks for: those that a node would take, their bytes, what to type where none is."""

import re
import shlex
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launch_examples import NOW, TWO_CORES

from launcher import patience, run_weights
from launcher.offers import make_offer
from launcher.plan import Plan, make_plan
from launcher.recipe import Candidate, Recipe, load_recipe
from launcher.run_weights import RunWeights, look_for_mirrors
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape
from trainer.manifest import StoredFile
from trainer.mirror_format import MirrorManifest

NAME = "Qwen/Qwen3.6-35B-A3B"
GIB = 2**30
HOME, RENTED = Candidate(infra="local", gpu="RTX5090:1"), Candidate(infra="vast", gpu="H200:1")


def recipe_of(store: Path | None, *overrides: str) -> Recipe:
    recipe = load_recipe("qwen3.6-35b-a3b", ["limits.max_cost_usd=99999", *overrides])
    return recipe.model_copy(update={"store": store and f"file://{store}"})


def write_manifest(store: Path, weights: str, num_bytes: int, kept: int = 38, revision: str = "") -> None:
    """What a finished `ldlm weights mirror` leaves beside its files, which a plan does not read."""
    manifest = MirrorManifest(
        name=NAME, asked={revision: datetime(2026, 11, 1, tzinfo=UTC)}, commit=None, source="x",
        num_blocks=40, kept_blocks=kept, weights=weights,
        files=[StoredFile(name="block", num_bytes=num_bytes, sha256="0")])
    folder = store / "weights" / NAME.replace("/", "--") / f"{kept}-blocks-{weights}{revision}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def planned(recipe: Recipe, candidate: Candidate, found: RunWeights | None = None) -> Plan:
    offer = make_offer(candidate, TWO_CORES, NOW)
    shape = encoder_shape(recipe.train.token_encoder.name)
    mirrors = (found or look_for_mirrors(recipe)).mirrors
    return make_plan(recipe, shape, dict.fromkeys(Document, (offer,)), (), NOW, "run-1",
                     mirrors=mirrors)


def warnings(recipe: Recipe, candidate: Candidate) -> list[str]:
    found = look_for_mirrors(recipe)
    return list(found.warnings(recipe, planned(recipe, candidate, found)))


def test_the_mirror_in_the_runs_format_comes_before_bf16_and_that_before_the_hub(tmp_path):
    recipe = recipe_of(tmp_path, "train.token_encoder.weights=fp8")
    told = planned(recipe, RENTED).sizes.encoder
    # All 38 kept blocks and the embeddings in bf16 are 60.5 GiB by the model's published sizes.
    assert (told.source, told.source_weights) == ("Hub", "bf16")
    assert told.source_bytes == pytest.approx(60.5 * GIB, rel=0.01)
    write_manifest(tmp_path, "nf4", 17 * GIB)
    assert planned(recipe, RENTED).sizes.encoder == told
    write_manifest(tmp_path, "bf16", 61 * GIB)
    told = planned(recipe, RENTED).sizes.encoder
    assert (told.source, told.source_weights, told.source_bytes) == ("mirror", "bf16", 61 * GIB)
    write_manifest(tmp_path, "fp8", 31 * GIB)
    told = planned(recipe, RENTED).sizes.encoder
    assert (told.source, told.source_weights, told.source_bytes) == ("mirror", "fp8", 31 * GIB)
    assert told.fetch_s == pytest.approx(31 * GIB / 80e6, abs=0.1)
    assert warnings(recipe, RENTED) == []


def test_a_mirror_of_another_layer_or_revision_and_one_that_is_not_complete_do_not_count(tmp_path):
    write_manifest(tmp_path, "bf16", 50 * GIB, kept=30)
    write_manifest(tmp_path, "bf16", 61 * GIB, revision="v1")
    (tmp_path / "weights" / NAME.replace("/", "--") / "38-blocks-fp8").mkdir()
    assert look_for_mirrors(recipe_of(tmp_path)).mirrors == {}
    named = recipe_of(tmp_path, "train.token_encoder.revision=v1")
    assert look_for_mirrors(named).mirrors == {"bf16": 61 * GIB}
    assert look_for_mirrors(recipe_of(tmp_path / "nowhere")).mirrors == {}
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("weights", "there", "words"), [
    ("bf16", [], "in this store: 60.5 GiB in bf16 are fetched from the Hub at each start; once: "),
    ("fp8", [], "in this store: 60.5 GiB in bf16 are fetched from the Hub and packed as fp8 at each start"),
    ("nf4", ["bf16"], "in nf4 in this store: 61.0 GiB in bf16 are fetched and packed as nf4 at each start"),
])
def test_without_a_mirror_the_command_that_writes_it_is_there_to_be_typed(tmp_path, weights, there, words):
    for name in there:
        write_manifest(tmp_path, name, 61 * GIB)
    recipe = recipe_of(tmp_path, f"train.token_encoder.weights={weights}")
    (warning,) = warnings(recipe, RENTED)
    assert warning.startswith(f"no mirror of {NAME} ") and words in warning
    command = shlex.split(warning.partition("; once: ")[2])
    assert command[:3] == ["ldlm", "weights", "mirror"]
    given = dict(zip(command[3::2], command[4::2], strict=True))
    assert given == {"--name": NAME, "--layer": "-3", "--weights": weights, "--store": f"file://{tmp_path}"}
    known = re.findall(r'add_argument\("(--\w+)"', Path("trainer/mirror.py").read_text())
    assert set(given) <= set(known)


def test_without_a_store_nothing_was_looked_for_and_the_hubs_bytes_count():
    recipe = recipe_of(None)
    assert warnings(recipe, RENTED) == [
        f"a mirror of {NAME} was not looked for: no store is named (--store URL)"]
    assert planned(recipe, RENTED).sizes.encoder.source == "Hub"


def test_small_models_and_packages_are_not_worth_a_word(tmp_path):
    small = load_recipe("paper-gpt2", ["limits.max_cost_usd=999"]).model_copy(update={"store": None})
    found = look_for_mirrors(small)
    assert list(found.warnings(small, planned(small, RENTED, found))) == []
    packaged = load_recipe("smoke").model_copy(update={"store": f"file://{tmp_path}"})
    encoder = planned(packaged, Candidate(infra="vast", gpu="RTX5090:1")).sizes.encoder
    assert (encoder.source, encoder.fetch_s, encoder.first_fetch_bytes) == ("package", 0, 0)


def test_a_damaged_manifest_is_told_and_no_reason_to_plan_nothing(tmp_path):
    write_manifest(tmp_path, "bf16", 61 * GIB)
    (path,) = tmp_path.rglob("manifest.json")
    path.write_text("{")
    found = look_for_mirrors(recipe_of(tmp_path))
    assert found.mirrors is None and found.problem.endswith("the manifest of this mirror is damaged")


def test_at_home_the_first_start_downloads_and_a_mirror_on_this_disk_is_read_where_it_lies(tmp_path):
    recipe = recipe_of(tmp_path, "train.token_encoder.weights=nf4", "train.activation_checkpointing=true",
                       "train.micro_batch_size=1")
    without = planned(recipe, HOME)
    encoder = without.sizes.encoder
    assert (encoder.fetch_s, encoder.fetch_usd) == (0, 0)
    assert encoder.first_fetch_bytes == pytest.approx(60.5 * GIB, rel=0.01)
    (warning,) = warnings(recipe, HOME)
    assert ": 60.5 GiB in bf16 are read and packed as nf4 at each start; once: ldlm weights " in warning
    write_manifest(tmp_path, "nf4", 17 * GIB)
    mirrored = planned(recipe, HOME)
    assert mirrored.sizes.encoder.first_fetch_bytes == 0
    # 43.5 GiB less to read, at half a gigabyte a second.
    spared_s = float(without.parts[0].hours.mid - mirrored.parts[0].hours.mid) * 3600
    assert spared_s >= 43.5 * GIB / 0.5e9
    assert warnings(recipe, HOME) == []


def test_a_folder_of_this_machine_is_not_on_a_rented_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        '{"model_type": "qwen3_5_text", "hidden_size": 5120, "intermediate_size": 17408}')
    recipe = recipe_of(tmp_path, f"train.token_encoder.name={tmp_path}/model",
                       "train.token_encoder.weights=nf4")
    (warning,) = warnings(recipe, RENTED)
    assert warning.startswith(f"no mirror of {tmp_path}/model in this store, and a rented machine has no")
    here = Candidate(infra="local", gpu="H200:1")  # a trainer takes a folder that is there before any mirror
    assert warnings(recipe, here) == [] and planned(recipe, here).sizes.encoder.source == "folder"


def test_a_store_that_does_not_answer_costs_a_plan_seconds_and_is_told(monkeypatch):
    silent = threading.Event()
    monkeypatch.setattr(run_weights, "mirrors_by_format", lambda store, encoder: silent.wait(30))
    monkeypatch.setattr(patience, "_PATIENCE_S", 0.1)
    found = look_for_mirrors(load_recipe("qwen3.6-27b").model_copy(update={"store": "s3://far/away"}))
    silent.set()
    assert (found.mirrors, found.problem) == (None, "store: no answer within 0.1 s")
