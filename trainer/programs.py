"""Programs that a node starts: what they print, and their end. No torch.

A program that waits for a GPU or a disk that does not answer survives SIGKILL for as long as that does not.
Nobody may wait for it then: not the node, and not SkyPilot, which reads what a job prints until the last
process that could print has ended. So programs print into a pipe of the node's own.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import psutil

_DIES_WITHIN_S = 10.0  # a large process gives its memory back in seconds (guess)
_PRINTS_WITHIN_S = 5.0  # what a program has printed is in the pipe when it ends


def kill_tree(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a program and everything that it started: torchrun's ranks would survive it.

    One that does not end by that is left behind, and its `returncode` stays None.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(child.pid).children(recursive=True)
        child.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)
    try:
        child.wait(_DIES_WITHIN_S)
    except subprocess.TimeoutExpired:
        print(f"warning: process {child.pid} survives SIGKILL, as on a GPU or a disk that does not answer: "
              "it is left behind", flush=True)


@contextlib.contextmanager
def relayed() -> Iterator[int]:
    """A descriptor into which programs print. What they print appears here, and not for longer than the block
    where one of them is left behind."""
    reader, writer = os.pipe()
    relay = threading.Thread(target=_relay, args=(reader,), daemon=True, name="relay")
    relay.start()
    try:
        yield writer
    finally:
        os.close(writer)
        relay.join(_PRINTS_WITHIN_S)


def _relay(reader: int) -> None:
    while data := os.read(reader, 2**16):
        with contextlib.suppress(OSError):  # nobody reads any more: programs go on all the same
            while data:
                data = data[os.write(1, data):]
    os.close(reader)
