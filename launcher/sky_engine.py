"""SkyPilot as an engine: a run is a managed job of its name, a pipeline of `train` and `bench`.

The only file that says `import sky`, which takes seconds. A run is found by its name and not by a number
kept somewhere, so any machine with the same API server finds it. SkyPilot starts that server on this machine
when none is running and `SKYPILOT_API_SERVER_ENDPOINT` names none.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from launcher.engine import ALIVE, OVER, EnginePhase, EngineState
from launcher.errors import EngineError
from launcher.frozen import Frozen
from launcher.market import MARKET, Market, Wish
from launcher.node_secrets import node_secrets, service_keys
from launcher.reconcile import Charges
from launcher.rentals import RENTALS, Rentals
from launcher.server_health import forget_health, start_words
from launcher.settings import API_SERVER, api_server, tell_sky
from launcher.sky_errors import gateway_s_reason, not_understood, refusal
from launcher.sky_jobs import ENDED, FIELDS, Row, job_state
from launcher.sky_places import check_places
from launcher.store_keys import Needs
from launcher.sweep import CLUSTERS, MACHINES, Machines
from trainer.contract import Name
from trainer.run_folder import STARTS, RunFolder, StopWish
from trainer.store import Store

_FRESH_S = 3.0  # SkyPilot itself looks at nodes every 15 s; an answer takes up to a second
_ANSWER_S = 20
_CLOUDS_ANSWER_S = 120  # of clouds about machines, one after the other (guess)
_Answer = TypeVar("_Answer", bound=Frozen)


class SkyEngine:
    """Hands tasks to SkyPilot's managed jobs.

    Args:
        store: Of the runs: a wish to stop travels through it.
        say: Told what takes seconds.
    """

    def __init__(self, store: Store, say: Callable[[str], None] = lambda line: None) -> None:
        self._store, self._say = store, say
        self._seen: dict[str, tuple[float, EngineState]] = {}

    def check(self, task: str) -> None:
        """Let SkyPilot look at the places that a task names, before anything is recorded or rented.

        An API server elsewhere has catalogs of its own, and judges when the task is submitted.

        Raises:
            EngineError: SkyPilot cannot read the task, or a cloud has no such region.
            NoOfferError: By its catalogs a document costs more everywhere than the plan pays.
        """
        if api_server():
            return
        # Without a catalog here and a way to fetch one there is nothing to compare with.
        with sky_sdk(self._say, with_server=False), suppress(OSError):
            check_places(task, self._say)

    def submit(self, task: str, *, on_lock: Callable[[], None] | None = None) -> None:
        """Queue a task; SkyPilot's controller carries it out from then on.

        Args:
            task: SkyPilot YAML: a header with the run's name, then its documents.
            on_lock: Called before anything is submitted, once no job of this name is alive.

        Raises:
            EngineError: The run is alive there, SkyPilot refuses the task, or does not answer.
        """
        run_id = str(next(yaml.safe_load_all(task))["name"])
        with sky_sdk(self._say) as sky:
            from sky.utils import dag_utils

            if job_state(self._newest(sky, run_id)).phase not in OVER:
                raise EngineError(f"run {run_id} is running", place="SkyPilot",
                                  fix=f"watch it: ldlm logs -f {run_id}")
            dag = dag_utils.load_chain_dag_from_yaml_str(task)
            needs = Needs.of_task(dag.tasks[0].envs)
            secrets = node_secrets(self._store.address, os.environ, needs)
            for document in dag.tasks:
                document.update_secrets(secrets | service_keys(document.envs, self._store, os.environ))
            if on_lock:
                on_lock()
            self._say("handing the task and this checkout to SkyPilot ...")
            self._launch(sky, dag, run_id)
        self._seen.pop(run_id, None)

    def _launch(self, sky: Any, dag: Any, run_id: str) -> None:
        try:
            sky.get(sky.jobs.launch(dag, name=run_id))
        except OSError:  # of requests: the server may have the task, and no job of it yet
            self._seen[run_id] = (time.monotonic(), EngineState(EnginePhase.UNKNOWN))
            raise

    def state(self, run_id: str) -> EngineState:
        """What SkyPilot knows of a run now.

        Where its API server does not answer: what it last said in this process, if the run was alive then,
        else `unknown`. A pause of the server is no end of a run.
        """
        asked_at, state = self._seen.get(run_id, (float("-inf"), EngineState(EnginePhase.NONE)))
        if time.monotonic() - asked_at < _FRESH_S:
            return state
        try:
            state = self.ask(run_id)
        except EngineError as error:
            if state.phase not in ALIVE:
                state = EngineState(EnginePhase.UNKNOWN, detail=error.problem)
        self._seen[run_id] = (time.monotonic(), state)
        return state

    def ask(self, run_id: str) -> EngineState:
        """What SkyPilot knows of a run now. Raises EngineError where it does not answer."""
        with sky_sdk(self._say) as sky:
            return job_state(self._newest(sky, run_id))

    def logs(self, run_id: str, follow: bool = False) -> Iterator[str]:
        """Lines of the newest attempt, as SkyPilot has them.

        Raises:
            EngineError: SkyPilot has no job of this run, or does not answer.
        """
        with sky_sdk(self._say) as sky:
            job_id = self._job_id(sky, run_id)
            for piece in sky.jobs.tail_logs(job_id=job_id, follow=follow, preload_content=False):
                yield from (piece or "").splitlines()

    def cancel(self, run_id: str) -> None:
        """Ask the nodes to save and stop. A second time, or before they train: take the machines at once.

        Raises:
            EngineError: Nothing of this run is running there.
        """
        state, folder = self._ask_alive(run_id), RunFolder(self._store, run_id)
        wish = folder.find(Name.STOP, StopWish)
        attempts = folder.attempts()
        is_saving = bool(attempts) and attempts[-1].end is None
        is_new = wish is None or any(event.at > wish.at for event in folder.events()
                                     if event.kind in STARTS)
        self._wish_to_stop(folder)
        if not is_new or not is_saving or state.word != "RUNNING":
            self._cancel_job(run_id)
        self._seen.pop(run_id, None)

    def resources(self, run_id: str) -> list[str]:
        """Machines that the API server has for a run now, at Vast and elsewhere.

        Raises:
            EngineError: It does not answer, or has no plugin of ours.
        """
        found = self.rentals(run_id)
        rented = [rental.instance_id for rental in found.rentals if not rental.ended_at] if found else []
        return [*(f"instance {name} at Vast" for name in rented),
                *(f"cluster {name}" for name in self._clusters_of(run_id))]

    def tear_down(self, run_id: str) -> None:
        """Have SkyPilot end a run and its machines at once, without a last checkpoint.

        Raises:
            EngineError: Nothing of this run is running there: what is left of it all the same, `sweep` ends.
        """
        self._ask_alive(run_id)
        self._wish_to_stop(RunFolder(self._store, run_id))
        self._cancel_job(run_id)
        self._seen.pop(run_id, None)

    def _ask_alive(self, run_id: str) -> EngineState:
        state = self.ask(run_id)
        if state.phase in OVER:
            raise EngineError(f"run {run_id} is not running on SkyPilot ({state.detail or 'no such job'})",
                              place="SkyPilot", fix=f"see how it ended: ldlm status {run_id}")
        return state

    @staticmethod
    def _wish_to_stop(folder: RunFolder) -> None:
        folder.write(Name.STOP, StopWish(at=datetime.now(UTC)))
        folder.add_event("stop_requested", datetime.now(UTC))

    def _cancel_job(self, run_id: str) -> None:
        with sky_sdk(self._say) as sky:
            sky.get(sky.jobs.cancel(job_ids=[self._job_id(sky, run_id)]))

    def rentals(self, run_id: str) -> Rentals | None:
        """What the API server has rented for a run; None where our plugin is not in it.

        Raises:
            EngineError: It does not answer.
        """
        answer = self._ask_plugin("GET", f"{RENTALS}/{run_id}")
        return _read(Rentals, answer) if answer.ok else None

    def charges(self, path: str) -> Charges:
        """What others' records say that machines have cost; one that is not in them yet is left out.

        Args:
            path: Of `launcher/reconcile.py`.

        Raises:
            EngineError: As `machines`.
        """
        return _read(Charges, self._insist("GET", path))

    def take_machines(self, run_id: str) -> None:
        """Take the machines of a run away as a provider does, without a word to what runs on them.

        Raises:
            EngineError: It has none now, or they could not be taken.
        """
        found = self.rentals(run_id)
        if found and found.rentals and not found.rentals[-1].ended_at:
            self.give_back(found.rentals[-1].instance_id)
            return
        names = self._clusters_of(run_id)
        if not names:
            raise EngineError(f"SkyPilot has no machine for run {run_id} now", place="SkyPilot",
                              fix=f"see where it is: ldlm status {run_id}")
        self.take_down(names[0])

    def _clusters_of(self, run_id: str) -> list[str]:
        with sky_sdk(self._say) as sky:
            jobs = {row["job_id"] for row in self._newest(sky, run_id)}
        return [machine.instance_id for machine in self.clusters().machines if machine.job in jobs]

    def machines(self) -> Machines:
        """Every machine that the account has at Vast now.

        Raises:
            EngineError: The API server does not answer, has no plugin of ours, or Vast does not answer it.
        """
        return _read(Machines, self._insist("GET", MACHINES))

    def give_back(self, instance_id: str) -> None:
        """End a machine at Vast. Raises EngineError."""
        self._insist("DELETE", f"{MACHINES}/{instance_id}")

    def clusters(self, refresh: Sequence[str] = ()) -> Machines:
        """Every cluster of ours that is not at Vast; only those named, once their clouds were asked.

        Raises:
            EngineError: The API server does not answer, or has no plugin of ours.
        """
        query = f"?refresh={','.join(refresh)}" if refresh else ""
        return _read(Machines, self._insist("GET", CLUSTERS + query, timeout_s=_CLOUDS_ANSWER_S))

    def live_jobs(self, numbers: Sequence[int]) -> dict[int, str]:
        """Those of some managed jobs that have not ended: names by numbers. Raises EngineError."""
        if not numbers:
            return {}
        with sky_sdk(self._say) as sky:
            rows = _queue(sky, job_ids=list(numbers))
        return {row["job_id"]: row["job_name"] for row in rows if row["status"] not in ENDED}

    def take_down(self, cluster: str) -> None:
        """End a cluster with all that belongs to it. Raises EngineError."""
        with sky_sdk(self._say) as sky:
            sky.get(sky.down(cluster))

    def market(self, wish: Wish) -> Market:
        """What Vast has now for what a task would rent there. Raises EngineError as `machines` does."""
        return _read(Market, self._insist("POST", MARKET, wish.model_dump(mode="json")))

    def _insist(self, verb: str, path: str, body: Any = None, timeout_s: float = _ANSWER_S) -> Any:
        answer = self._ask_plugin(verb, path, body, timeout_s)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise EngineError("SkyPilot's API server has not loaded ldlm's plugin", place="SkyPilot",
                              fix="ldlm doctor says what to do")
        if answer.status_code == HTTPStatus.BAD_GATEWAY:  # of launcher/vast_answers.py, or a proxy before it
            raise EngineError(gateway_s_reason(answer.text), place=path,
                              fix="repeat it later; whether your key is still good: ldlm doctor --infra vast")
        if not answer.ok:
            raise EngineError(f"SkyPilot's API server answers {answer.status_code}", place=path,
                              fix="look into ~/.sky/api_server/server.log on its machine")
        return answer

    def _ask_plugin(self, verb: str, path: str, body: Any = None, timeout_s: float = _ANSWER_S) -> Any:
        with sky_sdk(self._say, with_server=False):
            return ask_server(verb, path, timeout_s, body)

    def _job_id(self, sky: Any, run_id: str) -> int:
        rows = self._newest(sky, run_id)
        if not rows:
            raise EngineError(f"SkyPilot has no job of run {run_id}", place="SkyPilot",
                              fix=f"ask the API server that has it: {API_SERVER}=URL")
        return int(rows[0]["job_id"])

    def _newest(self, sky: Any, run_id: str) -> list[Row]:
        """The tasks of the newest job of this name, in their order."""
        mine = [row for row in _queue(sky, name_match=run_id) if row["job_name"] == run_id]
        newest = max((row["job_id"] for row in mine), default=None)
        return sorted((row for row in mine if row["job_id"] == newest), key=lambda row: row["task_id"])


def _read(kind: type[_Answer], answer: Any) -> _Answer:
    """What our plugin in the server answers; it may be of another version, or no server of SkyPilot's."""
    try:
        return kind.model_validate_json(answer.text)
    except ValidationError as error:
        raise not_understood(server_url()) from error


