from typing import Any

import pytest
import yaml
from launch_examples import example_task

from launcher.lint import lint
from launcher.render import Task
from trainer.contract import Env

VAST = example_task("vast")


def problems(change: Any, infra: str | None = "vast", *overrides: str) -> list[str]:
    """Lint the train document after `change` was done to it; problems as `place: problem`."""
    header, train, bench = (example_task(infra, *overrides) if infra != "vast" else VAST).documents()
    change(train)
    found = lint(Task(yaml.safe_dump_all([header, train, bench])))
    assert all(problem.fix for problem in found)
    return [f"{problem.place} {problem.problem}" for problem in found]


def test_a_sound_task_has_no_problem():
    assert problems(lambda train: None) == []
    assert problems(lambda train: None, None) == []


def test_the_spot_flag_on_vast_is_found():
    assert problems(lambda train: train["resources"].update(use_spot=True)) == [
        "train: resources.use_spot use_spot on vast silently rents on-demand"]


def test_the_spot_flag_in_an_alternative_is_found():
    def change(train: dict) -> None:
        train["resources"] = {"any_of": [{"infra": "azure"}, {"infra": "vast/US", "use_spot": True}]}
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


@pytest.mark.parametrize("codes", [[75, 137], [137], 1])
def test_recovering_on_any_other_code_is_found(codes):
    def change(train: dict) -> None:
        train["resources"]["job_recovery"]["recover_on_exit_codes"] = codes
    (found,) = problems(change)
    assert "would restart the task without limit" in found


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


def test_a_file_store_on_a_rented_machine_is_found_and_here_it_is_fine():
    (found,) = problems(lambda train: train["envs"].update({Env.STORE: "file:///data"}))
    assert "is lost with it" in found
    assert problems(lambda train: train["envs"].update({Env.STORE: "file:///data"}), None) == []
