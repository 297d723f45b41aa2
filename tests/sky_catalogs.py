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

CATALOGS = Path(__file__).parent / "catalogs"
CLOUDS = ("vast", "azure", "gcp")


def optimized(tasks: Mapping[str, str], folder: Path, clouds: tuple[str, ...] = CLOUDS) -> dict[str, Any]:
    """Let SkyPilot load tasks and choose machines for them.

    Args:
        tasks: YAML texts by any name.
        folder: Becomes its home.
        clouds: Those that are enabled.

    Returns:
        By name: a list of what was chosen, one mapping per document, or the type and text of an error.
    """
    shutil.copytree(CATALOGS, folder / ".sky" / "catalogs")
    (folder / ".sky" / "config.yaml").write_text(json.dumps({"allowed_clouds": CLOUDS}))
    (folder / "request.json").write_text(json.dumps({"clouds": clouds, "tasks": dict(tasks)}))
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run([sys.executable, __file__], cwd=folder, capture_output=True, text=True, timeout=180,
                          env={"HOME": str(folder), "PATH": os.environ["PATH"], **nowhere,
                               "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"})
    answer = folder / "answer.json"
    assert answer.is_file(), done.stderr
    return json.loads(answer.read_text())


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
            found[name] = [type(error).__name__, str(error)]
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
