import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch_examples import GOLDEN, example_plan, example_recipe, example_task

from launcher.errors import LdlmError
from launcher.estimate import Done
from launcher.lint import lint
from launcher.render import Task, Templates, leftover_nulls, render
from trainer.config import TrainConfig
from trainer.contract import Document, Env, StoreError
from trainer.cuda import TORCH
from trainer.store import open_store

ROOT = Path(__file__).parents[1]
ON_DEMAND = "hardware.train.1={infra: vast, gpu: 'RTX5090:1', price_usd_per_hour: 0.50}"
# name: (infra of training, infra of the benchmark when it is not the recipe's first choice, overrides)
TASKS = {"local": (None, None, ()), "vast": ("vast", None, ()),
         "vast-on-demand": ("vast", "vast", (ON_DEMAND,)),
         "azure": ("azure", "vast", ()), "gcp": ("gcp", None, ()),
         "bench-of-ones-own": ("azure", None, (
             "hardware.train.2.price_usd_per_hour=1.55", "limits.max_cost_usd=99",
             "hardware.bench=[{infra: slurm/lab, gpu: 'RTX5090:1', price_usd_per_hour: 0}, "
             "{infra: vast, gpu: 'RTX5090:1', bid_usd_per_hour: 0.60}]")),
         "azure-nodes": ("azure", "vast", (
             "train.global_batch_size=64", "hardware.train.2.gpu=A100-80GB:8", "hardware.train.2.num_nodes=2",
             "hardware.train.2.price_usd_per_hour=19.66", "limits.max_cost_usd=99",
             "hardware.train.2.image=microsoft-dsvm:ubuntu-hpc:2204:latest")),
         "gcp-nodes": ("gcp/us-east5", None, (
             "train.global_batch_size=64", "hardware.train.4.spot=true",
             "hardware.train.4.price_usd_per_hour=14.22", "limits.max_cost_usd=99",
             "hardware.train.4.image=projects/ml-images/global/images/c0-deeplearning-common-cu128"))}


def task_of(name: str) -> Task:
    infra, bench, overrides = TASKS[name]
    return example_task(infra, *overrides, bench=bench)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_byte_for_byte_the_golden_file(name):
    """`UPDATE_GOLDEN=1 pytest tests/test_render.py` writes the files anew; read the diff."""
    path = GOLDEN / f"task-{name}.yaml"
    text = task_of(name).text
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_same_plan_gives_the_same_bytes_and_digest():
    one, two = example_task("vast"), example_task("vast")
    assert one.text == two.text
    assert one.digest == two.digest
    assert re.fullmatch(r"[0-9a-f]{64}", one.digest)
    assert example_task("vast", "train.steps=401").digest != one.digest


def test_header_train_and_bench_come_in_this_order():
    header, train, bench = task_of("vast").documents()
    assert header == {"name": "example-1"}
    assert (train["name"], bench["name"]) == ("train", "bench")
    assert task_of("vast").document(Document.BENCH) == bench


def test_values_travel_as_text_in_envs():
    for document in Document:
        envs = task_of("vast").document(document)["envs"]
        assert all(isinstance(value, str) for value in envs.values())
        config = TrainConfig.model_validate_json(envs[Env.TRAIN_CONFIG])
        assert config.token_encoder.placement == "gpu"  # resolved by the plan
        assert config == example_recipe("train.token_encoder.placement=gpu").train
        assert envs[Env.RUN_ID] == "example-1"
        assert envs[Env.STORE] == "s3://bucket/ldlm"
        assert envs[Env.MAX_COST] == "1.0"
    train = task_of("local").document(Document.TRAIN)["envs"]
    assert (train[Env.RANKS_PER_NODE], train[Env.GPU], train[Env.PRICE]) == ("2", "", "0.5")
    assert task_of("local").document(Document.BENCH)["envs"][Env.RANKS_PER_NODE] == "1"


def test_the_deadline_is_that_of_training_and_of_a_benchmark_only_where_it_is_planned_alone():
    both = [task_of("vast").document(document)["envs"][Env.DEADLINE] for document in Document]
    assert both == ["2026-11-23T14:00:00+00:00", ""]
    alone = example_task("vast", done=Done(step=400, spent_usd=Decimal("0.10"), has_trained=True))
    assert alone.document(Document.BENCH)["envs"][Env.DEADLINE] == "2026-11-23T14:00:00+00:00"


