"""Tells of an end that only SkyPilot's server has seen, from that server: the laptop may be off.

What knows how to tell reads the run's store, so it runs in a process of its own, with the environment that
the task's nodes would have had: store, its keys, and the webhook.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from launcher.waits import End
from trainer.contract import Env


def tell_end(environment: Mapping[str, str], end: End) -> None:
    """Begin to tell, and wait for nothing; what has been told stands in the run's record.

    Args:
        environment: Envs and secrets of the run's task; without a webhook there is nobody to tell.
        end: Of the run.
    """
    if environment.get(Env.WEBHOOK):
        threading.Thread(target=_tell, args=(dict(environment), end), daemon=True, name="ldlm-tell").start()


def _tell(environment: dict[str, str], end: End) -> None:
    subprocess.run([sys.executable, "-m", "trainer.tell", end.outcome, end.reason], check=False,
                   cwd=Path(__file__).parents[1], env=os.environ | environment, stdin=subprocess.DEVNULL)
