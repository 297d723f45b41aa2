"""Ends managed jobs of ours that wait for a machine longer than they may: SkyPilot itself waits for ever.

One thread of the main process of SkyPilot's server, started by our plugin: there is one such process, it
lives as long as the server, and managed jobs are supervised from it. At each look all is read anew from
SkyPilot's own record of jobs: a restart of the server loses nothing, and the laptop may be off.

It need not look at a cap: no machine stands idle while another is looked for, so a wait costs supervision
alone, and every node keeps that of one whole wait back before it ends (`trainer/limit_watch.py`).
"""

import logging
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from launcher import rental_log
from launcher.tell_end import tell_end
from launcher.waits import End, Waiting, end_of, waits_since
from trainer.contract import Env

_LOOK_S = 30.0
_WITHOUT_MACHINE = {"PENDING", "SUBMITTED", "STARTING", "RECOVERING"}
_log = logging.getLogger("sky.ldlm")  # into the server's own


def start() -> None:
    """Watch from now on, until this process ends."""
    threading.Thread(target=_watch, name="ldlm-capacity-watch", daemon=True).start()


def _watch() -> None:
    while True:
        time.sleep(_LOOK_S)  # first: the server has its databases to open
        try:
            look(datetime.now(UTC))
        except Exception:  # whatever is wrong with one look, the next is due
            _log.exception("ldlm's look at jobs that wait failed")


def look(now: datetime) -> dict[str, End]:
    """Cancel every job whose task waits in vain. Returns why, by run id."""
    from sky.jobs import state

    found = {}
    for job_id in state.get_jobs_to_check_status():
        rows = state.get_managed_job_tasks(job_id)
        row = next((one for one in rows if not one["status"].is_terminal()), None)
        if row is None or row["status"].value not in _WITHOUT_MACHINE:
            continue
        envs = _block(row, "envs")
        if Env.WAIT in envs and (end := end_of(_waiting(row, envs), now)):
            tell_end(envs | _block(row, "secrets"), end)
            _cancel(row, end)
            found[envs[Env.RUN_ID]] = end
    return found


def _block(row: Mapping[str, Any], name: str) -> dict[str, str]:
    """Of the task of a row, as it was submitted: a header, then the job's tasks in their order."""
    documents = list(yaml.safe_load_all(row["dag_yaml_content"] or ""))[1:]
    return dict(documents[row["task_id"]].get(name) or {}) if row["task_id"] < len(documents) else {}


def _waiting(row: Mapping[str, Any], envs: Mapping[str, str]) -> Waiting:
    from sky.jobs import state

    events = [(one["new_status"].value, one["timestamp"].astimezone(UTC))  # SkyPilot's are of the local clock
              for one in reversed(state.get_job_events(row["job_id"], row["task_id"]))]
    since, deadline = waits_since(events), envs.get(Env.DEADLINE)
    rentals = [one for one in rental_log.read().values() if one.run_id == envs[Env.RUN_ID]]
    got = [one.rented_at for one in rentals if one.ended_at is None]
    return Waiting(
        since, timedelta(hours=float(envs[Env.WAIT])), datetime.fromisoformat(deadline) if deadline else None,
        num_wrong=sum(one.is_wrong and one.rented_at >= events[0][1] for one in rentals) if events else 0,
        machine_since=max([*got, *_cluster_since(row)], default=None),
        unpulled=tuple(one.unpulled for one in rentals if one.unpulled and since and one.rented_at >= since))


def _cluster_since(row: Mapping[str, Any]) -> list[datetime]:
    """When the machines of a task came up, whichever cloud they are of."""
    from sky.jobs import utils
    from sky.utils import status_lib

    from sky import global_user_state

    name = utils.generate_managed_job_cluster_name(row["task_name"], row["job_id"])
    record = global_user_state.get_cluster_from_name(name)
    is_up = record is not None and record["status"] == status_lib.ClusterStatus.UP
    return [datetime.fromtimestamp(record["launched_at"], UTC)] if is_up else []


def _cancel(row: Mapping[str, Any], end: End) -> None:
    from sky.jobs import utils

    _log.warning(f"job {row['job_id']} ({row['job_name']}): {end.note}")
    utils.cancel_jobs_by_id([row["job_id"]], current_workspace=row["workspace"],
                            cancel_request_info=utils.CancelRequestInfo(note=end.note))
