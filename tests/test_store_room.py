"""A store on this machine's disk must hold what a run keeps."""

import shutil
from pathlib import Path

import pytest
from launch_examples import example_plan, example_recipe

from launcher.store_room import check_room
from trainer.contract import StoreError


def room(folder: Path | str, keep: int) -> None:
    """Check it for the example's checkpoints, so many of them."""
    kept = f"train.checkpoint.keep={keep}"
    url = folder.as_uri() if isinstance(folder, Path) else folder
    recipe = example_recipe(kept).model_copy(update={"store": url})
    check_room(example_plan(None, kept), recipe)


def test_a_disk_that_would_be_full_of_checkpoints_is_refused_before_the_run(tmp_path: Path) -> None:
    sizes = example_plan().sizes
    assert sizes is not None
    fits = shutil.disk_usage(tmp_path).free // sizes.checkpoint_bytes
    room(tmp_path / "not" / "made" / "yet", fits // 2)
    with pytest.raises(StoreError, match="GiB are free there, and .* checkpoints take") as caught:
        room(tmp_path / "not" / "made" / "yet", fits * 2)
    assert "--set train.checkpoint.keep=1" in str(caught.value.fix)
    room("s3://bucket/ldlm", fits * 2)