def _queue(sky: Any, **which: Any) -> list[Row]:
    """The tasks of some managed jobs, of all users."""
    from sky import exceptions

    try:
        answer = sky.get(sky.jobs.queue_v2(refresh=False, all_users=True, fields=list(FIELDS), **which))
    except exceptions.ClusterNotUpError:  # no job has ever been submitted to this server
        return []
    return [_as_dict(row) for row in answer[0]]


def _as_dict(row: Any) -> Row:
    found = row.model_dump() if hasattr(row, "model_dump") else dict(row)
    status = found["status"]
    return found | {"status": str(getattr(status, "value", status))}


def ask_server(verb: str, path: str, timeout_s: float = _ANSWER_S, body: Any = None) -> Any:
    """The API server's HTTP answer, within `sky_sdk`. Starts no server.

    Args:
        body: Sent as JSON; None: nothing.
    """
    from sky.server import common

    return common.make_authenticated_request(verb, path, timeout=timeout_s, json=body)


def alive_jobs() -> list[str]:
    """Names of the managed jobs that an API server has under way. Raises EngineError."""
    if api_server() is None and not Path("~/.sky/spot_jobs.db").expanduser().exists():
        return []  # nothing was ever submitted on this machine; asking would start a server here
    with sky_sdk(with_server=False) as sky:
        return sorted({row["job_name"] for row in _queue(sky) if row["status"] not in ENDED})