def test_the_peak_of_all_gpus_travels_in_the_precision_of_the_run():
    """By the data sheets: 104.8 TFLOP/s of an RTX 5090 in float32, 989 of an H100 in bf16."""
    def peak(*sets: str) -> str:
        return example_task("gcp", *sets).document(Document.TRAIN)["envs"][Env.PEAK_TFLOPS]

    eight = ("hardware.train.3.gpu=H100:8", "train.global_batch_size=64")
    assert peak(*eight, "train.precision=bf16") == "7912"
    assert peak(*eight, "train.precision=fp32") == "536"
    assert peak("hardware.train.3.gpu=XYZ1:1", "hardware.train.3.gpu_memory_gib=99") == ""
    assert task_of("vast").document(Document.TRAIN)["envs"][Env.PEAK_TFLOPS] == "104.8"


def test_a_card_of_ones_own_cluster_stands_before_vast_for_the_benchmark():
    task = task_of("bench-of-ones-own")
    bench = task.document(Document.BENCH)
    assert [place["infra"] for place in bench["resources"]["ordered"]] == ["slurm/lab", "vast"]
    assert bench["envs"][Env.PRICE] == "0"
    own, vast = json.loads(bench["envs"][Env.OFFERS])
    assert (own["infra"], vast["envs"][Env.PRICE]) == ("slurm/lab", "0.6")
    assert lint(task) == []


def test_a_torch_of_another_cuda_goes_with_the_candidate():
    """pip on the node reads the variable; Vast is searched for drivers that run this CUDA and the image's."""
    index = "https://wheels.example/whl/cu129"
    train = example_task("vast", f"hardware.train.1.torch_index={index}").document(Document.TRAIN)
    assert train["envs"]["PIP_EXTRA_INDEX_URL"] == index
    filters = train["config"]["vast"]["create_instance_kwargs"]["ldlm"]["filters"]
    assert filters["cuda_max_good"] == {"gte": 12.9}
    usual = task_of("vast").document(Document.TRAIN)
    assert "PIP_EXTRA_INDEX_URL" not in usual["envs"]
    filters = usual["config"]["vast"]["create_instance_kwargs"]["ldlm"]["filters"]
    assert filters["cuda_max_good"] == {"gte": 13.0}


def test_nodes_are_told_which_memory_and_disk_they_must_have():
    """An H200 offers 139.7 GiB; the kept part of Qwen3.6-35B-A3B, downloaded, has 60.5 GiB, torch 10, and
    a step of text next to nothing."""
    big = ("train={profile: qwen3.6-35b-a3b, steps: 1, data: {source: 'shards:x'}, micro_batch_size: 1, "
           "checkpoint: {every_steps: 1}}", "limits.max_cost_usd=99", "limits.deadline_hours=")
    rented = example_task("vast", *big, "hardware.train.1.gpu=H200:1")
    envs = {document: rented.document(document)["envs"] for document in Document}
    assert (envs[Document.TRAIN][Env.GPU_MEMORY], envs[Document.TRAIN][Env.DISK]) == ("139.7", "71")
    assert (envs[Document.BENCH][Env.GPU_MEMORY], envs[Document.BENCH][Env.DISK]) == ("31.3", "10")
    long = (*big, "train.steps=100000", "limits.max_cost_usd=900000")
    long_disk = [example_task("vast", *long, *more, "hardware.train.1.gpu=H200:1").document(
        Document.TRAIN)["envs"][Env.DISK] for more in ((), ("train.data.cache_gib=5",))]
    assert long_disk == ["91", "76"]  # the text's window: at most the cache of the recipe
    local = task_of("local").document(Document.TRAIN)["envs"]
    assert (local[Env.GPU_MEMORY], local[Env.DISK]) == ("", "")


def test_what_is_unknown_travels_as_empty_text():
    envs = example_task("azure", "limits.deadline_hours=").document(Document.TRAIN)["envs"]
    assert (envs[Env.PRICE], envs[Env.DEADLINE]) == ("", "")


