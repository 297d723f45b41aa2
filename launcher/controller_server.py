"""Starts and ends SkyPilot's API server on a controller, and has systemd or cron look after it.

Standard library only, as `controller_host.py`, which uses it.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from launcher.api_health import ask_health

HOME = Path.home()
CHECKOUT = HOME / "ldlm"
PYTHON = CHECKOUT / ".venv/bin/python"
SKY = CHECKOUT / ".venv/bin/sky"
SESSION = HOME / ".ldlm/controller-session.json"
STARTS_WITHIN_S = 180  # 7 s on an idle machine (measured); a small one may need to compile everything first
_UNIT = HOME / ".config/systemd/user/ldlm-controller.service"
_CRON_MARK = "# ldlm controller"
_POLL_S = 0.2


class Problem(Exception):
    """Why it cannot be done."""


class Server:
    """The API server of this machine.

    Args:
        port: On the loopback.
        service: Who looks after it: `systemd`, `cron`, or nobody in a `session` of its own.
        run: Carries a command out. Raises Problem.
        look: Called while it is waited for; may raise.
    """

    def __init__(self, port: int, service: str, run: Callable[[Sequence[str]], object],
                 look: Callable[[], None]) -> None:
        self.port, self.service = port, service
        self._run, self._look = run, look

    def answer(self) -> dict[str, Any]:
        """What it says of its health; nothing where it does not answer."""
        with suppress(OSError, ValueError):
            return ask_health(f"http://127.0.0.1:{self.port}", timeout_s=5)
        return {}

    def start(self) -> None:
        """Start it unless it is there, and wait until it answers. Raises Problem."""
        if self._pid() is None:
            self._end_rest()
            if self.service == "systemd":
                self._run(["systemctl", "--user", "restart", _UNIT.name])
            else:
                self._run([str(SKY), "api", "start"])
        give_up = time.monotonic() + STARTS_WITHIN_S
        while not self.answer():
            if time.monotonic() > give_up:
                raise Problem(f"its API server did not answer within {STARTS_WITHIN_S} s: see "
                              "~/.sky/api_server/server.log there")
            self._look()
            time.sleep(_POLL_S)
        if pid := self._pid():
            SESSION.write_text(json.dumps([_boot(), os.getsid(pid)]))

    def stop(self) -> None:
        """End it. Raises Problem."""
        if self.service == "systemd" and _UNIT.exists():
            self._run(["systemctl", "--user", "stop", _UNIT.name])
        if SKY.exists():
            self._run([str(SKY), "api", "stop"])
        self._end_rest()

    def look_after(self) -> None:
        """Have it started with the machine, and again where it ends. Raises Problem, OSError."""
        if self.service == "systemd":
            _UNIT.parent.mkdir(parents=True, exist_ok=True)
            _UNIT.write_text(_unit(self.port))
            for words in (("daemon-reload",), ("enable", _UNIT.name)):
                self._run(["systemctl", "--user", *words])
            self._run(["loginctl", "enable-linger"])
        elif self.service == "cron":
            line = f"*/5 * * * * {PYTHON} -m launcher.controller_host start > /dev/null 2>&1 {_CRON_MARK}"
            _write_crontab([*_crontab(), line])

    def leave_alone(self) -> None:
        """Undo `look_after`. Raises Problem, OSError."""
        if self.service == "systemd" and _UNIT.exists():
            self._run(["systemctl", "--user", "disable", "--now", _UNIT.name])
            _UNIT.unlink()
        elif self.service == "cron":
            _write_crontab(_crontab())

    def _pid(self) -> int | None:
        for pid in _pids():
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"sky.server.server" in words and f"--port={self.port}".encode() in words:
                    return pid
        return None

    def _end_rest(self) -> None:
        """A server that was killed leaves workers behind, which hold its port (seen)."""
        if not SESSION.exists():
            return
        boot, session = json.loads(SESSION.read_text())
        for pid in _pids() if boot == _boot() else ():
            with suppress(OSError):
                if os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)
        SESSION.unlink()


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _boot() -> str:
    """Numbers of processes are given anew when a machine starts."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _unit(port: int) -> str:
    return "\n".join([
        "[Unit]", "Description=SkyPilot's API server, set up by ldlm", "", "[Service]",
        "WorkingDirectory=%h", f"Environment=SKYPILOT_API_SERVER_LOCAL_PORT={port}",
        "Environment=SKYPILOT_DISABLE_USAGE_COLLECTION=1",
        "ExecStart=%h/ldlm/.venv/bin/sky api start --foreground", "Restart=always", "RestartSec=10",
        # Its workers do not end by themselves (seen), and systemd would wait for 90 s.
        "TimeoutStopSec=10", "",
        "[Install]", "WantedBy=default.target", ""])


def _crontab() -> list[str]:
    """The user's lines without ours."""
    done = subprocess.run(["crontab", "-l"], text=True, capture_output=True, check=False)
    return [line for line in done.stdout.splitlines() if _CRON_MARK not in line]


def _write_crontab(lines: Sequence[str]) -> None:
    subprocess.run(["crontab", "-"], input="".join(f"{line}\n" for line in lines), text=True, check=True)
