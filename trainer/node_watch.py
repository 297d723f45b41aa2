"""Programs end with the node process that started them, however it ends. No torch.

Killed alone, a node leaves torchrun and its ranks behind, which would go on writing into a run that the
next attempt has taken over. A signal on a parent's death does not reach the ranks, since torchrun stands
between; a lock does: the kernel lets go of it the moment the node is gone.
"""

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import IO

_LOCK = "node.lock"


def hold(folder: Path) -> IO[str]:
    """Lock the folder for this process. Keep what is returned open for as long as programs may run."""
    # Child processes do not inherit it: they would hold the lock on.
    lock = (folder / _LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def end_with_node(folder: Path) -> None:
    """Kill this process, from a thread, as soon as nobody holds the folder any more."""
    lock = (folder / _LOCK).open("r")

    def wait() -> None:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="node watch").start()
