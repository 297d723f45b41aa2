"""Every known trap of a task is found, and nothing else. One example per rule: tests/lint/NAME.yaml.

An example begins with what lint says of it, whole, as comments.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_examples import example_task

from launcher.lint import RULES, lint
from launcher.render import Task
from trainer.contract import Env

EXAMPLES = sorted((Path(__file__).parent / "lint").glob("*.yaml"))
VAST = example_task("vast")


def test_every_rule_has_an_example_and_every_example_a_rule():
    names = [rule.name for rule in RULES]
    assert sorted(names) == [path.stem for path in EXAMPLES]
    assert len(set(names)) == len(names)


def test_every_rule_says_what_it_guards_against():
    assert [rule.name for rule in RULES if len(rule.guards_against) < 30] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trips_its_own_rule_once_and_no_other(path):
    text = path.read_text()
    (found,) = lint(Task(text))
    assert text.startswith(f"# {found.place}: {found.problem}\n# fix: {found.fix}\n")
    assert found.rule == path.stem


def behind_a_sound_one(text: str, name: str) -> Task:
    """A task whose document has its machine as the second candidate, behind one that Azure sells."""
    documents = list(yaml.safe_load_all(text))
    (body,) = [body for body in documents if body.get("name") == name and "envs" in body]
    own, envs = body["resources"], body["envs"]
    shared = {key: own.pop(key) for key in ("job_recovery",) if key in own}
    number = own["accelerators"].partition(":")[2]
    first = {"infra": "azure", "accelerators": f"H100:{number}", "use_spot": True}
    told = {key: envs.pop(key) for key in (Env.PRICE, Env.OFFER) if key in envs}
    envs |= {Env.PRICE: "7", Env.OFFER: f"H100:{number} on azure (spot)", Env.OFFERS: json.dumps(
        [{"infra": "azure", "spot": True, "envs": {}},
         {"infra": str(own.get("infra")), "spot": False, "envs": told}])}
    body["resources"] = {"ordered": [first, own], **shared}
    return Task(yaml.safe_dump_all(documents))


# Of one machine; what stands in LDLM_OFFERS is text anyway, and this machine has no others beside it.
OF_ONE = [path for path in EXAMPLES if path.stem not in ("number-in-envs", "infra-local")
          and not {"ordered:", "any_of:"} & set(path.read_text().split())]


@pytest.mark.parametrize("path", OF_ONE, ids=lambda path: path.stem)
def test_a_trap_in_the_second_candidate_is_a_trap(path):
    text = path.read_text()
    (alone,) = lint(Task(text))
    (second,) = lint(behind_a_sound_one(text, alone.place.partition(":")[0]))
    assert (second.rule, second.problem, second.fix) == (alone.rule, alone.problem, alone.fix)
    if alone.place.startswith("train: resources.") and "job_recovery" not in alone.place:
        assert second.place == alone.place.replace("resources.", "resources.ordered[1].")


def test_the_price_of_the_second_candidate_must_be_known():
    (found,) = lint(behind_a_sound_one((EXAMPLES[0].parent / "unknown-price.yaml").read_text(), "train"))
    assert (found.rule, found.place) == ("unknown-price", "train: envs.LDLM_OFFERS[1]")


def problems(change: Any, infra: str | None = "vast", *overrides: str) -> list[str]:
    """Lint the train document after `change` was done to it; problems as `place: problem`."""
    header, train, bench = (example_task(infra, *overrides) if infra != "vast" else VAST).documents()
    change(train)
    found = lint(Task(yaml.safe_dump_all([header, train, bench])))
    assert all(problem.fix for problem in found)
    return [f"{problem.place} {problem.problem}" for problem in found]


def in_places(document: dict, *places: dict) -> None:
    """Let a document run in several places, of which its node is told nothing but their names."""
    document["resources"].pop("infra", None)
    document["resources"]["ordered"] = list(places)
    document["envs"][Env.OFFERS] = json.dumps(
        [{"infra": place["infra"], "spot": False, "envs": {}} for place in places])


def test_a_sound_task_has_no_problem():
    assert problems(lambda train: None) == []
    assert problems(lambda train: None, None) == []


def test_the_spot_flag_on_vast_is_found():
    assert problems(lambda train: train["resources"].update(use_spot=True)) == [
        "train: resources.use_spot use_spot on vast silently rents on-demand"]


def test_the_spot_flag_in_an_alternative_is_found():
    def change(train: dict) -> None:
        in_places(train, {"infra": "gcp"}, {"infra": "vast/US", "use_spot": True})
        train["resources"]["accelerators"] = "H100:8"
    assert problems(change) == [
        "train: resources.ordered[1].use_spot use_spot on vast silently rents on-demand"]


def test_what_all_alternatives_share_is_found_once_where_it_stands():
    def change(train: dict) -> None:
        in_places(train, {"infra": "vast/US"}, {"infra": "vast"})
        del train["envs"][Env.OFFER], train["config"]["vast"]["create_instance_kwargs"]["bid_price"]
        train["resources"].update(use_spot=True)
    assert problems(change) == ["train: resources.use_spot use_spot on vast silently rents on-demand"]


def test_several_nodes_on_vast_are_found():
    assert problems(lambda train: train.update(num_nodes=2)) == [
        "train: num_nodes SkyPilot has no clusters on vast"]


@pytest.mark.parametrize("mount", [{"source": "s3://b", "mode": "MOUNT"}, {"source": "s3://b"},
                                   {"source": "s3://b", "mode": "MOUNT_CACHED"}])
def test_a_mounted_bucket_on_vast_is_found(mount):
    assert problems(lambda train: train.update(file_mounts={"/data": mount})) == [
        "train: file_mounts./data vast cannot mount buckets (no FUSE)"]


def test_a_copied_bucket_on_vast_is_fine():
    mounts = {"/data": {"source": "s3://b", "mode": "COPY"}, "/more": "s3://b"}
    assert problems(lambda train: train.update(file_mounts=mounts)) == []


def test_the_infra_local_is_found():
    assert problems(lambda train: train["resources"].update(infra="local"), None) == [
        "train: resources.infra SkyPilot has no infra called local"]


@pytest.mark.parametrize(("codes", "others"), [([75, 137], [137]), ([137, 75, 1], [137, 1]), (75, [])])
def test_recovering_on_any_other_code_is_found(codes, others):
    def change(train: dict) -> None:
        train["resources"]["job_recovery"]["recover_on_exit_codes"] = codes
    place = "train: resources.job_recovery.recover_on_exit_codes"
    assert problems(change) == [f"{place} exit code {code} would restart the task without limit"
                                for code in others]


@pytest.mark.parametrize("recovery", [{"recover_on_exit_codes": [1]}, {}, "FAILOVER", None])
def test_a_task_that_does_not_go_on_after_code_75_is_found(recovery):
    found = problems(lambda train: train["resources"].update(job_recovery=recovery))
    assert any("75 is not listed" in line for line in found)


@pytest.mark.parametrize(("image", "is_found"), [
    ("docker:nvidia/cuda:12.4.1-devel", True), ("docker:pytorch/pytorch:2.6.0-cuda12.6-cudnn9", True),
    ("docker:vastai/base-image:cuda-12.9-auto", False), ("docker:nvidia/cuda:13.0.1-devel", False),
    ("docker:me/mine:2.6-cu124", True), ("docker:me/mine:2.7-cu128", False), ("docker:me/mine:1", False)])
def test_the_cuda_of_an_image_is_read_from_its_name(image, is_found):
    found = problems(lambda train: train["resources"].update(image_id=image))
    assert [line for line in found if "has no kernels for a RTX5090" in line] == found
    assert bool(found) == is_found


@pytest.mark.parametrize("wanted", ["RTX5090", {"RTX5090": 1}, ["RTX5090:1"], {"RTX5090": None}])
def test_gpus_are_read_in_every_spelling_of_skypilot(wanted):
    changes = {"accelerators": wanted, "image_id": "docker:nvidia/cuda:12.4.1-devel"}
    found = problems(lambda train: train["resources"].update(changes))
    assert any("no kernels for a RTX5090" in line for line in found)


@pytest.mark.parametrize("source", ["/data", "~/data", "s3://b/x", "https://a/b", ["/one", "/two"]])
def test_a_source_that_is_absolute_or_a_url_is_fine(source):
    mounts = {"/data": {"name": "corpus", "source": source, "mode": "COPY"}}
    assert problems(lambda train: train.update(file_mounts=mounts)) == []


def test_a_bucket_that_is_not_the_store_is_copied_from_amazon_as_it_should():
    def change(train: dict) -> None:
        train["envs"][Env.STORE] = "s3://bucket/ldlm?endpoint=http://here:9000"
        train["file_mounts"] = {"/data": "s3://other/corpus"}
    assert problems(change) == []


def test_a_null_is_found_where_it_stands():
    assert problems(lambda train: train["resources"].update(infra=None)) == [
        "train: resources.infra is null, which SkyPilot may load without a word"]


@pytest.mark.parametrize(("key", "value"), [
    ("WANDB_API_KEY", "x"), ("MY_SECRET", "x"), ("HF_TOKEN", "x"), ("DB_PASSWORD", "x"),
    ("AWS_ACCESS_KEY_ID", "x"), ("NOTE", "AKIAABCDEFGHIJKLMNOP"), ("NOTE", "hf_abcdefghijklmnopqrstuv"),
    ("NOTE", "0123456789abcdef" * 2 + "01234567"),
    ("NOTE", "-----BEGIN RSA PRIVATE KEY-----"), (Env.STORE, "s3://key:secret@bucket/x"),
    (Env.STORE, "az://a/c?sig=abc"), (Env.STORE, "s3://b/x?region=r&secret_access_key=abc"),
])
def test_what_looks_like_a_secret_is_found(key, value):
    (found,) = problems(lambda train: train["envs"].update({key: value}))
    assert found.startswith(f"train: envs.{key} looks like a secret")
    assert value == "x" or value not in found


def test_a_number_in_envs_is_found():
    (found,) = problems(lambda train: train["envs"].update(LDLM_RANKS_PER_NODE=1))
    assert "only text travels unchanged" in found


def test_an_unknown_price_is_found():
    (found,) = problems(lambda train: train["envs"].update({Env.PRICE: ""}))
    assert "cannot stop itself at its cap" in found


def test_only_who_owns_the_machines_is_told_that_a_price_may_be_0():
    def fix(infra: str) -> str:
        text = (EXAMPLES[0].parent / "unknown-price.yaml").read_text()
        return next(found.fix for found in lint(Task(text.replace("infra: gcp", f"infra: {infra}")))
                    if found.rule == "unknown-price")
    assert ["0 where nobody pays" in fix(infra) for infra in ("slurm/lab", "vast", "azure", "gcp")] == [
        True, False, False, False]


def test_a_file_store_on_a_rented_machine_is_found_and_here_it_is_fine():
    (found,) = problems(lambda train: train["envs"].update({Env.STORE: "file:///data"}))
    assert "is lost with it" in found
    assert problems(lambda train: train["envs"].update({Env.STORE: "file:///data"}), None) == []
