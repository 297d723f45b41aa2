"""`ldlm` as forks of one process that has imported it: imports are most of what a quick command takes.

Each call is a process of its own all the same, with its arguments, environment, folder and files. What Python
and its libraries look at when they start has to be as it was for that one process.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "TERM", "COLOR", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")
# What the most frequent commands import.
_IMPORTED = ("launcher.cli", "launcher.commands", "launcher.launching", "launcher.plan_screen",
             "launcher.screens", "launcher.cost_command", "launcher.policy_ours", "numpy", "obstore.store")
_SERVER = "import sys; from tests.ldlm_forks import serve; serve(int(sys.argv[1]))"


class Forks:
    """The way to the process that forks: one call at a time."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._lock, self._start = threading.Lock(), _at_start(env)
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(other.fileno())], cwd=ROOT, pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**env, "OPENBLAS_NUM_THREADS": "1"})
        atexit.register(self.end)

    def run(self, args: Sequence[str], cwd: Path, env: Mapping[str, str],
            timeout_s: float) -> "subprocess.CompletedProcess[str] | None":
        """As `subprocess.run`, with nothing on its standard input. None where a fork would be another thing:
        in a folder with code of its own, started otherwise, or beside another call."""
        has_own_code = cwd != ROOT and (cwd / "launcher").exists()
        if has_own_code or _at_start(env) != self._start or self._process.poll() is not None:
            return None
        if not self._lock.acquire(blocking=False):
            return None
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(3)]
            try:
                code = self._code_of(json.dumps([args, str(cwd), dict(env)]).encode(), files, timeout_s)
            except TimeoutError:
                self._process.kill()  # it waits for that call: nobody may ask it again
                raise
            for file in files:
                file.seek(0)
            return subprocess.CompletedProcess(args, code, files[1].read(), files[2].read())

    def _code_of(self, call: bytes, files: Sequence[IO[str]], timeout_s: float) -> int:
        self._socket.settimeout(timeout_s)
        socket.send_fds(self._socket, [_packed(len(call))], [file.fileno() for file in files])
        self._socket.sendall(call)
        return _number(self._socket.recv(4))

    def end(self) -> None:
        """The process ends when nobody can ask it any more."""
        self._socket.close()
        self._process.wait()


def _at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_AT_START)}


def _packed(number: int) -> bytes:
    return array.array("i", [number]).tobytes()


def _number(packed: bytes) -> int:
    return array.array("i", packed)[0]


def serve(socket_number: int) -> None:
    """Fork for each call, and send back its exit code."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # forks share what is not touched
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    calls = socket.socket(fileno=socket_number)
    while True:
        size, files, _, _ = socket.recv_fds(calls, 4, 3)
        if not size:
            return
        call = json.loads(calls.recv(_number(size), socket.MSG_WAITALL))
        if (child := os.fork()) == 0:
            calls.close()
            become(*call, files)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        calls.sendall(_packed(os.waitstatus_to_exitcode(status)))


def become(args: list[str], cwd: str, env: dict[str, str], files: list[int]) -> None:
    """That command, in the place of this fork. Does not return."""
    from launcher.__main__ import main

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["-c", *args]
    main()
