"""The recipe that goes with an export is one that can be launched."""

import json
from pathlib import Path

import pytest
from cli_lab import ROOT

from launcher.recipe import load_recipe
from trainer.model_card import recipe_yaml


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_comes_back_from_its_record(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(path))
    recorded = json.loads(recipe.model_dump_json())
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recorded))
    assert load_recipe(str(tmp_path / "recipe.yaml")).model_dump() == recipe.model_dump()
