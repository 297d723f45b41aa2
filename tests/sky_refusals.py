"""A program that has SkyPilot's own code refuse what it refuses in renting; only clouds' answers are played.

It writes for each story the error's type and text, and problem and fix in our words. `sky_catalogs` runs it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sky.backends import backend_utils, cloud_vm_ray_backend
from sky.provision import docker_utils
from sky.provision.gcp import instance_utils
from sky.provision.vast import utils as vast_utils
from sky.server import plugins
from sky.utils import dag_utils
from sky_catalogs import error_of

import sky
from launcher.sky_engine import SkyEngine
from launcher.sky_plugin import LdlmPlugin
from sky import clouds, exceptions, optimizer
from trainer.store import open_store

TASK = "name: r\n---\nname: train\nresources: {infra: gcp, accelerators: 'H100:8', use_spot: true}\n"
# What GCP's API answers: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation
STOCK_OUT = [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message":
              "The zone 'us-central1-a' does not have enough resources available to fulfill the request."}]
QUOTA = [{"code": "QUOTA_EXCEEDED", "message":
          "Quota 'PREEMPTIBLE_NVIDIA_H100_GPUS' exceeded.  Limit: 0.0 in region us-central1."}]


def provisioner() -> cloud_vm_ray_backend.RetryingVmProvisioner:
    """What looks for a machine, place by place."""
    return cloud_vm_ray_backend.RetryingVmProvisioner(
        "logs", sky.Dag(), sky.OptimizeTarget.COST, set(), Path("wheel"), "0", extra_launch_context={})


def machine() -> sky.Resources:
    """Eight H100 of GCP, as the optimizer hands them on."""
    return sky.Resources(infra="gcp/us-central1", instance_type="a3-highgpu-8g", use_spot=True)


def rent() -> None:
    """Look for that machine."""
    provisioner()._retry_zones(
        machine(), 1, {machine()}, dryrun=False, stream_logs=False, cluster_name="c",
        cloud_user_identity=None, prev_cluster_status=None, prev_handle=None,
        prev_cluster_ever_up=False, skip_if_config_hash_matches=None, volume_mounts=None, task=sky.Task())


def no_quota() -> None:
    with patch.object(clouds.GCP, "check_quota_available", lambda *_: False):
        rent()


def old_credentials() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise exceptions.InvalidCloudCredentials("Token has been expired or revoked.")

    with (patch.object(clouds.GCP, "check_quota_available", lambda *_: True),
          patch.object(backend_utils, "write_cluster_config", refuse)):
        rent()


def gcp_answers(errors: list[dict[str, str]]) -> None:
    reason = instance_utils._format_and_log_message_from_errors(errors, None, "us-central1-a")
    raise exceptions.ResourcesUnavailableError(
        provisioner()._insufficient_resources_msg(machine(), {machine()}, None, reason))


def nothing_on_vast() -> None:
    with patch.object(vast_utils.vast, "vast", lambda: SimpleNamespace(search_offers=lambda query: [])):
        vast_utils.launch("c-head", "1x-RTX_5090-16-49152", "Texas, US, NA", 100, "image", None, False, False)


def no_image() -> None:
    """A host of the cloud answers as docker does; it has docker, and no container yet."""
    def run(command: str, **_: Any) -> tuple[int, str, str]:
        if "docker pull" in command:
            return 1, "", "manifest for me/mine:1 not found: manifest unknown"
        return 0, "/usr/bin/docker", ""

    config = {"image": "me/mine:1", "container_name": "sky_container"}
    docker = docker_utils.DockerInitializer(config, SimpleNamespace(run=run), "docker.log")
    docker.initialize()


def cloud_not_enabled() -> None:
    dag = dag_utils.load_chain_dag_from_yaml_str(TASK)
    def enabled(**_: Any) -> list[clouds.Cloud]:
        return [clouds.Vast()]

    with patch.object(optimizer.sky_check, "get_cached_enabled_clouds_or_refresh", enabled):
        optimizer._check_specified_clouds(dag)


def region_of_a_launch() -> None:
    """Before a run is recorded, our engine has SkyPilot read its task."""
    SkyEngine(open_store("file:///nowhere")).check(TASK.replace("gcp,", "gcp/us-centrl1,"))


def dear_everywhere(infra: str, cap: float, more: str = "") -> Callable[[], None]:
    """A launch asks whether any region sells a machine for what the plan pays."""
    candidate = f"{{infra: {infra}, accelerators: 'A100-80GB:8', use_spot: true, max_hourly_cost: {cap}}}"
    task = f"name: r\n---\nname: train\nnum_nodes: 2\nresources: {{ordered: [{candidate}{more}]}}\n"
    return lambda: SkyEngine(open_store("file:///nowhere")).check(task)


def dear_on_the_way() -> None:
    """The same where SkyPilot itself is asked."""
    LdlmPlugin().install(plugins.ExtensionContext(context=plugins.PluginContext.EXECUTOR))
    task = TASK.replace("'H100:8'", "'A100-80GB:8', max_hourly_cost: 9")
    dag = dag_utils.load_chain_dag_from_yaml_str(task)
    gcp = [clouds.GCP()]
    with patch.object(optimizer.sky_check, "get_cached_enabled_clouds_or_refresh", lambda *_, **__: gcp):
        sky.Optimizer.optimize(dag, quiet=True)


STORIES: dict[str, Callable[[], None]] = {
    "no quota": no_quota, "old credentials": old_credentials, "nothing on vast": nothing_on_vast,
    "no image": no_image, "cloud not enabled": cloud_not_enabled,
    "region of a launch": region_of_a_launch,
    "dear everywhere": dear_everywhere("gcp", 14.21),
    "dear in its region": dear_everywhere("gcp/us-central1", 22),
    "not too dear": dear_everywhere("gcp", 14.22),
    "dear but for another": dear_everywhere("gcp", 14.21, ", {infra: gcp, accelerators: 'H100:8'}"),
    "dear on the way": dear_on_the_way,
    "stock-out": lambda: gcp_answers(STOCK_OUT), "quota of gcp": lambda: gcp_answers(QUOTA)}


def _told(story: Callable[[], None]) -> list[str]:
    try:
        story()
    except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
        return error_of(error)
    return []


if __name__ == "__main__":
    Path("answer.json").write_text(json.dumps({name: _told(story) for name, story in STORIES.items()}))
