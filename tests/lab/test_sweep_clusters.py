"""`ldlm sweep` and clusters of the real SkyPilot: what no live job owns is shown and taken down, no other is.

Nodes of the lab's Slurm cluster; `make lab` starts and ends what they need.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.runs import LAB, ldlm, running_store, wait_for

pytestmark = pytest.mark.lab
OURS = "--env LDLM_STORE=s3://bucket/ldlm --env LDLM_RUN_ID=sweep-lost"
PIPELINE = """\
name: sweep-live
---
name: train
resources: {infra: slurm/ldlm, cpus: 1}
envs: {LDLM_STORE: 's3://bucket/ldlm', LDLM_RUN_ID: sweep-live}
run: sleep 1000
---
name: bench
resources: {infra: slurm/ldlm, cpus: 1}
run: exit 0
"""


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with running_store() as url:
        yield url


def sky(words: str) -> str:
    """What SkyPilot's command line says, in the lab's environment."""
    done = subprocess.run(["bash", "-c", f". {LAB}/env.sh && cd && sky {words}"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=600)
    assert done.returncode == 0, done.stdout
    return done.stdout


def slurm_jobs() -> str:
    """Names of what runs on the cluster: what Slurm itself would be billed for."""
    return subprocess.run(["bash", "-c", f". {LAB}/env.sh && squeue -h -t RUNNING -o %j"], text=True,
                          capture_output=True, check=True, timeout=60).stdout


def test_a_cluster_without_a_live_job_is_taken_down_and_one_with_it_or_another_name_is_not(
        store: str, tmp_path: Path) -> None:
    (tmp_path / "live.yaml").write_text(PIPELINE)
    sky(f"jobs launch -y -d {tmp_path}/live.yaml")
    sky(f"launch -y -d -c train-99 --infra slurm/ldlm --cpus 1 {OURS} 'sleep 1000'")
    sky("launch -y -d -c my-notebook --infra slurm/ldlm --cpus 1 'sleep 1000'")
    wait_for(lambda: "RUNNING" in sky("jobs queue"), "the live job")

    (shown,) = json.loads(ldlm("sweep", "--json").stdout)
    assert shown["label"].startswith("train-99-")
    assert [shown[key] for key in ("instance_id", "cloud", "kind", "run_id", "status")] == [
        "train-99", "slurm", "cluster", "sweep-lost", "UP"]
    refused = ldlm("sweep")
    assert refused.returncode == 1 and "nobody is here to answer" in refused.stderr
    assert "train-99" in slurm_jobs()
    done = ldlm("sweep", "--yes")
    assert done.returncode == 0 and "gave back 1 machine, $" in done.stdout, done.stderr
    wait_for(lambda: "train-99" not in slurm_jobs(), "Slurm to end it")
    assert "my-notebook" in slurm_jobs() and "RUNNING" in sky("jobs queue")
    # "no machine" where this server was asked about Vast, too: by tests before this one.
    assert re.search("no (cluster|machine) is without a run; 1 machine is in use", ldlm("sweep").stdout)
    sky("jobs cancel -y -n sweep-live")
    sky("down -y my-notebook")
    wait_for(lambda: not slurm_jobs(), "the cluster to be empty")
