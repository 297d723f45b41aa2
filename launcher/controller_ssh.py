"""The way to a controller: the user's own ssh, one connection for all commands, and a tunnel through it.

The connection is a process of ssh in the background that outlives the command which opened it and ends itself
where the other side is silent for 45 s. Whoever needs it looks first whether it is alive.
"""

import fcntl
import hashlib
import json
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher import console
from launcher.controller import SCHEME, STATE, Address, Controller, parse_address
from launcher.errors import ConfigError, EngineError
from launcher.home import ldlm_home

_LONGEST_PATH = 85  # of a socket: 107 bytes by Linux, 103 by macOS, 17 of which ssh needs while it makes it
_KEEP_ALIVE = ("-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
_PATIENCE_S = 60  # how long a controller may take to take back what was interrupted


def server_url(said: str) -> str:
    """URL at which an API server can be asked: of a tunnel, opened if need be, for one behind ssh.

    Args:
        said: As the settings have it.

    Raises:
        EngineError: ssh does not get there, or no controller is there.
    """
    if not said.startswith(SCHEME):
        return said
    return f"http://127.0.0.1:{Connection(parse_address(said, 'api_server')).tunnel()}"


class Connection:
    """To one machine, by ssh.

    Raises:
        ConfigError: The home of ldlm has too long a name for a socket.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        name = hashlib.sha256(address.url.encode()).hexdigest()[:10]
        self._socket = ldlm_home().absolute() / "ssh" / name
        if len(str(self._socket)) > _LONGEST_PATH:
            raise ConfigError(f"{self._socket} is too long a name for the socket of a connection",
                              place="LDLM_HOME",
                              fix=f"set it to a folder whose name has {_LONGEST_PATH - 15} letters at most")

    def open(self) -> None:
        """Connect unless it is connected. Raises EngineError."""
        with self._only_one():
            self._open()

    def tunnel(self) -> int:
        """Port on this machine behind which the controller's API server is. Raises EngineError."""
        with self._only_one():
            self._open()
            remote = self._remembered().get("remote") or self._remote_port()
            port = self._remembered().get("port") or _free_port()
            if not self._forward(port, remote):
                port = _free_port()  # somebody else has taken it meanwhile
                if not self._forward(port, remote):
                    raise self._refused("ssh opens no tunnel to it")
            self._remember(port=port, remote=remote)
            return port

    def run(self, script: str) -> str:
        """What a script of `sh` prints there. Raises EngineError where it fails."""
        self.open()
        done = subprocess.run([*self._ssh(), "sh"], input=script, text=True, capture_output=True, check=False)
        if done.returncode:
            raise self._refused(_last_line(done.stderr) or f"a command ended with {done.returncode}")
        return done.stdout

    def send(self, archive: Callable[[], "subprocess.Popen[bytes]"], command: str) -> None:
        """Let a command there read what a program here writes. Raises EngineError, KeyboardInterrupt."""
        self.open()
        with archive() as source:
            done = subprocess.run([*self._ssh(), _in_sh(command)], stdin=source.stdout, capture_output=True,
                                  check=False)
        if source.returncode or done.returncode:
            why = _last_line(done.stderr.decode(errors="replace"))
            raise self._refused(f"what was sent did not arrive: {why}")

    def ask(self, command: str, line: str = "",
            say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Have `controller_host.py` do something, and wait for its answer.

        After Ctrl-C it is told that nobody waits, and may take back what it had begun.

        Args:
            line: What it reads first.
            say: Told what it says meanwhile.

        Raises:
            EngineError: It could not be done.
        """
        self.open()
        child = subprocess.Popen(
            [*self._ssh(), _in_sh(command)], text=True, start_new_session=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdin and child.stdout and child.stderr
        talk = threading.Thread(target=_pass_on, args=(child.stderr, say), daemon=True)
        talk.start()
        try:
            with suppress(BrokenPipeError):
                child.stdin.write(line + "\n")
                child.stdin.flush()
            said = child.stdout.read()
            child.wait()
        except KeyboardInterrupt:
            child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_PATIENCE_S)
            raise
        finally:
            child.kill()  # no more than the way to it
            child.wait()
        talk.join()
        return self._understood(said)

    def close(self) -> None:
        """End the connection, and with it the tunnel."""
        with self._only_one():
            self._call("-O", "exit")
            for path in (self._socket, self._memory):
                path.unlink(missing_ok=True)

    def forget_port(self) -> None:
        """The controller may have another from now on."""
        self._memory.unlink(missing_ok=True)

    # -- within ---------------------------------------------------------------------------------

    @property
    def _memory(self) -> Path:
        """Beside the socket: the tunnel's two ports."""
        return self._socket.with_suffix(".json")

    def _ssh(self, *options: str) -> list[str]:
        port = ["-p", str(self.address.port)] if self.address.port else []
        return ["ssh", "-S", str(self._socket), *port, *options, "--", self.address.destination]

    def _call(self, *options: str) -> bool:
        """Say something to the process that holds the connection. Returns whether it could be done."""
        try:
            return subprocess.run(self._ssh(*options), capture_output=True, check=False).returncode == 0
        except FileNotFoundError as error:
            raise EngineError("ssh is not installed here", place=self.address.url,
                              fix="install it: apt install openssh-client") from error

    def _open(self) -> None:
        if self._call("-O", "check"):
            return
        self._socket.unlink(missing_ok=True)  # of a connection that was killed
        asks = () if console.can_ask() else ("-o", "BatchMode=yes")
        command = self._ssh("-M", "-N", "-f", "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes",
                            *_KEEP_ALIVE, *asks)
        with tempfile.TemporaryFile("w+") as errors:  # the process that stays would hold a pipe open
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                                  check=False)
            errors.seek(0)
            if done.returncode:
                raise self._refused(f"ssh does not get there: {_last_line(errors.read())}")

    def _forward(self, port: int, remote: int) -> bool:
        return self._call("-O", "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{remote}")

    def _remote_port(self) -> int:
        done = subprocess.run([*self._ssh(), _in_sh(f"cat {STATE}")], capture_output=True, text=True,
                              check=False)
        try:
            return Controller.read(done.stdout).port
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                "no controller is set up there", place=self.address.url,
                fix=f"ldlm controller up --ssh {self.address.typed} --usd-per-hour PRICE") from error

    def _understood(self, said: str) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError:
            raise self._refused("the connection ended before it had answered") from None
        if "problem" in answer:
            raise EngineError(answer["problem"], place=self.address.url,
                              fix="put that right there, then repeat; its log: ~/.ldlm/controller.log")
        return answer

    def _refused(self, problem: str) -> EngineError:
        return EngineError(problem, place=self.address.url,
                           fix=f"get there by hand first: {self.address.ssh}")

    def _remembered(self) -> Mapping[str, int]:
        try:
            found: dict[str, int] = json.loads(self._memory.read_text())
            return found
        except (OSError, ValueError):
            return {}

    def _remember(self, **ports: int) -> None:
        self._memory.write_text(json.dumps(ports))

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Two commands at once would open two connections."""
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._socket.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _in_sh(command: str) -> str:
    """For whatever shell the user has there."""
    return f"sh -c {shlex.quote(f'cd && {command}')}"


def _pass_on(lines: Iterable[str], say: Callable[[str], None]) -> None:
    for line in lines:
        say(line.rstrip())


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
