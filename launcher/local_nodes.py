"""The nodes of one task document, all of them on this machine: for work that a cloud would share out.

In the foreground, unlike a run: whoever types the command watches it, and Ctrl-C ends every node.
"""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.attempt_runner import node_env
from launcher.errors import EngineError
from launcher.process_tree import start_bash

# From Ctrl-C to the kill: a node says what is finished (guess).
_GRACE_S = 10.0
_POLL_S = 0.05
_COLUMNS = 80  # of a line with the name of its node
_AGAIN = "what is finished is kept: the same command goes on from there"

Say = Callable[[str], None]


def run_nodes(document: Mapping[str, Any], say: Say) -> None:
    """Carry out `setup` once and `run` on every node at once, until all have ended well.

    A node that is killed is named and started again, as often as the task's job_recovery allows. When one
    fails, and when this process is interrupted, the others are ended.

    Args:
        document: A document of a rendered task.
        say: Gets each line that is printed, behind the name of its node. Called by several threads.

    Raises:
        EngineError: Set-up failed, or a node did; the node is named.
        KeyboardInterrupt: All nodes have ended.
    """
    _Nodes(document, say).run()


class _Shell:
    """A shell text at work."""

    def __init__(self, name: str, text: str, workdir: Path, env: Mapping[str, str], say: Say) -> None:
        self._name, self._say = name, say
        reading, writing = os.pipe()
        with open(writing, "wb") as output:
            self.process = start_bash(text, workdir, env, output)
        self._reader = threading.Thread(target=self._pass_on, args=(reading,), daemon=True)
        self._reader.start()

    def _pass_on(self, reading: int) -> None:
        with open(reading, errors="replace") as lines:
            for line in lines:
                self._say(f"{self._name}: {line.rstrip()}")

    def poll(self) -> int | None:
        """Exit code, once it has ended and its lines have been said."""
        code = self.process.poll()
        if code is not None:
            self._reader.join(timeout=1.0)  # a child that outlives it may hold the pipe
        return code

    def end(self) -> None:
        """Kill it with all that it started, unless it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class _Nodes:
    def __init__(self, document: Mapping[str, Any], say: Say) -> None:
        self._document, self._say = document, say
        self._count = int(document.get("num_nodes") or 1)
        recovery = (document.get("resources") or {}).get("job_recovery") or {}
        self._max_restarts = int(recovery.get("max_restarts_on_errors") or 0)
        self._restarts: Counter[int] = Counter()
        self._shells: dict[int, _Shell] = {}

    def run(self) -> None:
        try:
            self._set_up()
            for rank in range(self._count):
                self._shells[rank] = self._start_node(rank)
            while self._shells:
                time.sleep(_POLL_S)
                self._look()
        except KeyboardInterrupt:
            self._interrupt()
            raise
        finally:
            for shell in self._shells.values():
                shell.end()

    def _set_up(self) -> None:
        """Once: all nodes are this machine, with one folder."""
        if not self._document.get("setup"):
            return
        shell = self._shells[0] = self._start("set-up", str(self._document["setup"]), 0)
        while (code := shell.poll()) is None:
            time.sleep(_POLL_S)
        del self._shells[0]
        if code:
            raise EngineError(f"set-up {_ending(code)}", place="nodes", fix="see what it said above")

    def _look(self) -> None:
        for rank, shell in list(self._shells.items()):
            code = shell.poll()
            if code is None:
                continue
            del self._shells[rank]
            if code == 0:
                continue
            name = f"node {rank} of {self._count}"
            # Codes of its own it has explained; another try would end the same way.
            if 0 < code < 128 or self._restarts[rank] >= self._max_restarts:
                raise EngineError(f"{name} {_ending(code)}", place="nodes",
                                  fix=f"see what it said above; {_AGAIN}")
            self._restarts[rank] += 1
            self._say(f"{name} {_ending(code)}; starting it again, {self._restarts[rank]} of "
                      f"{self._max_restarts} times")
            self._shells[rank] = self._start_node(rank)

    def _start_node(self, rank: int) -> _Shell:
        shell = self._start(f"node {rank}", str(self._document["run"]), rank)
        cores = sorted(os.sched_getaffinity(0))
        with suppress(ProcessLookupError):  # each its share, as if the machine were several
            os.sched_setaffinity(shell.process.pid, cores[rank::self._count] or [cores[rank % len(cores)]])
        return shell

    def _start(self, name: str, text: str, rank: int) -> _Shell:
        env = {**os.environ, **node_env(f"local-{self._document['name']}", rank, self._count),
               **self._document.get("envs", {}), "PYTHONUNBUFFERED": "1",
               "COLUMNS": str(_COLUMNS - len(f"{name}: "))}
        return _Shell(name, text, Path(self._document["workdir"]), env, self._say)

    def _interrupt(self) -> None:
        for shell in self._shells.values():
            with suppress(ProcessLookupError):
                shell.process.send_signal(signal.SIGINT)
        give_up = time.monotonic() + _GRACE_S
        for shell in self._shells.values():
            with suppress(subprocess.TimeoutExpired):
                shell.process.wait(max(0.0, give_up - time.monotonic()))
            shell.poll()


def _ending(code: int) -> str:
    if 0 <= code <= 128:
        return f"ended with exit code {code}"
    return f"was killed by signal {-code if code < 0 else code - 128}"
