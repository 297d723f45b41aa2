"""Starts and ends the process that shows a run on W&B while it trains. Neither torch nor W&B's SDK.

It is a process of its own beside the ranks, on the first node, and reads the store as anybody could. So
training never waits for it, and an outage of W&B costs nothing but rows that come later.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from trainer import node_watch
from trainer.config import WandbConfig
from trainer.contract import Env, ExitCode
from trainer.run_folder import Attempt
from trainer.services import goes_online

# Paid for: what is not sent by then follows with the next attempt or by `ldlm wandb sync` (guess).
_FINISH_S = 20.0
# The SDK's own talk on the terminal, and its reports of errors to its makers.
QUIET = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}


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
        if goes_online(config, os.environ):
            try:
                self._start(attempt)
            except OSError as error:
                print(f"warning: W&B: its process cannot be started: {error}; send it later: {self._later}",
                      flush=True)

    def _start(self, attempt: Attempt) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ldlm-wandb-"))
        self._lock = node_watch.hold(self._folder)
        told = {Env.END_FOLDER: str(self._folder), Env.ATTEMPT: str(attempt.number), "PYTHONUNBUFFERED": "1",
                **QUIET}
        command = [sys.executable, "-m", "trainer.wandb_follow"]
        self._process = subprocess.Popen(command, env=os.environ | told)

    def end(self, code: int) -> None:
        """Let it send the rest, for a while; at once where the machine is about to go.

        Args:
            code: The node's exit code; the record has it already.
        """
        if self._process is None:
            self._say_why_not(code)
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

    def _say_why_not(self, code: int) -> None:
        if goes_online(self._config, os.environ) or self._config.mode == "off" or code != ExitCode.FINISHED:
            return
        why = "train.wandb.mode is offline" if self._config.mode == "offline" else f"no {Env.WANDB_KEY}"
        print(f"W&B: nothing was sent ({why}); this sends it: {self._later}", flush=True)
