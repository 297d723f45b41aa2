"""What the watch in SkyPilot's server does to jobs: on SkyPilot's real database, with its own functions.

Jobs are written as SkyPilot's controller writes them, in a process and a home of their own; time passes by
the clock that the watch is given.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from webhook_server import webhook_server

from launcher import rental_log
from launcher.rentals import Price, Rental, Terms
from trainer.contract import Outcome
from trainer.store import local_store_url

pytest.importorskip("sky.jobs.state")
ROOT = Path(__file__).parents[1]
NOW = datetime.now(UTC)

# Reads {name: [wait in hours or null, deadline or null, words of the job's task]}, more envs and secrets of
# every task of ours, and a clock; prints what a look at them finds, what SkyPilot's queue then says of each,
# and which jobs are asked to end.
PROGRAM = """
import asyncio, json, os, pathlib, sys
from datetime import datetime
import yaml
from sky import global_user_state
from sky.jobs import constants, state, utils
from sky.skylet import constants as skylet
from launcher import capacity_watch

async def no_callback(word): pass

async def write(name, wait, deadline, words):
    tasks = [{"name": task, "envs": {"LDLM_RUN_ID": name, "LDLM_WAIT_HOURS": wait, "LDLM_DEADLINE": deadline}
              | asked["envs"] if wait else {}, "secrets": asked["secrets"]} for task in ("train", "bench")]
    job = state.set_job_info_without_job_id(name, "default", "", None, None, "me")
    for number, task in enumerate(tasks):
        state.set_pending(job, number, task["name"], "", "{}")
    state.scheduler_set_waiting([job], yaml.safe_dump_all([{"name": name}, *tasks]), "", "", "", 500)
    if words:
        await state.get_waiting_job_async(os.getpid(), 0.0)  # a controller has it
    for word in words:
        task = 1 if word.startswith("bench ") else 0
        word = word.removeprefix("bench ")
        if word == "STARTING":
            await state.set_starting_async(job, task, "now", 0.0, "", {}, no_callback)
        elif word == "BACKOFF":
            await state.set_backoff_pending_async(job, task)
        elif word == "RUNNING":
            await state.set_started_async(job, task, 0.0, no_callback)
        elif word == "RECOVERING":
            await state.set_recovering_async(job, task, True, no_callback)
        elif word == "SUCCEEDED":
            await state.set_succeeded_async(job, task, 1.0, no_callback)
    return job

# Whether a controller lives is another part's question.
gate = pathlib.Path(skylet.PERSISTENT_RUN_RESTARTING_SIGNAL_FILE).expanduser()
gate.parent.mkdir(parents=True, exist_ok=True)
gate.touch()
signals = pathlib.Path(constants.CONSOLIDATED_SIGNAL_PATH).expanduser()
signals.mkdir(parents=True, exist_ok=True)
asked = json.load(sys.stdin)
jobs = {}
async def write_all():
    for name, words in asked["jobs"].items():
        jobs[await write(name, *words)] = name
asyncio.run(write_all())
ends = capacity_watch.look(datetime.fromisoformat(asked["now"]))
async def cancel_all():  # as SkyPilot's controller does when it sees a signal
    for job in jobs:
        if (signals / str(job)).exists():
            await state.set_cancelling_async(job, no_callback)
            await state.set_cancelled_async(job, no_callback)
asyncio.run(cancel_all())
rows = utils.get_managed_job_queue(fields=["job_id", "task_id", "job_name", "status", "details"])["jobs"]
print(json.dumps({
    "ends": {name: [end.outcome, end.reason] for name, end in ends.items()},
    "rows": [[row["job_name"], row["task_id"], row["status"], row["details"]] for row in rows]}))
