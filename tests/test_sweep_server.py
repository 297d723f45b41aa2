"""`ldlm sweep` and clusters, through a real API server of SkyPilot: what it lists, and what it cannot end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_lab import LDLM, ROOT
from sky_catalogs import run_beside_catalogs
from sky_server_lab import end_all_of, free_port, running_sky_server, variables

pytest.importorskip("sky.jobs.state")
WRITER = Path(__file__).parent / "test_sky_clusters.py"  # as a program it writes records as SkyPilot does


def sweep(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*LDLM, "sweep", *words], env=environment, text=True, capture_output=True,
                          check=False, stdin=subprocess.DEVNULL, timeout=300)


def test_where_no_server_runs_one_is_started_here_and_said(tmp_path: Path) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky/plugins.yaml").write_text("plugins: [{class: launcher.sky_plugin.LdlmPlugin}]\n")
    port = free_port()
    environment = {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin", "PYTHONPATH": str(ROOT),
                   "LDLM_HOME": str(tmp_path / "ldlm")} | variables(tmp_path, port)
    try:
        done = sweep(environment, "--json")
    finally:
        end_all_of(tmp_path)
    assert f"starting SkyPilot's API server at http://127.0.0.1:{port}" in done.stderr
    assert json.loads(done.stdout) == [] and "does not answer" not in done.stderr.split("Vast")[0]


def test_a_cluster_that_its_cloud_cannot_be_asked_about_is_shown_and_named_when_it_is_not_ended(
        tmp_path: Path) -> None:
    gcp = {"infra": "gcp/us-central1", "instance_type": "a3-highgpu-1g", "accelerators": {"H100": 1}}
    run_beside_catalogs(str(WRITER), {"clusters": [
        ["train-99", gcp, 1, {"LDLM_STORE": "s3://bucket/ldlm", "LDLM_RUN_ID": "lost"}],
        ["my-notebook", gcp, 1, {}]]}, tmp_path)
    (tmp_path / ".sky/plugins.yaml").write_text("plugins: [{class: launcher.sky_plugin.LdlmPlugin}]\n")
    port = free_port()
    environment = {"PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin",
                   "LDLM_HOME": str(tmp_path / "ldlm")} | variables(tmp_path, port)
    with running_sky_server(tmp_path, port):
        (shown,) = json.loads(sweep(environment, "--json").stdout)
        assert [shown[key] for key in ("instance_id", "label", "cloud", "kind", "run_id", "usd_per_day")] == [
            "train-99", "train-99-0f3a9c", "gcp", "cluster", "lost", f"{24 * 11.06:.4f}"]
        failed = sweep(environment, "--yes")
        assert failed.returncode == 5 and "1 of 1 machine could not be given back" in failed.stderr
        assert "train-99: " in failed.stderr and "sky down NAME" in failed.stderr
        assert "my-notebook" not in failed.stdout + failed.stderr