def test_shell_text_is_that_of_the_template_whatever_the_values(tmp_path):
    (tmp_path / "x; reboot").mkdir()
    (tmp_path / "x; reboot" / "config.json").write_text("{}")
    nasty = example_task("vast", "summary='$(reboot)'", f"train.token_encoder.name='{tmp_path}/x; reboot'")
    templates = {document: yaml.safe_load(text) for document, text in
                 zip(Document, (Templates.load().train, Templates.load().bench), strict=True)}
    for document, template in templates.items():
        found = nasty.document(document)
        assert (found["setup"], found["run"]) == (template["setup"], template["run"])


def test_a_local_task_names_neither_place_nor_gpu():
    assert set(task_of("local").document(Document.TRAIN)["resources"]) == {"job_recovery"}


def asked_of_vast(document):
    return document["config"]["vast"]["create_instance_kwargs"]


def test_vast_is_searched_for_a_host_that_can_run_the_locked_torch():
    assert f"torch=={TORCH}\n" in (ROOT / "trainer/requirements.lock").read_text(), (
        "look which CUDA the wheel of this torch brings (its requirement cuda-toolkit), and from which "
        "compute capability on it is built, and put both into launcher/vast_search.py")
    wanted = asked_of_vast(task_of("vast").document(Document.TRAIN))["ldlm"]
    assert wanted == {
        "filters": {"reliability": {"gte": 0.95}, "cuda_max_good": {"gte": 13.0},
                    "compute_cap": {"gte": 750}, "inet_down": {"gte": 200}, "inet_up": {"gte": 100},
                    "gpu_ram": {"gte": 31089},
                    "cpu_ram": {"gte": 7 * 1024}},
        "run_id": "example-1", "usd_per_hour": 0.4}
    elsewhere = asked_of_vast(example_task("vast/Spain, ES, EU").document(Document.TRAIN))["ldlm"]
    assert elsewhere["in_region"] is True


def test_vast_gets_a_bid_and_never_the_spot_flag():
    train = task_of("vast").document(Document.TRAIN)
    assert asked_of_vast(train)["bid_price"] == 0.4
    assert "use_spot" not in train["resources"]
    assert train["resources"]["image_id"].startswith("docker:")
    assert "12.8" in train["resources"]["image_id"]
    own = example_task("vast", "hardware.train.1={infra: vast, gpu: 'RTX5090:1', image: 'me/mine:1'}")
    assert own.document(Document.TRAIN)["resources"]["image_id"] == "docker:me/mine:1"


def test_on_demand_vast_gets_no_bid_and_the_most_that_an_hour_may_cost():
    train, bench = (task_of("vast-on-demand").document(document) for document in Document)
    assert "bid_price" not in asked_of_vast(train) and asked_of_vast(train)["ldlm"]["usd_per_hour"] == 0.5
    assert "use_spot" not in train["resources"] and train["envs"][Env.PRICE] == "0.5"
    assert asked_of_vast(bench)["bid_price"] == 0.6  # each document has a price of its own
    told = example_plan("vast", ON_DEMAND).warnings
    assert ("the price on demand is the most an hour can cost, with its disk; network comes on top, and "
            "counts towards the cap") in told


@pytest.mark.parametrize(("image", "cuda"), [
    ("nvidia/cuda:13.1.0-devel-ubuntu24.04", 13.1), ("vastai/base-image:cuda-13.2-auto", 13.2),
    ("me/mine:2.14-cu131", 13.1), ("me/mine:cu1281-torch280", 13.0), ("nvidia/cuda:12.9.1-devel", 13.0),
    ("me/mine:1", 13.0), ("me/acu140:1", 13.0)])
def test_vast_is_searched_for_a_driver_that_starts_the_image_as_well_as_the_locked_torch(image, cuda):
    task = example_task("vast", f"hardware.train.1.image={image}")
    assert asked_of_vast(task.document(Document.TRAIN))["ldlm"]["filters"]["cuda_max_good"] == {"gte": cuda}
    assert asked_of_vast(task.document(Document.BENCH))["ldlm"]["filters"]["cuda_max_good"] == {"gte": 13.0}


