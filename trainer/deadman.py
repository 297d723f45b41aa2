"""A rented machine ends itself when nobody uses it any more: `python3 -m trainer.deadman`, first in `setup`.

SkyPilot's server gives a machine back when its job ends. Where that server has died, the machine would be
billed until somebody looks. So a process of its own stays behind, which SkyPilot's clean-up does not reach,
and after half an hour without a program of ours it asks the cloud to delete this machine, with the identity
that SkyPilot gives it there: no key of the user has to lie on it.

- GCP: the instance's service account, which may delete instances; else the machine powers itself off, after
  which its disk alone is billed.
- Azure: the managed identity of the cluster, a contributor of its resource group. Powering off would not do:
  a machine that is off and not deallocated is billed. Its public address stays, about $0.005 an hour (list
  price), until `ldlm sweep`.
- Vast has a switch of its own (`launcher/vast_onstart.py`), and elsewhere nothing is rented: it does nothing.

Sources: sky/provision/gcp/config.py, sky/templates/gcp-ray.yml.j2 and sky/provision/azure of SkyPilot 0.14.1;
the clouds' documents on instance metadata. Never run on a cloud. Standard library and Python 3.8 only: it has
to be there where nothing else could be installed.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer.metadata import HEADERS, OPENER

LOOK_EVERY_S = 60.0
IDLE_LIMIT_S = 1800.0  # as on Vast; SkyPilot itself would have given the machine back within a minute (guess)
_ANSWER_S = 60.0
_METADATA = "http://169.254.169.254"  # of both clouds
_FILES = Path("~/.ldlm-deadman")  # .lock and .log


class Request(NamedTuple):
    """What would end this machine. `what`: in words."""

    what: str
    method: str
    url: str


class Cloud(NamedTuple):
    """How a machine of one cloud learns who it is and gives itself back.

    Attributes:
        header: Without it the metadata service does not answer.
        token: Path of the identity's access token.
        requests: From a function that reads a path of the metadata and the address of the cloud's API.
        can_power_off: Ends at least the bill of its processors.
    """

    header: tuple[str, str]
    token: str
    api: str
    requests: Callable[[Callable[[str], str], str], list[Request]]
    can_power_off: bool


def _of_gcp(read: Callable[[str], str], api: str) -> list[Request]:
    zone, name = (read("/computeMetadata/v1/instance/" + what) for what in ("zone", "name"))
    return [Request(f"delete {name}", "DELETE", f"{api}/compute/v1/{zone}/instances/{name}")]


def _of_azure(read: Callable[[str], str], api: str) -> list[Request]:
    compute = json.loads(read("/metadata/instance/compute?api-version=2021-02-01"))
    vm, version = api + compute["resourceId"], "?api-version=2024-07-01"
    # A lock on the resource group forbids the first and allows the second, which leaves its disk.
    return [Request(f"delete {compute['name']}", "DELETE", vm + version),
            Request(f"deallocate {compute['name']}", "POST", vm + "/deallocate" + version)]


CLOUDS: dict[str, Cloud] = {
    "gcp": Cloud(HEADERS["gcp"],
                 "/computeMetadata/v1/instance/service-accounts/default/token",
                 "https://compute.googleapis.com", _of_gcp, can_power_off=True),
    "azure": Cloud(HEADERS["azure"],
                   "/metadata/identity/oauth2/token?api-version=2018-02-01"
                   "&resource=https%3A%2F%2Fmanagement.azure.com%2F",
                   "https://management.azure.com", _of_azure, can_power_off=False),
}


class Switch:
    """Ends this machine when asked to.

    Args:
        cloud: Of `CLOUDS`.
        metadata: Address of the metadata service.
        power_off: Command line.
    """

    def __init__(self, cloud: Cloud, metadata: str = _METADATA,
                 power_off: tuple[str, ...] = ("sudo", "-n", "shutdown", "-h", "now")) -> None:
        self._cloud, self._metadata, self._power_off = cloud, metadata, power_off

    def requests(self) -> list[Request]:
        """What would end this machine, the best first. Raises OSError, ValueError or KeyError."""
        return self._cloud.requests(self._read, self._cloud.api)

    def end(self) -> None:
        """Ask for it in every way that there is, until one is granted.

        Raises:
            OSError, subprocess.CalledProcessError: The machine could not even be powered off.
        """
        try:
            bearer = f"Bearer {json.loads(self._read(self._cloud.token))['access_token']}"
            if any(self._is_granted(request, bearer) for request in self.requests()):
                return
        except (OSError, ValueError, KeyError) as error:
            _say(f"the metadata service says: {error!r}")
        if self._cloud.can_power_off:
            _say("powering off")
            subprocess.run(self._power_off, check=True)

    def _is_granted(self, request: Request, bearer: str) -> bool:
        asked = urllib.request.Request(request.url, method=request.method, headers={"Authorization": bearer},
                                       data=b"" if request.method == "POST" else None)
        try:
            OPENER.open(asked, timeout=_ANSWER_S).close()
        except OSError as error:
            _say(f"{request.what}: {error}")
            return False
        _say(f"{request.what}: granted")
        return True

    def _read(self, path: str) -> str:
        asked = urllib.request.Request(self._metadata + path, headers=dict((self._cloud.header,)))
        with OPENER.open(asked, timeout=_ANSWER_S) as answer:
            return str(answer.read().decode())


def watch(switch: Switch, look_every_s: float = LOOK_EVERY_S, idle_limit_s: float = IDLE_LIMIT_S) -> None:
    """Look whether a program of ours runs, and end the machine once none has for so long. Never returns."""
    used_at = time.monotonic()
    while True:
        time.sleep(look_every_s)
        if is_used():
            used_at = time.monotonic()
        elif time.monotonic() - used_at >= idle_limit_s:
            try:
                switch.end()
            except Exception as error:  # noqa: BLE001  whatever it is, the next look tries again
                _say(f"not ended: {error!r}")


def is_used(processes: Path = Path("/proc")) -> bool:
    """True while a program of ours runs on this machine, in its set-up or later."""
    return any(_is_ours(folder / "cmdline") for folder in processes.iterdir() if folder.name.isdigit())


def _is_ours(command_line: Path) -> bool:
    try:
        words = command_line.read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False
    return any(first == b"-m" and second.startswith(b"trainer.") and second != b"trainer.deadman"
               for first, second in zip(words, words[1:]))  # noqa: B905  Python 3.8


def main(environ: Mapping[str, str]) -> None:
    """Leave a switch behind where this cloud has one, and say so."""
    cloud = CLOUDS.get(cloud_of(environ) or "")
    if cloud is None:
        return
    switch = Switch(cloud)
    try:
        print(f"without a program of ours for {IDLE_LIMIT_S / 60:g} minutes this machine asks its cloud to "
              f"{switch.requests()[0].what}", flush=True)
    except (OSError, ValueError, KeyError) as error:
        print(f"warning: this machine may not be able to end itself, its metadata service says: {error!r}",
              flush=True)
    detached(_FILES.expanduser(), lambda: watch(switch))


def cloud_of(environ: Mapping[str, str]) -> str | None:
    """Where SkyPilot says that this machine is rented, in small letters."""
    try:
        found: Any = json.loads(environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
        return str(found["cloud"]).lower()
    except (ValueError, KeyError, TypeError):
        return None


def detached(files: Path, work: Callable[[], None]) -> None:
    """Run something in a process that belongs to nobody, unless it is running already.

    SkyPilot ends what a job has started by its process tree and its process group (subprocess_daemon.py in
    sky/skylet): this one has left both.

    Args:
        files: Path of its `.lock` and `.log`, without these endings.
    """
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    lock = files.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os._exit(0)
    os.chdir("/")  # the checkout is copied anew for the next task
    log = os.open(str(files.with_suffix(".log")), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(target, number)
    work()
    os._exit(0)


def _say(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), line, flush=True)


if __name__ == "__main__":
    main(os.environ)
