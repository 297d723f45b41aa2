"""A store on this machine's disk must hold what a run keeps."""

import os
import shutil
from pathlib import Path

import pytest
from launch_examples import example_plan, example_recipe

from launcher.plan import Plan
from launcher.store_room import check_room
from trainer.contract import StoreError


def room(folder: Path | str, *sets: str) -> Plan:
    """Check it for the checkpoints of the example, changed by `--set` items."""
    url = folder.as_uri() if isinstance(folder, Path) else folder
    recipe = example_recipe(*sets).model_copy(update={"store": url})
    plan = example_plan(None, *sets)
    check_room(plan, recipe)
    return plan


def room_for(folder: Path, checkpoints: int) -> None:
    room(folder, f"train.checkpoint.keep={checkpoints}", "train.checkpoint.every_steps=null")


def fitting(folder: Path) -> int:
    """Checkpoints of the example for which the disk has room."""
    sizes = example_plan().sizes
    assert sizes is not None
    return shutil.disk_usage(folder).free // sizes.checkpoint_bytes


def twice_as_many(folder: Path) -> tuple[str, ...]:
    """Of every_steps, as the disk has room for."""
    return ("train.checkpoint.every_steps=10", f"train.steps={20 * fitting(folder)}",
            "limits={max_cost_usd: 1000000}")


def test_a_disk_that_would_be_full_of_checkpoints_is_refused_before_the_run(tmp_path: Path) -> None:
    fits = fitting(tmp_path)
    room_for(tmp_path / "not" / "made" / "yet", fits // 2)
    with pytest.raises(StoreError, match="GiB are free there, and .* checkpoints take") as caught:
        room_for(tmp_path / "not" / "made" / "yet", fits * 2)
    assert "--set train.checkpoint.keep=1" in str(caught.value.fix)
    room_for("s3://bucket/ldlm", fits * 2)


def test_those_of_every_steps_stay_and_take_room_too(tmp_path: Path) -> None:
    many = twice_as_many(tmp_path)
    with pytest.raises(StoreError, match="stay, 2 more are there while it trains") as caught:
        room(tmp_path, *many)
    assert "--set train.checkpoint.every_steps=null" in str(caught.value.fix)
    room(tmp_path, *many, "train.checkpoint.every_steps=null")


def test_a_run_that_is_resumed_is_not_asked_twice_for_the_room_that_it_has_filled(tmp_path: Path) -> None:
    many = twice_as_many(tmp_path)
    saved = tmp_path / "example-1" / "checkpoints" / "step-00000010" / "a1-rank-0000.bin"
    saved.parent.mkdir(parents=True)
    with saved.open("wb") as file:
        os.truncate(file.fileno(), 4 * shutil.disk_usage(tmp_path).free)  # with holes: it takes nothing
    room(tmp_path, *many)
