"""What every engine does: the same tests for the local one and for SkyPilot's."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from launcher.engine import ALIVE, Engine, EnginePhase
from launcher.errors import EngineError


@dataclass
class Place:
    """One engine and what its tasks need.

    Attributes:
        resources: Of a document's `resources`, beside the recovery.
        longest_s: For a machine to be had and a task to end.
    """

    engine: Engine
    store: str
    workdir: Path
    longest_s: float
    resources: dict[str, Any] = field(default_factory=dict)

    def submit(self, run_id: str, script: str) -> None:
        """Start a task whose training is a shell script."""
        recovery = {"strategy": "EAGER_NEXT_REGION", "max_restarts_on_errors": 0,
                    "recover_on_exit_codes": [75]}
        train = {"name": "train", "workdir": str(self.workdir), "num_nodes": 1, "run": script,
                 "resources": {**self.resources, "job_recovery": recovery},
                 "envs": {"LDLM_RUN_ID": run_id, "LDLM_STORE": self.store, "LDLM_OFFER": "a test",
                          "LDLM_PRICE_USD_PER_HOUR": "0.10"}}
        self.engine.submit(yaml.safe_dump_all([{"name": run_id}, train]))

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Look twice a second until it holds."""
        give_up = time.monotonic() + self.longest_s
        while not condition():
            assert time.monotonic() < give_up, f"waited in vain until {what}"
            time.sleep(0.5)

    def wait_for_end(self, run_id: str) -> None:
        """Until the engine says that it has ended."""
        self.wait(lambda: self.engine.state(run_id).phase is EnginePhase.ENDED, f"{run_id} has ended")


def new_run() -> str:
    """An id that nothing else has, on the command line of its processes too."""
    return f"contract-{uuid.uuid4().hex[:8]}"


def processes_of(run_id: str) -> list[int]:
    """Processes of this machine that have a run's id among their words."""
    return [process.pid for process in psutil.process_iter(["cmdline"])
            if any(f"sleep-of-{run_id}" in word for word in process.info["cmdline"] or [])]


class EngineContract:
    """Tests of a `place`, which whoever inherits them gives as a fixture."""

    def test_a_run_that_was_never_here_has_no_state_no_logs_and_no_end(self, place: Place) -> None:
        run_id = new_run()
        assert place.engine.state(run_id).phase is EnginePhase.NONE
        with pytest.raises(EngineError):
            list(place.engine.logs(run_id))
        with pytest.raises(EngineError):
            place.engine.cancel(run_id)
        assert place.engine.resources(run_id) == []
        with pytest.raises(EngineError):
            place.engine.tear_down(run_id)

    def test_what_a_run_prints_is_told_while_it_runs_and_its_end_is_known(self, place: Place) -> None:
        run_id = new_run()
        place.submit(run_id, "for number in 1 2 3; do echo line $number of $LDLM_RUN_ID; sleep 1; done")
        assert place.engine.state(run_id).phase in ALIVE
        told = "\n".join(place.engine.logs(run_id, follow=True))
        assert all(f"line {number} of {run_id}" in told for number in (1, 2, 3))
        place.wait_for_end(run_id)

    def test_a_run_is_not_started_twice_and_one_that_is_stopped_leaves_nothing(self, place: Place) -> None:
        run_id = new_run()
        place.submit(run_id, f"bash -c 'sleep 3000' sleep-of-{run_id}; true")
        with pytest.raises(EngineError, match=run_id):
            place.submit(run_id, "true")
        place.wait(lambda: processes_of(run_id), "it runs")
        place.engine.cancel(run_id)
        place.engine.cancel(run_id)  # a second time: at once
        place.wait_for_end(run_id)
        place.wait(lambda: not processes_of(run_id), "its processes are gone")
        place.submit(run_id, "true")
        place.wait_for_end(run_id)

    def test_what_a_run_holds_is_known_and_a_tear_down_leaves_none_of_it(self, place: Place) -> None:
        run_id = new_run()
        place.submit(run_id, f"trap '' TERM; bash -c 'trap : TERM; sleep 3000; true' sleep-of-{run_id}; true")
        place.wait(lambda: processes_of(run_id), "it runs")
        assert place.engine.resources(run_id)
        place.engine.tear_down(run_id)
        place.wait_for_end(run_id)
        place.wait(lambda: not place.engine.resources(run_id), "it holds nothing")
        place.wait(lambda: not processes_of(run_id), "its processes are gone")
        with pytest.raises(EngineError, match=run_id):
            place.engine.tear_down(run_id)
