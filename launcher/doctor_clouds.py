"""What the doctor looks at of each cloud: its package, credentials, Vast's prepaid credit, spot quota.

Quota is asked through each cloud's own command, which SkyPilot needs too; it knows who is signed in, and it
can be cut off where it hangs.
"""

import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from launcher.console import dollars
from launcher.engine import has_credentials, missing_access
from launcher.findings import Finding, Verdict
from launcher.offers import Offer
from launcher.plan import Plan
from launcher.self_end import self_end
from launcher.settings import api_server
from launcher.sky_ready import RENTED
from launcher.vast_credit import BILLING

_TITLES = {"vast": "Vast", "azure": "Azure", "gcp": "GCP", "slurm": "Slurm"}
_TIMEOUT_S = 20.0
# vCPUs of the machines that Azure rents with so many GPUs: NC40ads/NC80adis H100 v5, NC24/48/96ads A100 v4.
_AZURE_CORES = {"H100:1": 40, "H100:2": 80, "H100:8": 96, "A100-80GB:1": 24, "A100-80GB:2": 48,
                "A100-80GB:4": 96, "A100-80GB:8": 96}
_ONE_H100 = 40


def look_at_access(name: str, *, needed: bool) -> Iterator[Finding]:
    """Package and credentials of a cloud.

    Args:
        name: `vast`, `azure`, `gcp` or `slurm`.
        needed: Where nobody asked for this cloud, having nothing of it is no problem.
    """
    what = _TITLES[name]
    lacks = list(missing_access(name))
    for error in lacks:
        verdict = Verdict.PROBLEM if needed or has_credentials(name) else Verdict.NOT_CHECKED
        yield Finding(what, verdict, error.problem, error.fix or "")
    if lacks:
        return
    if api_server():
        yield Finding(what, Verdict.NOT_CHECKED, "package and credentials are on the API server's machine",
                      f".venv/bin/sky check {name}")
    else:
        yield Finding(what, Verdict.OK, f"package and credentials are here (slower: sky check {name})")


def look_at_renting(store: str) -> Iterator[Finding]:
    """Whether there is any cloud to rent at, for who keeps runs in a bucket and has named no cloud.

    Args:
        store: URL.
    """
    has_any = any(has_credentials(name) for name in (*RENTED, "slurm"))
    if has_any or store.startswith("file:") or api_server():
        return
    yield Finding("renting", Verdict.PROBLEM,
                  "runs are kept in a bucket, and no cloud's credentials are here: nothing can be rented",
                  "ldlm doctor --infra vast (or azure, gcp) says what it takes")


def look_at_switch(name: str) -> Iterator[Finding]:
    """What a cloud's machines do when their controller has died; nothing where nobody bills them."""
    if how := self_end(name):
        yield Finding(f"{_TITLES[name]} switch", Verdict.NOT_CHECKED, how, "ldlm sweep finds what is left")


def look_at_credit(plan: Plan | None) -> Iterator[Finding]:
    """What is left of Vast's prepaid credit, beside what the plan would spend there.

    Vast stops machines at zero, and deletes them later. Its SDK finds the key as it does for SkyPilot.
    """
    what = "Vast credit"
    try:
        sdk: Any = importlib.import_module("vastai")
        credit = Decimal(str(sdk.VastAI(retry=1, quiet=True).show_user()["credit"]))
    except ImportError:
        yield Finding(what, Verdict.NOT_CHECKED, "Vast's package is not installed",
                      "make .venv")
    except Exception as error:  # noqa: BLE001  requests' own text may hold the key
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            yield Finding(what, Verdict.PROBLEM, f"Vast does not take the key (HTTP {status})",
                          "write a new one to ~/.config/vastai/vast_api_key: https://cloud.vast.ai/manage-keys")
        else:
            yield Finding(what, Verdict.NOT_CHECKED,
                          f"Vast did not say ({f'HTTP {status}' if status else type(error).__name__})",
                          "vastai show user")
    else:
        yield _beside(credit, plan)


def _beside(credit: Decimal, plan: Plan | None) -> Finding:
    """Credit is judged by the high end of the estimate, by the cap where there is none."""
    add = f"add credit, or let Vast do it by itself: {BILLING}"
    if plan is None or "vast" not in plan.clouds:
        verdict = Verdict.OK if credit > 0 else Verdict.PROBLEM
        return Finding("Vast credit", verdict, f"{dollars(credit, 2)} prepaid", "" if credit > 0 else add)
    need, name = ((plan.usd.high, "p90") if plan.usd else (plan.max_cost_usd, "cap"))
    detail = f"{dollars(credit, 2)} prepaid, {plan.recipe} may take {dollars(need, 2)} ({name})"
    if credit < need:
        return Finding("Vast credit", Verdict.PROBLEM, detail, add)
    return Finding("Vast credit", Verdict.OK, detail)


