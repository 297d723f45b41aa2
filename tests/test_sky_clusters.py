"""Which clusters in SkyPilot's own records are ours, and what they cost by its own catalogs.

As `sky_catalogs.py` does, it runs beside catalogs of our own: a program that writes records as SkyPilot does.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sky_catalogs import run_beside_catalogs

pytest.importorskip("sky.jobs.state")

OURS = {"LDLM_STORE": "s3://bucket/ldlm", "LDLM_RUN_ID": "a-run"}
LONG = "a-very-long-run-id-that-somebody-has-typed-in"  # which SkyPilot 0.14.1 shortens as below
A_DAY_OF_H100_IN_GCP = 24 * 6.33  # spot, tests/catalogs; two nodes of it in the test


def test_only_clusters_that_were_made_for_tasks_of_ours_are_told_of(tmp_path: Path) -> None:
    gcp = {"infra": "gcp/us-central1", "instance_type": "a3-highgpu-1g", "use_spot": True,
           "accelerators": {"H100": 1}}
    azure = {"infra": "azure/southeastasia", "instance_type": "Standard_NC40ads_H100_v5", "use_spot": True}
    vast = {"infra": "vast", "instance_type": "1x-RTX_5090-32-65536"}
    prepare = {"LDLM_STORE": "s3://bucket/ldlm"}
    answer = run_beside_catalogs(__file__, {"clusters": [
        ["train-3", gcp, 2, OURS], ["bench-4", azure, 1, OURS], ["prepare-5", azure, 1, prepare],
        ["train-6", gcp, 1, {"THEIR_STORE": "x"}], ["train-7", gcp, 1, None], ["train-mine", gcp, 1, OURS],
        ["my-train-8", gcp, 1, OURS], ["train-9", vast, 1, OURS], ["a-run-10", gcp, 1, OURS],
        ["a-very-long-run-id-tha-sd-11", gcp, 1, OURS | {"LDLM_RUN_ID": LONG}]]}, tmp_path)
    assert [(one["instance_id"], one["cloud"], one["kind"], one["run_id"], one["job"], one["status"])
            for one in sorted(answer["machines"], key=lambda one: one["job"])] == [
        ("train-3", "gcp", "cluster", "a-run", 3, "UP"), ("bench-4", "azure", "cluster", "a-run", 4, "UP"),
        ("prepare-5", "azure", "cluster", None, 5, "UP"), ("a-run-10", "gcp", "cluster", "a-run", 10, "UP"),
        ("a-very-long-run-id-tha-sd-11", "gcp", "cluster", LONG, 11, "UP")]
    (two_nodes,) = [one for one in answer["machines"] if one["job"] == 3]
    assert 24 * float(two_nodes["usd_per_hour"]) == pytest.approx(2 * A_DAY_OF_H100_IN_GCP)


def test_the_cost_report_of_a_run_has_its_clusters_also_those_that_are_gone(tmp_path: Path) -> None:
    gcp = {"infra": "gcp/us-central1", "instance_type": "a3-highgpu-1g", "use_spot": True,
           "accelerators": {"H100": 1}}
    vast = {"infra": "vast", "instance_type": "1x-RTX_5090-32-65536"}
    answer = run_beside_catalogs(__file__, {
        "costs_of": "a-run", "gone": ["train-3"], "hours": 2, "clusters": [
            ["train-3", gcp, 1, OURS], ["train-3", gcp, 2, OURS], ["bench-3", gcp, 1, OURS],
            ["train-4", gcp, 1, OURS | {"LDLM_RUN_ID": "another"}], ["train-9", vast, 1, OURS],
            ["my-notebook", gcp, 1, None]]}, tmp_path)
    found = {one["instance_id"]: float(one["usd"]) for one in answer["charges"]}
    # Two hours each at $6.33; train-3 was made twice, the second time of two nodes.
    assert found == {"train-3": pytest.approx(6 * 6.33, rel=0.01),
                     "bench-3": pytest.approx(2 * 6.33, rel=0.01)}


def main() -> None:
    """Beside catalogs: write the clusters as SkyPilot does, ask for ours."""
    from sky.backends import cloud_vm_ray_backend

    from launcher.sky_clusters import clusters, costs
    from sky import Resources, clouds, global_user_state

    request = json.loads(Path("request.json").read_text())
    since = int(time.time()) - 3600 * request.get("hours", 0)

    def resources_of(wanted: dict[str, Any]) -> Any:
        cloud, _, region = wanted.pop("infra").partition("/")
        return Resources(cloud=getattr(clouds, {"gcp": "GCP", "azure": "Azure", "vast": "Vast"}[cloud])(),
                         region=region or None, **wanted)

    for name, wanted, num_nodes, envs in request["clusters"]:
        if name in request.get("gone", ()) and global_user_state.get_cluster_from_name(name):
            global_user_state.remove_cluster(name, terminate=True)
        handle = cloud_vm_ray_backend.CloudVmRayResourceHandle(
            cluster_name=name, cluster_name_on_cloud=f"{name}-0f3a9c", cluster_yaml=None,
            launched_nodes=num_nodes, launched_resources=resources_of(wanted))
        global_user_state.add_or_update_cluster(name, handle, None, ready=True, is_managed=True,
                                                task_config={"envs": envs} if envs else None)
        if "hours" in request:
            number = global_user_state._get_hash_for_existing_cluster(name)
            global_user_state._set_cluster_usage_intervals(number, [(since, None)])
    answer = costs(request["costs_of"], since) if "costs_of" in request else clusters()
    Path("answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
