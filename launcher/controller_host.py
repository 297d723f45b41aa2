"""What `ldlm controller` does on the controller: `python3 -m launcher.controller_host up|down|start|status`.

Standard library only: it runs before anything is installed there. `up` is told what to do in one line of JSON
on stdin, which stays open while somebody waits: where it closes before a first set-up is done, all of it is
taken back. An update is carried to its end, for runs may be waiting for it. The answer is a line of JSON.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.controller_server import CHECKOUT, HOME, PYTHON, SKY, Problem, Server

INCOMING = HOME / "ldlm.new"
KEPT = (".venv", "ldlm.egg-info")  # of the checkout, whatever commit comes
STATE = HOME / ".ldlm/controller.json"
LOG = HOME / ".ldlm/controller.log"
_POLL_S = 0.2


class Gone(Exception):
    """Nobody waits any more."""


class Host:
    """This machine as a controller."""

    def __init__(self) -> None:
        self._is_watched = False  # whoever asked must stay until it is done
        self.state: dict[str, Any] = json.loads(STATE.read_text()) if STATE.exists() else {}

    def up(self, wish: Mapping[str, Any]) -> dict[str, Any]:
        """Become a controller, or what a newer checkout makes of one. Raises Problem, Gone, OSError."""
        is_first = not self.state.get("commit")
        self._is_watched = is_first
        try:
            if is_first and self._server(wish).answer():
                raise Problem(f"another API server of SkyPilot answers on its port {wish['port']}")
            return self._up(wish)
        except BaseException:
            shutil.rmtree(INCOMING, ignore_errors=True)
            if is_first:
                self._is_watched = False
                self.down()
            raise

    def down(self) -> dict[str, Any]:
        """End the server and remove the keys. The checkout and SkyPilot's own records stay."""
        if not self.state:
            return {"removed": []}
        server = self._server(self.state)
        for step in (server.leave_alone, server.stop):
            with suppress(Problem, OSError, subprocess.CalledProcessError):
                step()  # the keys must go whatever becomes of the server
        removed = [name for name in self.state["files"] if Path(name).expanduser().exists()]
        for name in removed:
            Path(name).expanduser().unlink()
        if server.answer():
            raise Problem(f"its API server still answers on its port {server.port}; the keys are removed")
        STATE.unlink()
        self.state = {}
        return {"removed": removed}

    def start(self) -> None:
        """Start the server of a controller that is set up; what cron does. Raises Problem."""
        if self.state.get("commit"):
            self._server(self.state).start()

    def status(self) -> dict[str, Any]:
        """Whether the server answers, and as which version."""
        answer = self._server(self.state).answer()
        return {"is_alive": bool(answer), "version": answer.get("version")}

    def _up(self, wish: Mapping[str, Any]) -> dict[str, Any]:
        old = dict(self.state)
        self._remember(commit=old.get("commit"), since=old.get("since") or datetime.now(UTC).isoformat(),
                       port=wish["port"], service=wish["service"], clouds=wish["clouds"],
                       files=old.get("files", []))
        before, server = self._server(old or wish), self._server(wish)
        changed = []
        if INCOMING.exists():
            before.stop()
            _swap()
            changed.append(f"the code: commit {wish['commit'][:7]}")
        self._make_environment(wish["clouds"])
        kept, written = self._write_keys(wish["files"])
        changed += [f"keys: {name}" for name in written]
        if "nothing was changed" not in self._run([str(PYTHON), "-m", "launcher", "init", "--yes"]):
            changed.append("SkyPilot's config and plugins")
        if before.service != server.service:
            before.leave_alone()
            changed.append(f"the server's start: {server.service}")
        server.look_after()
        if changed:
            before.stop()
        if not server.answer():
            _say("starting its API server ...")
            server.start()
            changed.append("its API server, started")
        enabled = self._enabled(wish["clouds"])
        self._remember(commit=wish["commit"])
        return {"changed": changed, "kept": kept, "enabled": enabled}

    def _make_environment(self, clouds: Sequence[str]) -> None:
        _say("making its environment, which takes minutes the first time ...")
        self._run([sys.executable, "-m", "trainer.environment", "launcher"], CHECKOUT)
        for cloud in sorted({"azure", "gcp"} & set(clouds)):
            self._run([str(PYTHON), "-m", "pip", "install", "-c", "launcher/requirements.lock",
                       "-e", f".[{cloud}]"], CHECKOUT)

    def _write_keys(self, files: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Write keys. Returns files that are not ours and stay, and those that are new."""
        kept, written = [], []
        for name, text in files.items():
            path, data = Path(name).expanduser(), base64.b64decode(text)
            if path.exists() and path.read_bytes() == data:
                continue
            if path.exists() and name not in self.state["files"]:
                kept.append(name)
                continue
            self._remember(files=sorted({*self.state["files"], name}))  # first: what is written can be found
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
            written.append(name)
        return kept, written

    def _enabled(self, clouds: Sequence[str]) -> list[str]:
        """The clouds at which SkyPilot could rent with what is here, by its own look."""
        said = self._run([str(SKY), "check", "-o", "json", *clouds])
        found = json.loads(said[said.index("{"):said.rindex("}") + 1])
        return sorted({name.lower() for workspace in found.values()
                       for name, abilities in workspace.items() if abilities})

    def _server(self, told: Mapping[str, Any]) -> Server:
        return Server(told["port"], told["service"], self._run, self._look_for_the_other_end)

    def _remember(self, **news: Any) -> None:
        self.state.update(news)
        draft = STATE.with_suffix(".new")
        draft.write_text(json.dumps(self.state))
        draft.replace(STATE)

    def _run(self, command: Sequence[str], folder: Path = HOME) -> str:
        """A command to its end. Returns what it printed. Raises Problem, Gone."""
        env = {**os.environ, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        env.pop("SKYPILOT_API_SERVER_ENDPOINT", None)  # this machine is the server
        if "port" in self.state:
            env["SKYPILOT_API_SERVER_LOCAL_PORT"] = str(self.state["port"])
        with LOG.open("w+") as log:  # a pipe would stay open in a server that it starts
            child = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=log, start_new_session=True)
            try:
                while child.poll() is None:
                    self._look_for_the_other_end()
                    time.sleep(_POLL_S)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                raise
            log.seek(0)
            said = log.read()
        if child.returncode:
            tail = "".join(f"\n    {line}" for line in said.splitlines()[-8:])
            raise Problem(f"`{' '.join(command)}` failed there:{tail}")
        return said

    def _look_for_the_other_end(self) -> None:
        """stdin can be read only once nobody holds its other end. Raises Gone."""
        if self._is_watched and select.select([sys.stdin], [], [], 0)[0]:
            raise Gone


def _swap() -> None:
    """Put what has come in the place of the old code; what was made there stays."""
    CHECKOUT.mkdir(exist_ok=True)
    for old in CHECKOUT.iterdir():
        if old.name in KEPT:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for new in INCOMING.iterdir():
        new.rename(CHECKOUT / new.name)
    INCOMING.rmdir()


def _say(line: str) -> None:
    with suppress(OSError):  # an update goes on, whoever listens
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _only_one() -> Iterator[None]:
    STATE.parent.mkdir(parents=True, exist_ok=True)
    with STATE.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Problem("another `ldlm controller` is at work there") from error
        yield


def _answer_to(verb: str) -> dict[str, Any]:
    if verb == "status":
        return Host().status()
    with _only_one():
        host = Host()
        if verb == "up":
            return host.up(json.loads(_first_line()))
        if verb == "down":
            return host.down()
        host.start()
        return {}


def _first_line() -> bytes:
    """Of stdin, and no byte more: what is read ahead could not be waited for."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise Gone
        line += byte
    return line


def main() -> int:
    """Do what the first word says. Exit code 0; 1 with a `problem` in the answer."""
    try:
        answer, code = _answer_to(sys.argv[1]), 0
    except Gone:
        answer, code = {"problem": "interrupted: what it had begun was taken back"}, 1
    except (Problem, OSError, subprocess.CalledProcessError) as error:
        answer, code = {"problem": str(error)}, 1
    with suppress(OSError):
        print(json.dumps(answer), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
