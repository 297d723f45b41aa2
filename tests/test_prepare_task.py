"""The task that prepares a text on several nodes: what SkyPilot reads, and what its nodes type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.errors import UsageError
from launcher.lint import lint
from launcher.prepare_nodes import propose
from launcher.render import Task, leftover_nulls

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "sky" / "prepare.yaml"
SOURCE = "s3://bucket/web/**/*.jsonl.gz; reboot"
ENVS = {"LDLM_STORE": "s3://bucket/ldlm", "LDLM_SOURCE": SOURCE, "LDLM_TOKENIZER": "Qwen/Qwen3.6-27B",
        "LDLM_REVISION": "v1 x", "LDLM_OUT": "shards:web", "LDLM_TEXT_KEY": "the text",
        "LDLM_HELDOUT": "0.001", "LDLM_PROCESSES": "3"}
TYPED = [SOURCE, "--tokenizer", "Qwen/Qwen3.6-27B", "--revision", "v1 x", "--out", "shards:web",
         "--text-key", "the text", "--heldout", "0.001", "--processes", "3"]


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A store in a cloud, no key for it, and nobody asked how large the text is."""
    monkeypatch.setenv("LDLM_STORE", "s3://bucket/ldlm")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VAST_API_KEY", raising=False)


def ldlm(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    code = "from launcher.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, "data", "prepare", *arguments], text=True, cwd=cwd,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120,
                          stdin=subprocess.DEVNULL)


def rendered(monkeypatch: pytest.MonkeyPatch, *more: str) -> Task:
    monkeypatch.setattr("launcher.prepare_nodes._num_bytes", lambda source: None)
    return propose([*TYPED, *more]).task


def test_every_value_is_a_hole():
    assert set(leftover_nulls(yaml.safe_load(TEMPLATE.read_text()))) == {
        "workdir", "num_nodes", "config", *(f"envs.{key}" for key in ENVS),
        *(f"resources.{key}" for key in ("infra", "cpus", "use_spot", "image_id", "disk_size",
                                              "max_hourly_cost"))}


@pytest.mark.parametrize(("infra", "nodes", "cloud", "region", "spot"), [
    ("gcp/us-central1", 4, "GCP", "us-central1", True), ("azure", 2, "Azure", None, True),
    ("vast", 1, "Vast", None, False), ("local", 3, None, None, False)])
def test_skypilot_understands_what_was_meant(tmp_path, monkeypatch, infra, nodes, cloud, region, spot):
    # The folder sky/ of the checkout passes for a package of that name: only sky.Task tells.
    sky = pytest.importorskip("sky")
    if not hasattr(sky, "Task"):
        pytest.skip("SkyPilot is not installed")
    from sky.utils import dag_utils

    path = tmp_path / "task.yaml"
    path.write_text(rendered(monkeypatch, "--nodes", str(nodes), "--infra", infra).text)
    dag = dag_utils.load_chain_dag_from_yaml(str(path))
    (task,) = dag.tasks
    (resources,) = task.resources
    assert (dag.name, task.name, task.num_nodes, task.workdir) == ("prepare", "prepare", nodes, str(ROOT))
    assert (str(resources.cloud) if resources.cloud else None, resources.region) == (cloud, region)
    assert (resources.cpus, resources.use_spot) == (None if infra == "local" else "8+", spot)
    assert resources.accelerators is None
    assert resources.job_recovery == {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 2}
    assert task.envs == ENVS


@pytest.mark.parametrize(("infra", "nodes", "traps"), [
    ("gcp", 4, []), ("azure", 1, []), ("vast", 1, []), ("local", 5, []),
    ("vast", 2, ["SkyPilot has no clusters on vast"])])
def test_no_known_trap_is_in_the_task_but_a_cluster_on_vast(monkeypatch, infra, nodes, traps):
    task = rendered(monkeypatch, "--nodes", str(nodes), "--infra", infra)
    assert [found.problem for found in lint(task)] == traps


def test_a_dry_run_prints_the_task_and_starts_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    done = ldlm("a.txt", "--tokenizer", "x/y", "--out", "./out", "--nodes=3", "--dry-run", cwd=tmp_path)
    header, document = yaml.safe_load_all(done.stdout)
    assert (done.returncode, done.stderr, header) == (0, "", {"name": "prepare"})
    assert document["num_nodes"] == 3 and "infra" not in document["resources"]
    assert document["envs"]["LDLM_SOURCE"] == str(tmp_path / "a.txt")
    assert document["envs"]["LDLM_OUT"] == f"file://{tmp_path}/out"
    assert not (tmp_path / "out").exists()


def test_with_all_that_a_cloud_needs_nothing_is_prepared_here_instead(tmp_path):
    (tmp_path / ".config/vastai").mkdir(parents=True)
    (tmp_path / ".config/vastai/vast_api_key").write_text("key")
    done = ldlm("python-docs", *TYPED[1:], "--nodes", "1", "--infra", "vast", "--yes")
    words = " ".join(done.stderr.split())
    assert done.returncode == 5 and "prepared by" not in done.stdout
    assert "--infra vast: ldlm does not rent the nodes that prepare a text on vast" in words
    assert "fix: leave out --infra and N nodes here do it; or print the task" in words