def test_rented_machines_are_asked_for_the_host_memory_that_the_plan_counts():
    on_host = ("train={profile: qwen3.6-27b, steps: 1, data: {source: 'shards:x'}, "
               "checkpoint: {every_steps: 1}, token_encoder: {placement: host}}")
    for index, cloud in ((1, "vast"), (2, "azure")):
        task = example_task(cloud, on_host, "limits.max_cost_usd=99", "limits.deadline_hours=",
                            f"hardware.train.{index}.gpu=L40S:8", "train.micro_batch_size=1")
        train = task.document(Document.TRAIN)
        if cloud == "vast":  # whose list at SkyPilot says 64 GiB of every machine
            assert "memory" not in train["resources"]
            needed_gib = asked_of_vast(train)["ldlm"]["filters"]["cpu_ram"]["gte"] / 1024
        else:
            assert train["resources"]["memory"].endswith("+")
            needed_gib = int(train["resources"]["memory"][:-1])
        # Eight ranks with 43.9 GiB of blocks each; a checkpoint and processes on top.
        assert 8 * 43.9 < needed_gib < 8 * 43.9 + 60
        assert "memory" not in task.document(Document.BENCH)["resources"]


def test_a_small_wish_for_memory_does_not_replace_what_gcp_and_azure_give_a_gpu_by_themselves():
    for cloud in ("gcp", "azure"):
        assert "memory" not in task_of(cloud).document(Document.TRAIN)["resources"]


def test_slurm_gets_no_image_no_disk_and_no_spot():
    assert set(example_task("slurm").document(Document.TRAIN)["resources"]) == {
        "infra", "accelerators", "job_recovery"}


def test_without_a_store_the_task_names_one_that_no_node_could_open():
    task = example_task("vast", "store=")
    (url,) = {task.document(which)["envs"][Env.STORE] for which in Document}
    with pytest.raises(StoreError, match="cannot open a store at 'none://set-one-with-ldlm-init'"):
        open_store(url)
    assert {found.rule for found in lint(task)} == {"store-not-set"}


@pytest.mark.parametrize("template", ["", "- a\n", "name: train\n"])
def test_a_text_that_is_no_template_is_refused(template):
    plan, recipe = example_plan(), example_recipe()
    with pytest.raises(LdlmError, match="is no template of a task"):
        render(plan, recipe, Templates(template, template), Path("/checkout"))


def test_a_hole_that_nobody_fills_is_named():
    templates = Templates.load()
    train = templates.train.replace("config: null", "config: null\nsecrets: {KEY: null}")
    holed = Templates(train, templates.bench)
    with pytest.raises(LdlmError, match="holes are left: secrets.KEY") as caught:
        render(example_plan(), example_recipe(), holed, Path("/checkout"))
    assert caught.value.place == "sky/train.yaml"


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place in a document, found without the code under test."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(*at, key), *paths(inner, (*at, key))]]


def test_a_null_anywhere_in_a_task_is_found():
    task = task_of("vast")
    places = [(index, path) for index, document in enumerate(task.documents()) for path in paths(document)]
    assert len(places) > 50
    for index, path in places:
        documents = task.documents()
        block = documents[index]
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = None
        (found,) = leftover_nulls(documents[index])
        assert found.replace("[", ".").replace("]", "") == ".".join(map(str, path))
        problems = lint(Task(yaml.safe_dump_all(documents)))
        assert sum("is null" in problem.problem for problem in problems) == 1, path


# -- what the real SkyPilot understands


