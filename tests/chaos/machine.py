"""One attempt on a machine of its own: the real node, and ranks that are forked instead of started.

The driver has imported everything and has no threads; a node and its ranks are forks of it. A process that
has used the store cannot fork another that does, so what will stand for torchrun is forked first, and waits.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple, NoReturn

from tests.chaos.faults import Board, Faults, install
from tests.chaos.plan import NODE, Life
from trainer import node

_GRACE_S = 3.0  # as torchrun: SIGTERM to the peers of a rank that has died, then SIGKILL
_GONE_S = 10.0  # processes end with their node
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans become ours, so that none is overlooked

Rank = Callable[[int, "Ranks"], None]  # what a rank does; it does not return


class Ranks(NamedTuple):
    """What a rank knows of its attempt.

    Attributes:
        lines: To rank 0 from each other rank, and on rank 0 to each of them.
    """

    num_ranks: int
    faults: Faults
    board: Board
    lines: Sequence[socket.socket]


class End(NamedTuple):
    """How an attempt ended.

    Attributes:
        code: Of the node; negative: the signal.
        left: Processes that did not end with their node.
    """

    code: int
    output: str
    seconds: float
    left: int


def adopt_orphans() -> None:
    """To be called once by the driver."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


class Machine:
    """An attempt under way.

    Args:
        life: What is to befall it.
        rank: What each rank does.
        environment: Of the node.
    """

    def __init__(self, life: Life, rank: Rank, environment: Mapping[str, str], delay_s: float) -> None:
        self.board, self._output = Board(), b""
        self.began_s = time.monotonic()
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._pid = os.fork()
        if not self._pid:
            with _leaving():
                os.setsid()
                os.dup2(write, 1)
                os.dup2(write, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
                os.environ.update(environment)
                os._exit(_run_node(life, rank, self.board, delay_s))
        os.close(write)

    def wait(self, deadline_s: float) -> End | None:
        """Its end; None as soon as it sleeps. Raises TimeoutError with what it printed."""
        while time.monotonic() - self.began_s < deadline_s:
            self._drain()
            pid, status = self._reap()
            if pid == self._pid and os.WIFSTOPPED(status):
                return None
            if pid == self._pid:
                seconds = time.monotonic() - self.began_s
                left = self._await_all_gone()
                self._drain()
                os.close(self._read)
                code = os.waitstatus_to_exitcode(status)
                return End(code, self._output.decode(errors="replace"), seconds, left)
            select.select([self._read], [], [], 0.01)
        self._end_all()
        self._drain()
        raise TimeoutError(self._output.decode(errors="replace"))

    def wake(self) -> None:
        """Let a machine that sleeps go on."""
        os.killpg(self._pid, signal.SIGCONT)

    def _reap(self) -> tuple[int, int]:
        """What has ended or sleeps, as `waitpid`: its node may wait for orphans to be gone."""
        try:
            return os.waitpid(-self._pid, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:  # it has not begun a session of its own yet
            return 0, 0

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._read, 65536):
                self._output += data

    def _await_all_gone(self) -> int:
        give_up = time.monotonic() + _GONE_S
        while time.monotonic() < give_up:
            self._drain()
            try:
                if not os.waitpid(-self._pid, os.WNOHANG)[0]:
                    time.sleep(0.005)
            except ChildProcessError:
                return 0
        return self._end_all()

    def _end_all(self) -> int:
        """Kill what is left; how many there were."""
        count = 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-self._pid, 0)
                count += 1
        return count


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """A fork never comes back into the driver's code."""
    try:
        yield
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        os._exit(1)


def _run_node(life: Life, rank: Rank, board: Board, delay_s: float) -> int:
    board.node = os.getpid()
    read, write = os.pipe()
    standby = os.fork()
    if not standby:
        with _leaving():
            os.close(write)
            asked = b"".join(iter(lambda: os.read(read, 65536), b""))
            if not asked:
                os._exit(0)  # the node ended before it had an attempt
            os.environ.update(json.loads(asked))
            _run_ranks(life, rank, board, delay_s)
    os.close(read)
    install(Faults(life.strike, board, NODE, life.num_ranks, delay_s))

    def popen(command: Sequence[str], env: Mapping[str, str], **_output: int) -> "_Forked":
        os.write(write, json.dumps(dict(env)).encode())
        os.close(write)
        return _Forked(standby)

    node.subprocess = SimpleNamespace(Popen=popen)  # type: ignore[assignment]
    return node.main(["train"])


class _Forked:
    """What the node sees of a program that it has started: as much of `Popen` as it uses."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self, _timeout_s: float) -> int | None:
        return self._reap(0)

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _reap(self, flags: int) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, flags)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _run_ranks(life: Life, rank: Rank, board: Board, delay_s: float) -> NoReturn:
    """As torchrun: start the ranks, and end them all when one has died."""
    lines = [socket.socketpair() for _ in range(1, life.num_ranks)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alive = set()
    for number in range(life.num_ranks):
        pid = os.fork()
        if not pid:
            with _leaving():
                os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0",
                               "WORLD_SIZE": str(life.num_ranks), "LOCAL_WORLD_SIZE": str(life.num_ranks),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                own = [first for first, _ in lines] if number == 0 else [lines[number - 1][1]]
                for line in {end for pair in lines for end in pair}.difference(own):
                    line.close()  # a peer's death must be seen
                faults = Faults(life.strike, board, number, life.num_ranks, delay_s)
                install(faults)
                rank(number, Ranks(life.num_ranks, faults, board, own))
        alive.add(pid)
    for line in (end for pair in lines for end in pair):
        line.close()
    failed_at = 0.0
    while alive:
        for pid in list(alive):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                alive.discard(pid)
                if status and not failed_at:
                    failed_at = time.monotonic()
                    for other in alive:
                        os.kill(other, signal.SIGTERM)
        if failed_at and time.monotonic() - failed_at > _GRACE_S:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    os._exit(int(bool(failed_at)))
