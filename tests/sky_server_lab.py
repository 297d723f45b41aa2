"""A real API server of SkyPilot on a free port, with a home of its own, for as long as a block runs.

And copies of the code that our plugin in it consists of, for tests that change it.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
_STARTS_WITHIN_S = 120


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def variables(home: Path, port: int) -> dict[str, str]:
    """What makes SkyPilot's server and its clients on this machine meet there."""
    return {"HOME": str(home), "SKYPILOT_API_SERVER_LOCAL_PORT": str(port), "NO_PROXY": "127.0.0.1",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}


def checkout_in(folder: Path) -> Path:
    """A copy of the code that the plugin may consist of."""
    for package in ("launcher", "trainer"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def running_sky_server(home: Path, port: int) -> Iterator[str]:
    """Start it and yield its URL."""
    log = home / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sky.server.server", "--port", str(port)], cwd=home,
            env=os.environ | variables(home, port) | {"IS_SKYPILOT_SERVER": "true"},
            stdout=out, stderr=out, start_new_session=True)
    try:
        _wait_until_well(process, f"http://127.0.0.1:{port}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        end_all_of(home)


def end_all_of(home: Path) -> None:
    """End what lives in this home until nothing does: the server's workers outlive it."""
    while alive := [process for process in psutil.process_iter() if lives_in(process, home)]:
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=1)


def lives_in(process: psutil.Process, home: Path) -> bool:
    """Whether a process has a home, and still does something."""
    try:  # workers write their title over their environment, and stay in the server's folder
        mine = process.cwd() == str(home) or process.environ().get("HOME") == str(home)
        return mine and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:  # somebody else's, or gone
        return False


def _wait_until_well(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    give_up = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with opener.open(f"{url}/api/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"SkyPilot's server did not start:\n{log.read_text()[-3000:]}")
