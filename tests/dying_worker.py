"""A worker process that the machine kills at once. On its own: whoever is spawned imports it."""

import os
import signal


def die(*_: object) -> None:
    """Take the place of `trainer.prepare_units._serve`."""
    os.kill(os.getpid(), signal.SIGKILL)
