"""W&B while a run trains: a process of its own beside the ranks, on the first node. No torch.

It reads the store as anybody could, so training never waits for it, and an outage of W&B costs nothing but
rows that come later. `python -m trainer.wandb_node` is that process; the node starts and ends it.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pydantic import BaseModel

from trainer import node_watch
from trainer.config import TrainConfig, WandbConfig
from trainer.contract import Env, ExitCode, LdlmError, Name, attempt_file
from trainer.run_folder import Attempt, Heartbeat, RunFolder
from trainer.store import open_store

# Paid for: what is not sent by then follows with the next attempt or by `ldlm wandb sync` (guess).
_FINISH_S = 20.0
_RETRY_S = 60.0  # after W&B could not be reached (guess)


# The SDK's own talk on the terminal, and its reports of errors to its makers.
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


class Seen(BaseModel):
    """`wandb.json` of an attempt that is shown while it runs."""

    url: str


def goes_online(config: WandbConfig, environment: Mapping[str, str]) -> bool:
    """True where a run is shown while it trains. Without a key nothing is ever sent."""
    return config.mode in ("auto", "online") and bool(environment.get(Env.WANDB_KEY))


class Follower:
    """The process that shows an attempt, seen from its node.

    Args:
        config: What the recipe says.
        attempt: Of this node.
        run_id: For the command that is printed.
    """

    def __init__(self, config: WandbConfig, attempt: Attempt, run_id: str) -> None:
        self._later = f"ldlm wandb sync {run_id}"
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        if not goes_online(config, os.environ):
            return
        self._folder = Path(tempfile.mkdtemp(prefix="ldlm-wandb-"))
        self._lock = node_watch.hold(self._folder)
        told = {Env.END_FOLDER: str(self._folder), Env.ATTEMPT: str(attempt.number), "PYTHONUNBUFFERED": "1",
                **QUIET}
        self._process = subprocess.Popen([sys.executable, "-m", "trainer.wandb_node"], env=os.environ | told)

    def end(self, code: int) -> None:
        """Let it send the rest, for a while; at once where the machine is about to go.

        Args:
            code: The node's exit code; the record has it already.
        """
        if self._process is None:
            if self._config.mode != "off" and code == ExitCode.FINISHED:
                print(f"W&B: nothing was sent ({self._why_not()}); this sends it: {self._later}", flush=True)
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(0 if code == ExitCode.RECOVER else _FINISH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode and code != ExitCode.RECOVER:
            print(f"W&B: not everything was sent; this sends the rest: {self._later}", flush=True)
        if self._lock:
            self._lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _why_not(self) -> str:
        return "train.wandb.mode is offline" if self._config.mode == "offline" else f"no {Env.WANDB_KEY}"


class _Sender:
    """Opens the view when W&B can be reached; rows that could not be handed over wait for the next time."""

    def __init__(self, folder: RunFolder, config: TrainConfig, attempt: int, scratch: Path) -> None:
        from trainer.wandb_rows import Showing

        self._folder, self._config, self._attempt, self._scratch = folder, config, attempt, scratch
        self._showing = Showing(folder, config)
        self._view = None
        self._warned = ""

    def pass_on(self, *, exit_code: int | None = None) -> bool:
        """Send what is settled; with an exit code, end. False, and a warning, when that failed."""
        try:
            self._send(exit_code)
        except LdlmError as error:
            if error.problem != self._warned:
                print(f"warning: {error}", flush=True)
            self._warned = error.problem
            return False
        return True

    def _send(self, exit_code: int | None) -> None:
        from trainer.wandb_view import View

        if self._view is None:
            self._view = View.open(self._showing, self._folder.run_id, self._config.wandb, self._scratch)
            print(f"W&B: {self._view.url}", flush=True)
            self._folder.write(attempt_file(self._attempt, Name.WANDB), Seen(url=self._view.url or ""))
        self._view.send()
        if exit_code is not None:
            self._view.finish(exit_code)


def main() -> int:
    """Follow the attempt of this node until told to end. Returns 1 when something is left to be sent."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.set())
    scratch = Path(os.environ[Env.END_FOLDER])
    node_watch.end_with_node(scratch)
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
    number = int(os.environ[Env.ATTEMPT])
    sender, durable, ok = _Sender(folder, config, number, scratch), -1, True
    while not stop.is_set():
        found = durable_step(folder, number)
        if found != durable or not ok:
            ok, durable = sender.pass_on(), found
        stop.wait(config.heartbeat_s if ok else _RETRY_S)
    end = folder.attempt(number).end
    return 0 if sender.pass_on(exit_code=end.exit_code or 0 if end else 0) else 1


def durable_step(folder: RunFolder, number: int) -> int:
    """What the newest heartbeat of an attempt says; 0 when there is none, or the store does not answer."""
    try:
        beat = folder.find(attempt_file(number, "heartbeat.json"), Heartbeat)
    except LdlmError:
        return 0
    return beat.durable_step if beat else 0


if __name__ == "__main__":
    sys.exit(main())
