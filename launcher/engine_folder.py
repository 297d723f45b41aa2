"""`$LDLM_HOME/engine/<run_id>/`: what client and supervisor of a local run share.

task.yaml, state.json, supervisor.pid, supervisor.lock (held by the supervisor for its life),
supervisor.log, and attempt-<n>.log for each attempt.
"""

import fcntl
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from launcher.engine import EnginePhase, EngineState
from launcher.errors import EngineError
from launcher.home import ldlm_home, write_atomically
from launcher.process_tree import identify
from trainer.contract import Document


def engine_home() -> Path:
    """Where this user's local runs live: `$LDLM_HOME/engine`."""
    return ldlm_home() / "engine"


class EngineFolder:
    """The folder of one run on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.task = path / "task.yaml"
        self.supervisor_log = path / "supervisor.log"
        self._lock = path / "supervisor.lock"
        self._state = path / "state.json"
        self._pid = path / "supervisor.pid"

    def attempt_log(self, number: int) -> Path:
        """What setup and run of one attempt print."""
        return self.path / f"attempt-{number}.log"

    def attempt_logs(self) -> list[tuple[int, Path]]:
        """Logs of all attempts that ran here, oldest first."""
        names = (path.stem.removeprefix("attempt-") for path in self.path.glob("attempt-*.log"))
        numbers = sorted(int(name) for name in names if name.isdigit())
        return [(number, self.attempt_log(number)) for number in numbers]

    def take_lock(self, timeout_s: float = 0.5) -> int:
        """Lock this run for one supervisor.

        Returns:
            A file descriptor. The lock stands until its last copy, in any process, is closed.

        Raises:
            EngineError: Another process holds the lock.
            OSError: The lock file cannot be written.
        """
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return handle
            except BlockingIOError:
                # `is_locked` holds the lock for an instant, so one refusal proves nothing.
                if time.monotonic() > deadline:
                    os.close(handle)
                    run = self.path.name
                    raise EngineError(
                        f"run {run} is already being run on this machine", place="engine",
                        fix=f"watch it: ldlm logs {run} -f, or end it: ldlm stop {run}") from None
            time.sleep(0.05)

    def is_locked(self) -> bool:
        """True while a supervisor of this run lives."""
        try:
            handle = os.open(self._lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def write_state(self, state: EngineState) -> None:
        """Replace state.json atomically. Raises OSError."""
        write_atomically(self._state, json.dumps(asdict(state)))

    def read_state(self) -> EngineState | None:
        """The newest state.json, None if there is none yet or it cannot be understood."""
        try:
            found = json.loads(self._state.read_text())
            document = Document(found["document"]) if found["document"] else None
            return EngineState(phase=EnginePhase(found["phase"]), document=document, attempt=found["attempt"],
                               pid=found["pid"], detail=found["detail"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def forget_state(self) -> None:
        """Remove what an earlier supervisor left; logs stay."""
        self._state.unlink(missing_ok=True)
        self._pid.unlink(missing_ok=True)

    def write_supervisor(self) -> None:
        """Record this process as the supervisor."""
        write_atomically(self._pid, json.dumps({"pid": os.getpid(), "identity": identify(os.getpid())}))

    def read_supervisor(self) -> tuple[int, str] | None:
        """Pid and identity (see `identify`) of the newest supervisor."""
        try:
            found = json.loads(self._pid.read_text())
            return int(found["pid"]), str(found["identity"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