def server_url() -> str:
    """Of the API server, without a password."""
    from sky.server import common

    return str(common.redact_url_password(common.get_server_url()))


@contextmanager
def sky_sdk(say: Callable[[str], None] = lambda line: None, *, with_server: bool = True) -> Iterator[Any]:
    """SkyPilot's SDK, whose errors come out as ours. Starts its API server where there is none."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    is_new = False
    if said := api_server():
        from launcher.controller_ssh import server_url as reachable

        is_new = tell_sky(reachable(said))
    from requests import JSONDecodeError, RequestException
    from sky.server import common

    import sky
    from sky import exceptions, sky_logging

    for handler in logging.getLogger("sky").handlers:  # stdout is for our answers, which programs may read
        if isinstance(handler, sky_logging.EnvAwareHandler):  # SkyPilot's own; others have added theirs
            handler.setStream(sys.stderr)
    if is_new:  # SkyPilot remembers a server from its import on; a tunnel may have another port by now
        common.get_server_url.cache_clear()
        common.is_api_server_local.cache_clear()
    try:
        if with_server and API_SERVER not in os.environ and not _is_up(common):
            say(f"starting SkyPilot's API server at {common.get_server_url()}")
            forget_health()
        yield sky
    except (JSONDecodeError, ValidationError) as error:
        raise not_understood(server_url()) from error
    except (exceptions.ApiServerConnectionError, RequestException) as error:
        raise EngineError("SkyPilot's API server does not answer", place=server_url(),
                          fix=start_words()) from error
    except Exception as error:
        if not isinstance(error, ValueError | RuntimeError) and not type(error).__module__.startswith("sky."):
            raise  # ours
        raise refusal(error) from error


def _is_up(common: Any) -> bool:
    try:
        return bool(common.get_api_server_status().status == common.ApiServerStatus.HEALTHY)
    except Exception:  # noqa: BLE001  whatever is wrong, the call that follows says it better
        return False
