"""S3 servers in a process of their own, all in memory: moto for tests, `plain_s3.py` for benchmarks."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1"}
_STARTS_WITHIN_S = 60


@dataclass(frozen=True)
class S3Server:
    """Where it listens."""

    endpoint: str

    def url(self, bucket: str, prefix: str = "") -> str:
        """A store's URL on this server."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket; no error if it is there."""
        self._ask("PUT", f"/{bucket}", b"")

    def bucket_of_its_own(self, folder: Path) -> str:
        """Make a bucket for a test, known by its folder. Returns its name."""
        name = f"b{os.getpid()}-{abs(hash(folder))}"
        self.make_bucket(name)
        return name

    def trust_nobody(self) -> None:
        """From now on, refuse every key."""
        self._ask("POST", "/moto-api/reset-auth", b"0")

    def trust_everybody(self) -> None:
        """Accept any key, as at the start."""
        self._ask("POST", "/moto-api/reset-auth", b"inf")

    def _ask(self, method: str, path: str, data: bytes) -> None:
        request = urllib.request.Request(self.endpoint + path, data, {"Content-Type": "text/plain"},
                                         method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()


@contextmanager
def running_s3_server(address: str = "127.0.0.1", python: str = sys.executable) -> Iterator[S3Server]:
    """Start the server on a free port; end it after the block.

    Args:
        address: Of this machine, where it listens and by which its URLs name it: another one than the default
            for clients in a network namespace, who then use the same URLs as this machine.
        python: That has moto.
    """
    with _running([python, "-m", "moto.server", "-H", address, "-p"], address) as server:
        yield server


@contextmanager
def running_plain_s3(gigabits_per_s: float, folder: Path | None = None) -> Iterator[S3Server]:
    """The server for benchmarks, which needs nothing but Python, behind a line of some speed (0: of any).

    Args:
        folder: Of buckets that are there from the beginning.
    """
    held = ["--folder", str(folder)] if folder else []
    command = [sys.executable, "-m", "tests.plain_s3", *held, str(gigabits_per_s)]
    with _running(command, "127.0.0.1") as server:
        yield server


@contextmanager
def _running(command: list[str], address: str) -> Iterator[S3Server]:
    """A server whose command ends with its port."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_open(process, address, port)
        yield S3Server(f"http://{address}:{port}")
    finally:
        process.kill()
        process.wait()


def _wait_until_open(process: "subprocess.Popen[bytes]", address: str, port: int) -> None:
    give_up = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the S3 server did not start")
