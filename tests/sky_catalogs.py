"""The real SkyPilot with catalogs of our own: what its optimizer would rent, or how it refuses.

It runs in a process of its own, with a home of its own, the clouds enabled as `sky check` records them, no
credentials, no SDK of any cloud, and no network.

Catalogs: tests/catalogs/v8, a few rows of each cloud in SkyPilot's own columns, typed by hand. Prices in
dollars an hour: Vast on demand, January to October 2026 (its spot prices are 0.00 in the real file, too);
Azure's on demand 2026-11-09, spot of NC40ads as seen in Southeast Asia, any other spot price a guess; GCP's
2026-07-30, us-central1, but for H200 (2026-10-13) and L4 (a guess).
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import LdlmError
from launcher.recipe import checkout_folder

CATALOGS = Path(__file__).parent / "catalogs"
CLOUDS = ("vast", "azure", "gcp")


def optimized(tasks: Mapping[str, str], folder: Path, clouds: tuple[str, ...] = CLOUDS) -> dict[str, Any]:
    """Let SkyPilot load tasks and choose machines for them.

    Args:
        tasks: YAML texts by any name.
        folder: Becomes its home.
        clouds: Those that are enabled.

    Returns:
        By name: a list of what was chosen, one mapping per document; or an error: its type, its text, and
        problem and fix in our words.
    """
    return run_beside_catalogs(__file__, {"clouds": clouds, "tasks": dict(tasks)}, folder)


def run_beside_catalogs(program: str, request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run a program that imports SkyPilot, whose home is a folder with our catalogs.

    It finds `request.json` in its working directory, and leaves `answer.json` there.
    """
    shutil.copytree(CATALOGS, folder / ".sky" / "catalogs")
    (folder / ".sky" / "config.yaml").write_text(json.dumps({"allowed_clouds": CLOUDS}))
    (folder / "request.json").write_text(json.dumps(request))
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    own = {"HOME": str(folder), "PYTHONPATH": str(checkout_folder()),
           "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, timeout=180,
                          env={"PATH": os.environ["PATH"], **nowhere, **own})
    answer = folder / "answer.json"
    assert answer.is_file(), done.stderr
    return json.loads(answer.read_text())


def error_of(error: Exception) -> list[str]:
    """An error of SkyPilot's: type, text, and problem and fix in our words."""
    from launcher.sky_errors import refusal

    ours = error if isinstance(error, LdlmError) else refusal(error)
    return [type(error).__name__, str(error), ours.problem, str(ours.fix)]


def _answer() -> None:
    from sky.clouds import CloudCapability
    from sky.utils import dag_utils

    import sky
    from sky import global_user_state

    request = json.loads(Path("request.json").read_text())
    global_user_state.set_allowed_clouds(list(CLOUDS), "default")
    global_user_state.set_enabled_clouds(request["clouds"], CloudCapability.COMPUTE, "default")
    found: dict[str, Any] = {}
    for name, text in request["tasks"].items():
        try:
            dag = sky.Optimizer.optimize(dag_utils.load_chain_dag_from_yaml_str(text), quiet=True)
            found[name] = [_chosen(task) for task in dag.tasks]
        except Exception as error:  # noqa: BLE001  whatever it is, it is the answer
            found[name] = error_of(error)
    Path("answer.json").write_text(json.dumps(found))


def _chosen(task: Any) -> dict[str, Any]:
    best = task.best_resources
    return {"document": task.name, "num_nodes": task.num_nodes, "cloud": str(best.cloud).lower(),
            "region": best.region, "instance": best.instance_type, "gpus": best.accelerators,
            "memory_gb": best.cloud.get_vcpus_mem_from_instance_type(best.instance_type)[1],
            "disk_gb": best.disk_size, "spot": best.use_spot,
            "images": sorted(set((best.image_id or {}).values()))}


if __name__ == "__main__":
    _answer()