def test_a_cloud_gets_a_plan_and_then_what_is_missing():
    done = ldlm("hf://owner/name", *TYPED[1:], "--nodes", "4", "--infra", "gcp", "--yes")
    assert done.returncode == 5 and "Traceback" not in done.stderr
    for words in ("4 x 8+ CPUs on gcp (spot)", "hf://owner/name", "shards:web in s3://bucket/ldlm",
                  "its size is not known yet", "no cloud is asked for prices"):
        assert words in done.stdout
    assert "error: --infra" in done.stderr and "fix: " in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_time_is_told_by_the_size_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 6_000_000)
    done = ldlm(str(tmp_path / "a.txt"), "--tokenizer", "x/y", "--out", str(tmp_path / "out"), "--nodes", "2")
    # 6 MB of 4 bytes a token, at 1.5 M tokens a second; two nodes on one machine are no faster than one.
    assert "about 1 s for ~1.5 M tokens" in done.stdout and "nothing is rented" in done.stdout
    assert done.returncode == 1 and "add --yes" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "place", "fix"), [
    ({0: "TMP/a.txt"}, "SOURCE", "hf://owner/name"), ({0: "hf:///folder"}, "SOURCE", "object storage"),
    ({6: "./out"}, "--out", "s3://"), ({6: "file:///out"}, "--out", "s3://"),
    ({2: "TMP/model"}, "--tokenizer", "owner/name")])
def test_what_rented_nodes_cannot_reach_is_refused_with_a_way_out(tmp_path, change, place, fix):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    typed = [change.get(index, word).replace("TMP", str(tmp_path)) for index, word in enumerate(TYPED)]
    with pytest.raises(UsageError, match="where rented nodes cannot reach it") as caught:
        propose([*typed, "--nodes", "2", "--infra", "azure"])
    assert caught.value.place == place and fix in (caught.value.fix or "")


@pytest.mark.parametrize(("store", "words"), [("", "which one is not said"), ("/store", "cannot reach it")])
def test_a_store_that_rented_nodes_cannot_reach_is_refused(monkeypatch, store, words):
    monkeypatch.setenv("LDLM_STORE", store)
    with pytest.raises(UsageError, match=words) as caught:
        propose([*TYPED, "--nodes", "2", "--infra", "gcp"])
    assert "s3://" in (caught.value.fix or "")


def test_a_cluster_on_vast_is_refused_by_the_option_that_asked_for_it():
    for more, code in ((["--dry-run"], 0), ([], 4)):
        done = ldlm("hf://owner/name", *TYPED[1:], "--nodes", "2", "--infra", "vast", *more)
        assert done.returncode == code
        assert "SkyPilot has no clusters on vast" in done.stderr and "set --nodes to 1" in done.stderr


@pytest.mark.parametrize(("more", "words"), [
    (["--nodes", "0"], "positive number"), (["--nodes", "2", "--restart"], "do not go with --nodes"),
    (["--nodes", "2", "--shard", "0/2"], "do not go with --nodes"), (["--nodes", "2", "--json"], "do not go"),
    (["--nodes", "2", "--infra", "moon"], "'moon' is no infrastructure"),
    (["--nodes", "2", "--infra", "slurm/x"], "text is not prepared on slurm/x")])
def test_a_wrong_option_is_a_usage_error(more, words):
    done = ldlm("hf://owner/name", *TYPED[1:], *more)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_node_types_its_share_and_values_stay_whole_words(tmp_path):
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n')
    python.chmod(0o755)
    node = {"SKYPILOT_NODE_RANK": "3", "SKYPILOT_NUM_NODES": "4"}
    run = yaml.safe_load(TEMPLATE.read_text())["run"]
    done = subprocess.run(["bash", "-c", run], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | ENVS | node)
    assert json.loads(done.stdout) == [
        "-m", "trainer.prepare", ENVS["LDLM_SOURCE"], "--tokenizer", "Qwen/Qwen3.6-27B", "--revision", "v1 x",
        "--out", "shards:web", "--text-key", "the text", "--heldout", "0.001", "--processes", "3",
        "--shard", "3/4"]


def test_its_nodes_ask_the_s3_that_this_machine_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    envs = propose([*TYPED, "--nodes", "2", "--infra", "gcp"]).task.documents()[1]["envs"]
    assert (envs["LDLM_STORE"], envs["LDLM_SOURCE"], envs["LDLM_OUT"]) == (
        "s3://bucket/ldlm?region=eu-central-1", f"{SOURCE}?region=eu-central-1", "shards:web")
    globbed = propose(["s3://bucket/web/part-?.txt", *TYPED[1:], "--nodes", "2", "--infra", "gcp"])
    assert globbed.task.documents()[1]["envs"]["LDLM_SOURCE"] == "s3://bucket/web/part-?.txt"
