"""One attempt on this machine: setup, then run, watched until it ends, is stopped or is taken away."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.process_tree import kill_descendants, reap_zombies, start_bash
from launcher.task_documents import TaskDocument
from trainer.contract import STOP_GRACE_S, Env

# Marks every process that an attempt started, so that leftovers can be told from other programs.
ENGINE_FOLDER = "LDLM_ENGINE_FOLDER"
_POLL_S = 0.1


class StopRequests:
    """Counts SIGTERMs: the first asks for a graceful stop, a second for an immediate one."""

    def __init__(self) -> None:
        self.count = 0

    def install(self) -> None:
        """Take over SIGTERM and SIGINT of this process."""
        signal.signal(signal.SIGTERM, self._add)
        signal.signal(signal.SIGINT, self._add)

    def ask(self) -> None:
        """Ask for a graceful stop from within this process."""
        self.count += 1

    def _add(self, _number: int, _frame: object) -> None:
        self.count += 1


@dataclass(frozen=True)
class AttemptResult:
    """How an attempt ended, as its exit code alone tells it.

    Attributes:
        exit_code: 0 to 255, 128 + signal as a shell says it; None: the machine was taken.
        in_setup: It did not get as far as `run`.
    """

    exit_code: int | None
    in_setup: bool = False

    @property
    def preempted(self) -> bool:
        """True when the machine was taken away."""
        return self.exit_code is None


class AttemptRunner:
    """Runs the texts of one document and leaves no process behind, however they end."""

    def __init__(self, document: TaskDocument, env: Mapping[str, str], log: BinaryIO, stop: StopRequests,
                 *, on_poll: Callable[[], None], on_stop: Callable[[bool], None],
                 is_preempted: Callable[[], bool], is_to_move: Callable[[], bool]) -> None:
        """`on_stop` is told whether the stop came during setup; where it `is_to_move`, the node is asked to
        save and to be run again."""
        self._document = document
        self._env = env
        self._log = log
        self._stop = stop
        self._on_poll = on_poll
        self._on_stop = on_stop
        self._is_preempted = is_preempted
        self._is_to_move = is_to_move
        self._in_setup = bool(document.setup)
        self._leaving_since: float | None = None
        self._is_stop_told = False

    def run(self) -> AttemptResult:
        """Run setup, then run.

        Raises:
            OSError: A shell cannot be started.
        """
        if self._document.setup:
            code = self._run_text(self._document.setup)
            if code != 0:
                return AttemptResult(code, in_setup=True)
            if self._stop.count:
                return AttemptResult(128 + signal.SIGTERM, in_setup=True)
        self._in_setup = False
        return AttemptResult(self._run_text(self._document.run))

    def _run_text(self, text: str) -> int | None:
        process = start_bash(text, self._document.workdir, self._env, self._log)
        try:
            code = self._watch(process)
        finally:
            if survivors := kill_descendants():
                print(f"processes {survivors} do not die", file=sys.stderr)
            ended = process.wait()
            reap_zombies()
        if code is None:
            return None
        return ended if ended >= 0 else 128 - ended

    def _watch(self, process: subprocess.Popen[bytes]) -> int | None:
        """Wait for the end; None when the machine was taken before it."""
        while True:
            with suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL_S)
            self._on_poll()
            if self._stop.count or self._leaving_since:
                if self._must_kill(process):
                    return -signal.SIGKILL
            elif self._is_preempted():
                return None
            elif not self._in_setup and self._is_to_move():
                self._leave(process)

    def _must_kill(self, process: subprocess.Popen[bytes]) -> bool:
        """Pass a stop on when it is new; True when its grace is over or a second one came."""
        leaving_since = self._leaving_since or self._leave(process)
        if self._stop.count and not self._is_stop_told:
            self._is_stop_told = True
            self._on_stop(self._in_setup)
        return self._stop.count > 1 or time.monotonic() - leaving_since > STOP_GRACE_S

    def _leave(self, process: subprocess.Popen[bytes]) -> float:
        # Only the main process: the node tells its ranks itself, past torchrun.
        process.send_signal(signal.SIGTERM)
        self._leaving_since = time.monotonic()
        return self._leaving_since


def attempt_env(document: TaskDocument, number: int, folder: Path) -> dict[str, str]:
    """Environment of an attempt's shells: this process's, what a node would have, and the task's."""
    node = node_env(f"local-{document.run_id}-{document.document}", num_gpus=document.num_gpus)
    # A log file is no terminal: without this, Python would show its lines in blocks of 8 KiB.
    own = {"PYTHONUNBUFFERED": "1", Env.ATTEMPT: str(number), ENGINE_FOLDER: str(folder)}
    return {**os.environ, **node, **document.envs, **own}


def node_env(task_id: str, rank: int = 0, num_nodes: int = 1, num_gpus: int = 0) -> dict[str, str]:
    """SkyPilot's variables of one node, for nodes that are all this machine."""
    return {
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "\n".join(["127.0.0.1"] * num_nodes),
        "SKYPILOT_NUM_NODES": str(num_nodes),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(num_gpus),
        "SKYPILOT_TASK_ID": task_id,
        "SKYPILOT_CLUSTER_INFO": json.dumps({"cluster_name": "local", "cloud": "local",
                                             "region": None, "zone": None}),
        "SKYPILOT_USER": os.environ.get("USER", ""),
    }