"""


def look(home: Path, hours_later: float, jobs: dict[str, list[Any]], envs: Mapping[str, str] = {},
         secrets: Mapping[str, str] = {}) -> dict[str, Any]:
    """What the watch does after some hours with jobs that have come as far as these words now."""
    asked = {"now": (NOW + timedelta(hours=hours_later)).isoformat(), "jobs": jobs, "envs": dict(envs),
             "secrets": dict(secrets)}
    env = os.environ | {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=json.dumps(asked), env=env, cwd=ROOT,
                          text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    # What tells outlives the server, and has its output: the run above has waited for it.
    (found,) = (line for line in done.stdout.splitlines() if line.startswith('{"ends"'))
    return dict(json.loads(found))


def test_only_jobs_of_ours_that_wait_in_vain_are_ended_and_skypilot_s_queue_says_why(tmp_path: Path) -> None:
    soon = (NOW + timedelta(minutes=30)).isoformat()
    found = look(tmp_path, 2, {
        "too-long": ["1", "", ["STARTING"]],
        "in-backoff": ["1", "", ["STARTING", "BACKOFF"]],
        "patient": ["3", "", ["STARTING"]],
        "running": ["1", "", ["STARTING", "RUNNING"]],
        "machine-lost": ["1", "", ["STARTING", "RUNNING", "RECOVERING"]],
        "benchmark": ["1", "", ["STARTING", "RUNNING", "SUCCEEDED", "bench STARTING"]],
        "too-late": ["9", soon, ["STARTING"]],
        "not-begun": ["1", "", []],
        "of-others": [None, None, ["STARTING"]],
    })
    in_vain = [str(Outcome.NO_CAPACITY), "no machine within 1 h, as long as it may wait"]
    late = [str(Outcome.NO_CAPACITY), f"no machine before the deadline of {soon[5:10]} {soon[11:16]} UTC"]
    assert found["ends"] == {"too-long": in_vain, "in-backoff": in_vain, "machine-lost": in_vain,
                             "benchmark": in_vain, "too-late": late}
    said = "Cancellation requested ldlm ends it (no_capacity): "
    rows = {(name, task): (status, details) for name, task, status, details in found["rows"]}
    for name, (_, reason) in found["ends"].items():
        task = 1 if name == "benchmark" else 0
        assert rows[name, task] == ("CANCELLED", said + reason)
    assert rows["benchmark", 0][0] == "SUCCEEDED"
    assert [rows[name, 0][0] for name in ("patient", "running", "not-begun", "of-others")] == [
        "STARTING", "RUNNING", "PENDING", "STARTING"]


def test_a_run_that_is_ended_for_want_of_a_machine_tells_so_from_the_server_and_once(tmp_path: Path) -> None:
    job = {"too-long": ["1", "", ["STARTING"]], "patient": ["9", "", ["STARTING"]]}
    store = local_store_url(tmp_path / "store")
    with webhook_server() as hook:
        secrets = {"LDLM_WEBHOOK_URL": hook.url}
        for server in ("one", "another"):  # as if it had died between telling and ending
            (tmp_path / server).mkdir()
            found = look(tmp_path / server, 2, job, {"LDLM_STORE": store}, secrets)
            assert set(found["ends"]) == {"too-long"} and "a-secret" not in json.dumps(found)
        (message,) = hook.messages
    assert message["text"] == ("too-long: it has ended for want of a machine: no machine within 1 h, as long "
                               "as it may wait ($0.0000, step 0)")


def remember(run_id: str, machine_id: int, at: datetime, unpulled: str | None = None) -> None:
    """That the server has rented a machine for a run; one that cannot pull its image is given back."""
    number = f"{run_id}-{machine_id}"
    rental_log.rented(Rental(run_id=run_id, instance_id=number, machine_id=machine_id, rented_at=at,
                             prices=(Price(at=at, usd_per_hour=Decimal(1)),), terms=Terms(disk_gb=1)))
    if unpulled:
        rental_log.unpulled(number, unpulled)
        rental_log.gone(number, at)


def test_machines_that_say_that_they_are_wrong_are_counted_since_the_task_began(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that cannot reach its store cannot count them there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for run_id, hours in (("wrong", (1, 1, 1)), ("twice", (1, 1)), ("earlier", (-5, 1, 1))):
        for machine, hour in enumerate(hours):
            remember(run_id, machine, NOW + timedelta(hours=hour))
            rental_log.wrong(f"{run_id}-{machine}")
            rental_log.gone(f"{run_id}-{machine}", NOW + timedelta(hours=hour))
    words = ["9", "", ["STARTING", "RUNNING", "RECOVERING"]]
    found = look(tmp_path, 2, {"wrong": words, "twice": words, "earlier": words})["ends"]
    assert found == {"wrong": [str(Outcome.NO_CAPACITY), "3 machines were wrong, by their own word"]}


def test_a_machine_on_its_way_is_waited_for_and_an_image_that_none_can_pull_is_not(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    remember("on-its-way", 1, NOW + timedelta(hours=1.9))
    remember("stuck", 2, NOW + timedelta(hours=1.4))
    for machine in (3, 4):
        remember("no-image", machine, NOW + timedelta(hours=1), "an/image:1")
        remember("earlier-image", machine, NOW - timedelta(hours=5), "an/image:1")  # of an earlier start
    remember("one-bad-machine", 5, NOW + timedelta(hours=1), "an/image:1")
    found = look(tmp_path, 2, {
        "on-its-way": ["1", "", ["STARTING"]], "stuck": ["1", "", ["STARTING"]],
        "no-image": ["9", "", ["STARTING"]], "earlier-image": ["9", "", ["STARTING"]],
        "one-bad-machine": ["9", "", ["STARTING"]]})["ends"]
    assert set(found) == {"stuck", "no-image"}
    assert found["stuck"] == [str(Outcome.NO_CAPACITY), "no machine within 1 h, as long as it may wait"]
    outcome, reason = found["no-image"]
    assert outcome == Outcome.BAD_CONFIG and "2 machines could not pull the image an/image:1" in reason
