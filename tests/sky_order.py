"""A program that asks SkyPilot for machine after machine, each taken to have none, as its failover does.

For each task it writes what SkyPilot would rent, in its order, and what its managed jobs make of the task's
`job_recovery`; or how SkyPilot refuses. `sky_catalogs` runs it.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from sky.backends import cloud_vm_ray_backend
from sky.clouds import CloudCapability
from sky.jobs import recovery_strategy
from sky.server import plugins
from sky.utils import dag_utils
from sky_catalogs import CLOUDS

import sky
from launcher.sky_plugin import LdlmPlugin
from sky import check, exceptions, global_user_state


def in_order(text: str) -> list[list[Any]]:
    """Cloud, region, GPUs and spot of every machine that a task may be given."""
    found, taken = [], set[Any]()
    while True:
        dag = dag_utils.load_chain_dag_from_yaml_str(text)
        try:
            (task,) = sky.Optimizer.optimize(dag, blocked_resources=taken, quiet=True).tasks
        except exceptions.ResourcesUnavailableError:
            if not found:
                raise
            return found
        best = task.best_resources
        found.append([str(best.cloud).lower(), best.region, best.accelerators, best.use_spot])
        taken.add(best)


def recovery(text: str) -> list[Any]:
    """Strategy, exit codes and restarts, as the jobs controller reads them: the same of all candidates."""
    (task,) = dag_utils.load_chain_dag_from_yaml_str(text).tasks
    made = recovery_strategy.StrategyExecutor.make(
        "c-1", cloud_vm_ray_backend.CloudVmRayBackend(), task, 1, 0, None, set(), asyncio.Lock(),
        asyncio.Condition())
    return [type(made).__name__, made.recover_on_exit_codes, made.max_restarts_on_errors]


def answer() -> None:
    """Answer for each task of the request, as SkyPilot does where our plugin is in it."""
    LdlmPlugin().install(plugins.ExtensionContext(context=plugins.PluginContext.EXECUTOR))
    request = json.loads(Path("request.json").read_text())
    global_user_state.set_allowed_clouds(list(CLOUDS), "default")
    global_user_state.set_enabled_clouds(request["clouds"], CloudCapability.COMPUTE, "default")
    # Clouds are looked at once more where a task names one that is not enabled: here nothing is new.
    check.check_capability = lambda *_, **__: None
    found: dict[str, Any] = {}
    for name, text in request["tasks"].items():
        try:
            found[name] = {"order": in_order(text), "recovery": recovery(text)}
        except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
            found[name] = {"error": [type(error).__name__, str(error)]}
    Path("answer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    answer()