def look_at_azure_quota(offer: Offer | None, region: str | None) -> Iterator[Finding]:
    """The pool of vCPUs that all spot machines of a region share; it starts too small for one H100.

    Args:
        offer: What the plan rents at Azure; None: one H100 is compared.
        region: Azure's name of it; None where nobody has said.
    """
    what = "Azure quota"
    command = ("az", "vm", "list-usage", "--location", region or "REGION", "--output", "json")
    usages = _asked(what, command, region, "azure")
    if isinstance(usages, Finding):
        yield usages
        return
    found = next((one for one in usages if one["name"]["value"] == "lowPriorityCores"), None)
    if found is None:
        yield Finding(what, Verdict.NOT_CHECKED, f"{region} names no lowPriorityCores", shlex.join(command))
        return
    free = int(found["limit"]) - int(found["currentValue"])
    need = _ONE_H100 if offer is None else _AZURE_CORES.get(offer.accelerators or "")
    nodes = offer.num_nodes if offer else 1
    words = f"{free} of {found['limit']} spot vCPUs are free in {region}"
    if need is None:
        yield Finding(what, Verdict.OK, words)
    elif free < need * nodes:
        yield Finding(what, Verdict.PROBLEM, f"{words}; {offer.hardware if offer else 'one H100'} takes "
                      f"{need * nodes}", "ask for more, which takes days: https://portal.azure.com, Quotas, "
                      "Compute, Total Regional Low-priority vCPUs")
    else:
        yield Finding(what, Verdict.OK, f"{words}; {need * nodes} are needed")


def look_at_gcp_quota(offer: Offer | None, region: str | None) -> Iterator[Finding]:
    """How many GPUs of the plan's kind a region grants.

    Args:
        offer: What the plan rents at GCP; without one there is no kind to look for.
        region: GCP's name of it; None where nobody has said.
    """
    what = "GCP quota"
    command = ("gcloud", "compute", "regions", "describe", region or "REGION", "--format", "json(quotas)")
    quotas = _asked(what, command, region, "gcp")
    if isinstance(quotas, Finding):
        yield quotas
        return
    limits = {one["metric"]: int(one["limit"] - one["usage"]) for one in quotas["quotas"]}
    kinds = {name: free for name, free in limits.items() if name.startswith("PREEMPTIBLE_NVIDIA_") and free}
    if offer is None or not offer.gpu:
        spot = ", ".join(f"{free} {name.removeprefix('PREEMPTIBLE_NVIDIA_')}" for name, free in kinds.items())
        yield Finding(what, Verdict.OK, f"spot in {region}: {spot or 'no GPU at all'}")
        return
    metric = f"{'PREEMPTIBLE_' if offer.spot else ''}NVIDIA_{offer.gpu.replace('-', '_').upper()}_GPUS"
    need = offer.num_gpus * offer.num_nodes
    if metric not in limits:
        yield Finding(what, Verdict.NOT_CHECKED, f"{region} has no quota named {metric}", shlex.join(command))
    elif limits[metric] < need:
        yield Finding(what, Verdict.PROBLEM, f"{limits[metric]} {metric} are free in {region}, {need} needed",
                      "ask for more: https://console.cloud.google.com/iam-admin/quotas")
    else:
        yield Finding(what, Verdict.OK, f"{limits[metric]} {metric} are free in {region}, {need} needed")


def _asked(what: str, command: Sequence[str], region: str | None, name: str) -> Any:
    """The JSON that a cloud's command prints, or a Finding that says why there is none."""
    typed = shlex.join(command)
    program = shutil.which(command[0]) or shutil.which(command[0], path=str(Path(sys.executable).parent))
    if program is None:
        return Finding(what, Verdict.NOT_CHECKED, f"{command[0]} is not installed here", typed)
    if region is None:
        return Finding(what, Verdict.NOT_CHECKED, "no region is named", f"add --infra {name}/REGION")
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=_TIMEOUT_S,
                              check=True, stdin=subprocess.DEVNULL)
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Finding(what, Verdict.NOT_CHECKED, f"{command[0]} took longer than {_TIMEOUT_S:g} s", typed)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return Finding(what, Verdict.NOT_CHECKED, f"{command[0]} failed ({type(error).__name__})", typed)
