"""The task that prepares a text on several nodes: what SkyPilot reads, and what its nodes type."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.render import leftover_nulls

TEMPLATE = Path(__file__).resolve().parent.parent / "sky" / "prepare.yaml"
ENVS = {"LDLM_STORE": "s3://bucket/ldlm", "LDLM_SOURCE": "s3://bucket/web/**/*.jsonl.gz; reboot",
        "LDLM_TOKENIZER": "Qwen/Qwen3.6-27B", "LDLM_OUT": "shards:web", "LDLM_TEXT_KEY": "the text",
        "LDLM_HELDOUT": "0.001"}


def filled() -> dict[str, Any]:
    document = yaml.safe_load(TEMPLATE.read_text())
    document |= {"workdir": "/checkout", "num_nodes": 4, "envs": ENVS}
    document["resources"] |= {"infra": "gcp/us-central1", "cpus": "16+", "use_spot": True, "disk_size": 100}
    del document["resources"]["image_id"]
    return document


def test_every_value_is_a_hole():
    assert set(leftover_nulls(yaml.safe_load(TEMPLATE.read_text()))) == {
        "workdir", "num_nodes", *(f"resources.{key}" for key in ("infra", "cpus", "use_spot", "image_id",
                                                                 "disk_size")),
        *(f"envs.{key}" for key in ENVS)}
    assert list(leftover_nulls(filled())) == []


def test_skypilot_understands_what_was_meant(tmp_path, monkeypatch):
    # The folder sky/ of the checkout passes for a package of that name: only sky.Task tells.
    monkeypatch.setenv("HOME", str(tmp_path))
    sky = pytest.importorskip("sky")
    if not hasattr(sky, "Task"):
        pytest.skip("SkyPilot is not installed")
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump(filled()))
    task = sky.Task.from_yaml(str(path))
    (resources,) = task.resources
    assert (task.name, task.num_nodes, task.workdir) == ("prepare", 4, "/checkout")
    assert (str(resources.cloud), resources.region, resources.cpus, resources.use_spot) == (
        "GCP", "us-central1", "16+", True)
    assert resources.accelerators is None
    assert resources.job_recovery == {"strategy": "FAILOVER", "max_restarts_on_errors": 2}
    assert task.envs == ENVS


def test_a_node_types_its_share_and_values_stay_whole_words(tmp_path):
    python = tmp_path / ".venv-train" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env python3\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n')
    python.chmod(0o755)
    node = {"SKYPILOT_NODE_RANK": "3", "SKYPILOT_NUM_NODES": "4"}
    done = subprocess.run(["bash", "-c", filled()["run"]], cwd=tmp_path, capture_output=True, text=True,
                          check=True, env=os.environ | ENVS | node)
    assert json.loads(done.stdout) == [
        "-m", "trainer.prepare", ENVS["LDLM_SOURCE"], "--tokenizer", "Qwen/Qwen3.6-27B",
        "--out", "shards:web", "--text-key", "the text", "--heldout", "0.001", "--shard", "3/4"]