def load_in_skypilot(task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    # The folder sky/ of the checkout passes for a package of that name: only sky.Task tells.
    monkeypatch.setenv("HOME", str(folder))
    sky = pytest.importorskip("sky")
    if not hasattr(sky, "Task"):
        pytest.skip("SkyPilot is not installed")
    from sky.utils import dag_utils

    path = folder / "task.yaml"
    path.write_text(task.text)
    return dag_utils.load_chain_dag_from_yaml(str(path))


RTX5090 = ("Vast", {"RTX5090": 1}, False)
A100_ON_GCP = ("GCP", {"A100-80GB": 1}, True)
L4_ON_GCP = ("GCP", {"L4": 1}, True)


@pytest.mark.parametrize(("name", "train", "bench"), [
    ("local", [(None, None, False)], [(None, None, False)]),
    ("vast", [RTX5090], [RTX5090]),
    ("vast-on-demand", [RTX5090], [RTX5090]),
    ("azure", [("Azure", {"A100-80GB": 1}, True)], [RTX5090]),
    ("gcp", [A100_ON_GCP], [L4_ON_GCP, RTX5090]),
    ("azure-nodes", [("Azure", {"A100-80GB": 8}, True)], [RTX5090]),
    ("gcp-nodes", [("GCP", {"H100": 8}, True)], [L4_ON_GCP, RTX5090]),
])
def test_skypilot_understands_what_was_meant(name, train, bench, tmp_path, monkeypatch):
    dag = load_in_skypilot(task_of(name), tmp_path, monkeypatch)
    assert dag.name == "example-1"
    assert dag.is_chain()
    assert [task.name for task in dag.tasks] == ["train", "bench"]
    for task, wanted in zip(dag.tasks, (train, bench), strict=True):
        assert [(str(one.cloud) if one.cloud else None, one.accelerators, one.use_spot)
                for one in task.resources] == wanted
        assert task.workdir == "/checkout"
        assert task.num_nodes == (2 if name.endswith("-nodes") and task.name == "train" else 1)
        assert json.loads(task.envs[Env.TRAIN_CONFIG])["steps"] == 400
        for resources in task.resources:
            # Eight ranks on a node count on more than the ordinary 32 GiB.
            assert resources.memory == ("35+" if task.num_nodes == 2 else None)
            assert resources.job_recovery == {
                "strategy": "LDLM" if name == "local" and task.name == "train" else "EAGER_NEXT_REGION",
                "max_restarts_on_errors": 0 if resources.cloud else 2,
                "recover_on_exit_codes": [75]}
            overrides = resources.cluster_config_overrides
            if RTX5090 in wanted:
                asked = overrides["vast"]["create_instance_kwargs"]
                bid = {"train": None if name == "vast-on-demand" else 0.4, "bench": 0.6}[task.name]
                assert asked.get("bid_price") == bid and asked["ldlm"]["usd_per_hour"] == (bid or 0.5)
            else:
                assert overrides == {}


def test_a_key_can_be_given_to_skypilot_as_a_secret_which_it_does_not_show(tmp_path, monkeypatch):
    """What `sky jobs launch --secret WANDB_API_KEY task.yaml` does."""
    train = load_in_skypilot(task_of("vast"), tmp_path, monkeypatch).tasks[0]
    train.update_secrets([(Env.WANDB_KEY, "k0" * 20)])
    assert train.secrets[Env.WANDB_KEY].get_secret_value() == "k0" * 20
    assert Env.WANDB_KEY not in train.envs
    assert "k0" * 20 not in str(train.to_yaml_config(use_user_specified_yaml=True)) + repr(train)


def test_skypilot_understands_nodes_regions_and_slurm(tmp_path, monkeypatch):
    two = load_in_skypilot(example_task("gcp/us-east5", "train.global_batch_size=64"), tmp_path, monkeypatch)
    (resources,) = two.tasks[0].resources
    assert (two.tasks[0].num_nodes, resources.region, resources.accelerators) == (2, "us-east5", {"H100": 8})
    assert not resources.use_spot
    slurm = load_in_skypilot(example_task("slurm"), tmp_path, monkeypatch)
    (resources,) = slurm.tasks[0].resources
    assert str(resources.cloud) == "Slurm"


def test_each_golden_task_passes_lint():
    clean = {name: lint(task_of(name)) for name in TASKS}
    assert clean["local"] == clean["vast"] == clean["vast-on-demand"] == []
    for name in ("azure", "gcp"):
        assert {found.place.split(".")[-1] for found in clean[name]} == {Env.PRICE}


@pytest.mark.parametrize("infra", [candidate.infra for candidate in example_recipe().hardware.train])
def test_every_candidate_of_the_example_renders(infra):
    assert example_task(infra, "train.global_batch_size=64").text
