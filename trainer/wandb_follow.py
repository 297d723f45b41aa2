"""The process that sends a run to W&B while its node trains: `python -m trainer.wandb_follow`. No torch."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from pydantic import BaseModel

from trainer import node_watch
from trainer.config import TrainConfig
from trainer.contract import Env, LdlmError, Name, attempt_file
from trainer.deliveries import Channel, deliver
from trainer.news import starts
from trainer.run_folder import Heartbeat, RunFolder
from trainer.store import open_store
from trainer.wandb_rows import Showing
from trainer.wandb_view import View

_RETRY_S = 60.0  # after W&B could not be reached (guess)


class Seen(BaseModel):
    """`wandb.json` of an attempt that is shown while it runs."""

    url: str


class _Sender:
    """Opens the view when W&B can be reached; rows that could not be handed over wait for the next time."""

    def __init__(self, folder: RunFolder, config: TrainConfig, attempt: int, scratch: Path) -> None:
        self._folder, self._config, self._attempt, self._scratch = folder, config, attempt, scratch
        self._showing, self._start = Showing(folder, config), starts(folder.events())
        self._view: View | None = None
        self._warned = ""

    def pass_on(self, *, has_rows: bool = True, exit_code: int | None = None) -> bool:
        """Send what is settled, and alerts; with an exit code, end. False, and a warning, when that failed.

        Args:
            has_rows: False: look for alerts alone.
        """
        try:
            self._send(has_rows, exit_code)
        except LdlmError as error:
            if error.problem != self._warned:
                print(f"warning: {error}", flush=True)
            self._warned = error.problem
            return False
        return True

    def _send(self, has_rows: bool, exit_code: int | None) -> None:
        if self._view is None:
            self._view = View.open(self._showing, self._folder.run_id, self._config.wandb, self._scratch)
            print(f"W&B: {self._view.url}", flush=True)
            self._folder.write(attempt_file(self._attempt, Name.WANDB), Seen(url=self._view.url or ""))
        if has_rows:
            self._view.send()
        deliver(self._folder, Channel.WANDB, self._view.alert, start=self._start, by=socket.gethostname())
        if exit_code is not None:
            self._view.finish(exit_code)


def main() -> int:
    """Follow the attempt of this node until told to end. Returns 1 when something is left to be sent."""
    stop = threading.Event()
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, lambda number, frame: stop.set())
    scratch = Path(os.environ[Env.END_FOLDER])
    node_watch.end_with_node(scratch)
    config = TrainConfig.model_validate_json(os.environ[Env.TRAIN_CONFIG])
    folder = RunFolder(open_store(os.environ[Env.STORE]), os.environ[Env.RUN_ID])
    number = int(os.environ[Env.ATTEMPT])
    sender, durable, ok = _Sender(folder, config, number, scratch), -1, True
    while not stop.is_set():
        found = durable_step(folder, number)
        ok, durable = sender.pass_on(has_rows=found != durable or not ok), found
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
