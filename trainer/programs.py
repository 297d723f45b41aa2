"""The end of programs that a node has started. No torch."""

import contextlib
import subprocess

import psutil

_DIES_WITHIN_S = 10.0  # a large process gives its memory back in seconds (guess)


def kill_tree(child: "subprocess.Popen[bytes]") -> None:
    """SIGKILL to a program and everything that it started: torchrun's ranks would survive it.

    One that waits for a GPU or a disk that does not answer is left behind, and its `returncode` stays None.
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
