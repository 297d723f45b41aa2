"""Which clusters in SkyPilot's own records are ours, and what they cost by its own catalogs.

As `sky_catalogs.py` does, it runs beside catalogs of our own: a program that writes records as SkyPilot does.
"""

import json
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


def main() -> None:
    """Beside catalogs: write the clusters as SkyPilot does, ask for ours."""
    from sky.backends import cloud_vm_ray_backend

    from launcher.sky_clusters import clusters
    from sky import Resources, clouds, global_user_state

    def resources_of(wanted: dict[str, Any]) -> Any:
        cloud, _, region = wanted.pop("infra").partition("/")
        return Resources(cloud=getattr(clouds, {"gcp": "GCP", "azure": "Azure", "vast": "Vast"}[cloud])(),
                         region=region or None, **wanted)

    for name, wanted, num_nodes, envs in json.loads(Path("request.json").read_text())["clusters"]:
        handle = cloud_vm_ray_backend.CloudVmRayResourceHandle(
            cluster_name=name, cluster_name_on_cloud=f"{name}-0f3a9c", cluster_yaml=None,
            launched_nodes=num_nodes, launched_resources=resources_of(wanted))
        global_user_state.add_or_update_cluster(name, handle, None, ready=True, is_managed=True,
                                                task_config={"envs": envs} if envs else None)
    Path("answer.json").write_text(json.dumps(clusters()))


if __name__ == "__main__":
    main()
