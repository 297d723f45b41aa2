"""The embedded engine, seen from the command line: start a supervisor, look at it, stop it.

The same task that a cloud would get runs on this machine; `launcher/supervisor.py` carries it out.
"""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from launcher.attempt_runner import ENGINE_FOLDER
from launcher.engine import EnginePhase, EngineState
from launcher.engine_folder import EngineFolder, engine_home
from launcher.errors import EngineError
from launcher.follow_logs import follow_logs
from launcher.home import write_atomically
from launcher.preempt_at import PreemptAt
from launcher.process_tree import identify, processes_with
from launcher.task_documents import parse_task
from launcher.webhook_setting import webhook_envs

# Python, pydantic and obstore start in about 1 s; a loaded machine takes its time (guess).
_START_TIMEOUT_S = 60.0
_TEAR_DOWN_S = 60.0  # a supervisor kills for 30 s at most, and has a store to tell (guess)


class LocalEngine:
    """Runs tasks on this machine, each under a supervisor that outlives the command line."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = (home or engine_home()).absolute()

    def submit(self, task: str, *, preempt_at: PreemptAt | None = None,
               on_lock: Callable[[], None] | None = None) -> None:
        """Start or resume a run and return once its supervisor is at work.

        Args:
            task: SkyPilot YAML: a header, document `train`, perhaps document `bench`.
            preempt_at: Take the machine away from the run, once, at this moment.
            on_lock: Called once nobody else can start this run: for what only the winner may write.

        Raises:
            EngineError: The task is not runnable, the run is alive, or the supervisor died.
        """
        if sys.platform != "linux":
            raise EngineError("the local engine needs Linux", place="--infra",
                              fix="launch from a Linux machine, or WSL on Windows")
        folder = self._folder(parse_task(task)[0].run_id)
        with _clear_disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            lock = folder.take_lock()
            try:
                if on_lock:
                    on_lock()
                folder.forget_state()
                write_atomically(folder.task, task)
                supervisor = _start_supervisor(folder, lock, preempt_at)
            finally:
                os.close(lock)  # the supervisor holds its own copy
        _wait_for_first_state(folder, supervisor)

    def state(self, run_id: str) -> EngineState:
        """What this machine knows of a run. `unknown`: its supervisor was killed, or the machine was."""
        folder = self._folder(run_id)
        alive = folder.is_locked()
        state = folder.read_state()
        if state is None:
            starting = EngineState(EnginePhase.RUNNING, detail="starting")
            return starting if alive else EngineState(EnginePhase.NONE)
        if alive or state.phase is EnginePhase.ENDED:
            return state
        # It may have ended between the look at the lock and the look at the file.
        state = folder.read_state() or state
        if state.phase is EnginePhase.ENDED:
            return state
        return EngineState(EnginePhase.UNKNOWN, state.document, state.attempt, None,
                           f"its supervisor was killed, or the machine: {folder.supervisor_log}")

    def logs(self, run_id: str, follow: bool = False) -> Iterator[str]:
        """Lines of all attempts that ran here, a header line before each.

        Raises:
            EngineError: The run never ran on this machine.
        """
        folder = self._folder(run_id)
        if not folder.is_locked() and not folder.attempt_logs():
            raise EngineError(f"run {run_id} has no logs on this machine", place=str(folder.path),
                              fix="ask on the machine where it was launched")
        return follow_logs(folder, follow)

    def cancel(self, run_id: str) -> None:
        """Ask the supervisor to stop the run; a second time: at once, without a last checkpoint.

        Raises:
            EngineError: Nothing of this run is running here.
        """
        found = _supervisor(self._folder(run_id))
        if found is None:
            raise _not_running(run_id)
        _signal_if_same(*found, signal.SIGTERM)

    def resources(self, run_id: str) -> list[str]:
        """Its supervisor and every process of its attempts, whether or not that supervisor lives."""
        folder = self._folder(run_id)
        found = _supervisor(folder)
        return [*([f"supervisor {found[0]}"] if found else []),
                *(f"process {process.pid}" for process in _processes(folder))]

    def tear_down(self, run_id: str) -> None:
        """End a run at once, without a last checkpoint, and what a killed supervisor has left of it.

        Raises:
            EngineError: It holds nothing here, or will not end.
        """
        folder = self._folder(run_id)
        if not self.resources(run_id):
            raise _not_running(run_id)
        deadline = time.monotonic() + _TEAR_DOWN_S
        while folder.is_locked():  # the second SIGTERM that it sees ends all at once; two may arrive as one
            if time.monotonic() > deadline:
                raise EngineError(f"the supervisor of run {run_id} does not end", place="engine",
                                  fix=f"read {folder.supervisor_log}")
            if found := folder.read_supervisor():
                _signal_if_same(*found, signal.SIGTERM)
            time.sleep(0.1)
        for process in _processes(folder):
            with suppress(psutil.Error):
                process.kill()

    def _folder(self, run_id: str) -> EngineFolder:
        return EngineFolder(self._home / run_id)


def _supervisor(folder: EngineFolder) -> tuple[int, str] | None:
    """Pid and identity of the one that lives."""
    return folder.read_supervisor() if folder.is_locked() else None


def _processes(folder: EngineFolder) -> list[psutil.Process]:
    return processes_with(ENGINE_FOLDER, str(folder.path))


def _not_running(run_id: str) -> EngineError:
    return EngineError(f"run {run_id} is not running on this machine", place="engine",
                       fix=f"see how it ended: ldlm status {run_id}")


def _start_supervisor(folder: EngineFolder, lock: int,
                      preempt_at: PreemptAt | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "launcher.supervisor", str(folder.path), "--lock", str(lock)]
    if preempt_at:
        command += ["--preempt-at", str(preempt_at)]
    env = {name: value for name, value in os.environ.items() if name != ENGINE_FOLDER}
    env |= webhook_envs(os.environ)
    # -m looks in the current folder first; a PYTHONPATH would leak into the trainer's environment.
    root = Path(__file__).parents[1]
    with folder.supervisor_log.open("ab") as log:
        return subprocess.Popen(command, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(lock,))


def _wait_for_first_state(folder: EngineFolder, supervisor: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while folder.read_state() is None:
        died = supervisor.poll() is not None
        if died or time.monotonic() > deadline:
            tail = folder.supervisor_log.read_text(errors="replace").strip().splitlines()[-5:]
            raise EngineError("the supervisor " + ("died" if died else "does not answer") + ":\n"
                              + "\n".join(f"    {line}" for line in tail), place="engine",
                              fix=f"read {folder.supervisor_log}")
        time.sleep(0.02)


def _signal_if_same(pid: int, identity: str, number: int) -> None:
    """Signal a process unless its pid now belongs to another one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if identify(pid) == identity:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


@contextmanager
def _clear_disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free disk space" if full else "make it writable, or set LDLM_HOME to another folder"
        raise EngineError(f"cannot write the engine's folder: {error.strerror}",
                          place=str(error.filename or path), fix=fix) from error
