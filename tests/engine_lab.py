"""One run on the local engine, as the tests of its client and of its supervisor see it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import yaml

from launcher.engine import EnginePhase, EngineState
from launcher.engine_folder import EngineFolder, engine_home
from launcher.local_engine import LocalEngine
from launcher.preempt_at import parse_preempt_at
from trainer.contract import Outcome
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import open_store

ROOT = Path(__file__).parents[1]
NODE = f"exec {sys.executable} {ROOT / 'tests' / 'fake_node.py'}"
RUN_ID = "r1"
TIMEOUT_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.03)


class Lab:
    """One run of one engine, with its store."""

    def __init__(self, folder: Path) -> None:
        self.workdir = folder / "work"
        self.workdir.mkdir()
        self.store_url = f"file://{folder}/store"
        self.engine = LocalEngine()
        self.folder = EngineFolder(engine_home() / RUN_ID)
        self.run = RunFolder(open_store(self.store_url), RUN_ID)

    def document(self, name: str, run: str, *, setup: str | None = None, restarts: int = 0,
                 envs: dict[str, object] | None = None) -> dict[str, object]:
        recovery = {"strategy": "FAILOVER", "max_restarts_on_errors": restarts, "recover_on_exit_codes": [75]}
        found: dict[str, object] = {
            "name": name, "workdir": str(self.workdir), "run": run, "resources": {"job_recovery": recovery},
            "envs": {"LDLM_RUN_ID": RUN_ID, "LDLM_STORE": self.store_url,
                     "LDLM_PRICE_USD_PER_HOUR": "1.50", "LDLM_OFFER": "this machine", **(envs or {})}}
        return found if setup is None else {**found, "setup": setup}

    def task(self, *documents: dict[str, object]) -> str:
        return yaml.safe_dump_all([{"name": RUN_ID, "execution": "serial"}, *documents])

    def submit(self, run: str, *, preempt_at: str | None = None, **keys: object) -> None:
        task = self.task(self.document("train", run, **keys))  # type: ignore[arg-type]
        self.engine.submit(task, preempt_at=parse_preempt_at(preempt_at) if preempt_at else None)

    def wait_for_end(self) -> EngineState:
        wait_until(lambda: self.engine.state(RUN_ID).phase is EnginePhase.ENDED, "the run ended")
        wait_until(lambda: not self.folder.is_locked(), "the supervisor was gone")
        return self.engine.state(RUN_ID)

    def outcome(self) -> Outcome:
        return self.run.read("outcome.json", RunOutcome).outcome

    def write_outcome(self, outcome: Outcome) -> None:
        old = RunOutcome(outcome=outcome, at=datetime.now(UTC), step=1, reason="old")
        self.run.write("outcome.json", old)

    def ends(self) -> list[tuple[int | None, bool]]:
        """Exit code of each attempt, and whether it was preempted."""
        return [(files.end.exit_code, files.end.preempted) for files in self.run.attempts() if files.end]

    def log(self, attempt: int = 1) -> str:
        path = self.folder.attempt_log(attempt)
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """Leave no process behind, however the test ended."""
        for _ in range(2):
            if self.folder.is_locked():
                self.engine.cancel(RUN_ID)
                time.sleep(0.3)
        wait_until(lambda: not self.folder.is_locked(), "the supervisor was gone")

    def pid_in(self, name: str) -> int:
        path = self.workdir / name
        wait_until(lambda: path.exists() and path.read_text().strip(), f"{name} was written")
        return int(path.read_text())


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def supervise(lab: Lab, run: str, change: str) -> subprocess.Popen[bytes]:
    """Run the supervisor program with one of its constants changed."""
    lab.folder.path.mkdir(parents=True, exist_ok=True)
    lab.folder.task.write_text(lab.task(lab.document("train", run)))
    lock = lab.folder.take_lock()
    program = f"from launcher import attempt_runner as runner, supervisor; {change}; supervisor.main()"
    try:
        return subprocess.Popen([sys.executable, "-c", program, str(lab.folder.path), "--lock", str(lock)],
                                cwd=ROOT, pass_fds=(lock,), start_new_session=True)
    finally:
        os.close(lock)
