"""`python die_with_parent.py PARENT_PID COMMAND...`: become COMMAND, and get SIGTERM when the parent dies.

A program of its own, because the supervisor has threads (the store's) and must not run Python code
between fork and exec. Standard library only: it starts with `python -I -S`, in about 20 ms.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; survives exec, is not inherited by children


def main(arguments: list[str]) -> None:
    """Arrange the signal, then replace this program by the command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(arguments[0]):  # it died before the arrangement stood
        sys.exit(128 + signal.SIGTERM)
    os.execvp(arguments[1], arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
