"""Clusters of ours that SkyPilot's API server has, or had: for `ldlm sweep`, and for `ldlm cost --reconcile`.
Part of our plugin in it.

SkyPilot names the cluster of a managed job after its task, or after the job where that has only one, and the
job's number, and tells clients nothing of such clusters. That one is ours is seen by the task that it was
made for: it carries variables of `Env`.
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import yaml

from launcher.reconcile import Charge, Charges
from launcher.sweep import PREPARE, Machines, RentedMachine
from trainer.contract import Document, Env

_DAY_S = 24 * 3600
_NAME = re.compile(r"(.+)-(\d+)")


def clusters(refresh: str = "") -> dict[str, Any]:
    """Every cluster of ours that is not at Vast, whose machines are known by themselves.

    Args:
        refresh: Names, with commas between; only these, once their clouds were asked about them. Without it
            all, as SkyPilot last saw them.
    """
    from sky.backends import backend_utils
    from sky.utils import common

    names = refresh.split(",") if refresh else None
    if names:  # what it finds gone it forgets
        with suppress(Exception):  # of a cloud that does not answer, or has no SDK: the old record stays
            backend_utils.get_clusters(common.StatusRefreshMode.FORCE, cluster_names=names,
                                       _include_is_managed=True)
    records = backend_utils.get_clusters(common.StatusRefreshMode.NONE, cluster_names=names,
                                         _include_is_managed=True)
    found = [_cluster(record) for record in records]
    return Machines(machines=tuple(one for one in found if one)).model_dump(mode="json")


def costs(run_id: str, since: int) -> dict[str, Any]:
    """What SkyPilot's cost report says of the clusters of a run, those at Vast left out: there its catalogs
    know no price of a bid.

    A cluster that was lost and made again has one name, and its costs add up.

    Args:
        run_id: As in the task that a cluster was made for.
        since: In Unix seconds: what was last used before is left out.
    """
    from sky import core

    days = math.ceil((time.time() - since) / _DAY_S) + 1
    # Tasks, by which clusters are told apart, come only where names are asked for.
    names = sorted({record["name"] for record in core.cost_report(days=days)})
    mine = [record for record in core.cost_report(days=days, cluster_names=names)
            if _envs(record).get(Env.RUN_ID) == run_id and record.get("cloud") != "Vast"]
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for record in mine:
        totals[record["name"]] += Decimal(str(round(record["total_cost"], 6)))
    return Charges(charges=tuple(Charge(instance_id=name, usd=usd, usd_by_kind={})
                                 for name, usd in totals.items())).model_dump(mode="json")


def _cluster(record: Mapping[str, Any]) -> RentedMachine | None:
    from sky.jobs import utils

    name, handle, envs = _NAME.fullmatch(record["name"]), record["handle"], _envs(record)
    if name is None or handle is None or Env.STORE not in envs or record["cloud"] == "Vast":
        return None
    tasks = (*Document, PREPARE, envs.get(Env.RUN_ID, PREPARE))
    if record["name"] not in [utils.generate_managed_job_cluster_name(task, int(name[2])) for task in tasks]:
        return None
    return RentedMachine(
        instance_id=record["name"], label=handle.cluster_name_on_cloud, cloud=str(record["cloud"]).lower(),
        kind="cluster", job=int(name[2]), run_id=envs.get(Env.RUN_ID), status=record["status"].value,
        since=datetime.fromtimestamp(record["launched_at"], UTC), usd_per_hour=_usd_per_hour(handle))


def _envs(record: Mapping[str, Any]) -> Mapping[str, str]:
    """Of the task that a cluster was made for."""
    task = yaml.safe_load(record["last_creation_yaml"] or "")
    return (task.get("envs") if isinstance(task, dict) else None) or {}


def _usd_per_hour(handle: Any) -> Decimal | None:
    """By SkyPilot's catalog, as if all of it ran; None where it does not say."""
    try:
        return Decimal(str(handle.launched_resources.get_cost(3600))) * int(handle.launched_nodes)
    except Exception:  # noqa: BLE001  whatever its catalog lacks, the cluster is there
        return None
