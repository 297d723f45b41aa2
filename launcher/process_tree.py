"""Processes as a tree that nothing escapes from: find, identify, kill. Linux only."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def become_subreaper() -> None:
    """Make orphaned descendants ours, so that one that daemonised still counts as a descendant."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def identify(pid: int) -> str | None:
    """A text that no other process ever shares, reboots included; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # Field 22, clock ticks from boot to the start; the name before it may hold spaces and brackets.
    return f"{boot}/{stat.rpartition(')')[2].split()[19]}"


def dying_with_us(command: Sequence[str]) -> list[str]:
    """The same command, which gets SIGTERM when this process dies, however it does."""
    program = Path(__file__).with_name("die_with_parent.py")
    return [sys.executable, "-I", "-S", str(program), str(os.getpid()), *command]


def start_bash(text: str, folder: Path, env: Mapping[str, str], output: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a shell text in its own session; it gets SIGTERM when this process dies."""
    command = dying_with_us(["bash", "-c", text])
    return subprocess.Popen(command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL,
                            stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def kill_descendants(timeout_s: float = 30.0) -> list[int]:
    """SIGKILL all descendants of this process, at once and without a word.

    Each is stopped first, so that none can start another while the rest is being collected.

    Returns:
        Pids that would not die in time (they hang in the kernel); normally none.
    """
    deadline = time.monotonic() + timeout_s
    while living := _freeze_descendants():
        for process in living:
            with suppress(*_GONE):
                process.kill()
        if time.monotonic() > deadline:
            return [process.pid for process in living]
        time.sleep(0.02)
    return []


def reap_zombies() -> None:
    """Collect ended children. Only while no `Popen` is waited for: this would take its exit code."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Processes of this user that carry an environment variable."""
    found = []
    for process in psutil.process_iter():
        with suppress(*_GONE):
            if process.pid != os.getpid() and process.environ().get(variable) == value and _lives(process):
                found.append(process)
    return found


def _freeze_descendants() -> list[psutil.Process]:
    stopped: dict[int, psutil.Process] = {}
    while fresh := [process for process in psutil.Process().children(recursive=True)
                    if process.pid not in stopped and _lives(process)]:
        for process in fresh:
            stopped[process.pid] = process
            with suppress(*_GONE):
                process.suspend()
    return list(stopped.values())


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
