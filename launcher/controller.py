"""What a controller is: a small machine that is always on, with SkyPilot's API server, reached by ssh. Pure.

Recovery lives in that server, so it goes on while the laptop is closed.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple, Self

from launcher.cost import price_for
from launcher.errors import EngineError, UsageError

SCHEME = "ssh://"
FOLDER = "ldlm"  # of the checkout, in the home there
STATE = ".ldlm/controller.json"  # written by controller_host.py, read by the probe
OLDEST_PYTHON = (3, 11)  # of pyproject.toml
_KIB_PER_GIB = 2**20
# SkyPilot 0.14.1 warns below 2 GB (sky/server/constants.py); its server alone has 0.55 (measured).
LEAST_MEMORY_GIB = 2.0
# Environment 0.6 GB, Azure's SDK 0.7 (measured); the rest for catalogs, logs, what travels with jobs (guess).
LEAST_DISK_GIB = 3.0
Service = Literal["systemd", "cron", "session"]
SERVICES: Mapping[Service, str] = {
    "systemd": "a user unit of systemd with linger: starts with the machine, and again where it ends",
    "cron": "in a session of its own, looked after by cron every 5 minutes: also after a restart",
    "session": "in a session of its own: outlives your logout, NOT a restart: it has no systemd and no cron"}


class Address(NamedTuple):
    """Where ssh finds a machine, in the words of the user's own ssh config."""

    destination: str
    port: int | None

    @property
    def url(self) -> str:
        """As the settings keep it."""
        user, at, host = self.destination.rpartition("@")
        name = f"[{host}]" if ":" in host else host
        return f"{SCHEME}{user}{at}{name}{f':{self.port}' if self.port else ''}"

    @property
    def ssh(self) -> str:
        """How it is reached by hand."""
        return f"ssh {f'-p {self.port} ' if self.port else ''}{self.destination}"

    @property
    def typed(self) -> str:
        """As `--ssh` takes it."""
        return self.url.removeprefix(SCHEME)


def parse_address(text: str, place: str = "--ssh") -> Address:
    """Read `[ssh://][USER@]HOST[:PORT]`. Raises UsageError."""
    found = re.fullmatch(r"(?:ssh://)?((?:[\w.][\w.+-]*@)?)(?:\[([0-9A-Fa-f:.]+)\]|(\w[\w.-]*))(?::(\d{1,5}))?/?",
                         text)
    if not found or not 0 < int(found[4] or 22) < 65536:
        raise UsageError(f"{text!r} is no machine that ssh could reach", place=place,
                         fix="write it like root@198.51.100.7, me@sky.example.org:2222, or a name of "
                             "~/.ssh/config")
    return Address(f"{found[1]}{found[2] or found[3]}", int(found[4]) if found[4] else None)


def dollars_an_hour(typed: str, place: str) -> str:
    """A price that can be used, as written. Raises UsageError."""
    try:
        if 0 <= Decimal(typed) < 1000:
            return f"{Decimal(typed):f}"
    except InvalidOperation:
        pass
    raise UsageError(f"{typed!r} is no price of an hour" if typed else "is needed: runs are billed with it",
                     place=place,
                     fix=f"divide the price of a month by 730: {place} 0.008 (0 where it costs nothing)")


@dataclass(frozen=True)
class Controller:
    """What a controller says of itself.

    Attributes:
        commit: Of the checkout that it has; None: setting it up was never finished.
        since: When it was set up first.
        port: Of its API server, on its own loopback.
        clouds: Whose keys were meant to go there.
        files: With keys, that were copied there.
    """

    commit: str | None
    since: datetime
    port: int
    service: Service
    clouds: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> Self:
        """From its file. Raises ValueError, KeyError or TypeError for a damaged one."""
        said: Mapping[str, Any] = json.loads(text)
        return cls(said["commit"], datetime.fromisoformat(said["since"]), int(said["port"]), said["service"],
                   tuple(said["clouds"]), tuple(said["files"]))

    def usd_so_far(self, usd_per_hour: Decimal, now: datetime) -> Decimal:
        """What it has cost since it was set up, whatever it did."""
        return price_for(now - self.since, usd_per_hour)


@dataclass(frozen=True)
class Host:
    """What the probe says of a machine.

    Attributes:
        pythons: Command, version, whether it can make virtual environments.
        lacks: Programs that SkyPilot and the way there need.
        vast: Signs that it is rented from Vast.
        services: What could keep a server running there, the best first.
        port: On which its API server would listen.
        is_taken: The folder of the checkout holds something.
        controller: What is there already.
    """

    system: str
    pythons: tuple[tuple[str, tuple[int, ...], bool], ...]
    disk_gib: float
    memory_gib: float
    lacks: tuple[str, ...]
    vast: tuple[str, ...]
    services: tuple[Service, ...]
    port: int
    is_taken: bool
    controller: Controller | None

    @property
    def python(self) -> str | None:
        """The command of a Python that will do."""
        return next((name for name, version, has_venv in self.pythons
                     if version >= OLDEST_PYTHON and has_venv), None)

    @property
    def is_set_up(self) -> bool:
        """Setting it up was finished once."""
        return self.controller is not None and self.controller.commit is not None


def read_host(said: str, address: Address) -> Host:
    """What the lines of the probe mean. Raises EngineError where they mean nothing."""
    facts: dict[str, list[str]] = {}
    for line in said.splitlines():
        name, _, value = line.partition("=")
        facts.setdefault(name, []).append(value)
    try:
        signs = [*facts.get("vast", ()), *(name for name in (facts["hostname"][0], address.destination)
                                           if name.endswith(".vast.ai"))]
        services: tuple[Service, ...] = tuple(name for name in SERVICES if name in facts.get("service", ()))
        state = facts.get("state")
        return Host(
            system=facts["system"][0], pythons=tuple(map(_python, facts.get("python", ()))),
            disk_gib=int(facts["disk_kib"][0]) / _KIB_PER_GIB,
            memory_gib=int(facts["memory_kib"][0]) / _KIB_PER_GIB, lacks=tuple(facts.get("lacks", ())),
            vast=tuple(signs), services=(*services, "session"), port=int(facts["port"][0]),
            is_taken="checkout" in facts, controller=Controller.read(state[0]) if state else None)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EngineError(f"what it says of itself cannot be understood ({type(error).__name__}: {error})",
                          place=address.url, fix="it must be a Linux machine; if it is: "
                          f"{address.ssh} rm {STATE}, then repeat") from error


def _python(said: str) -> tuple[str, tuple[int, ...], bool]:
    name, version, has_venv = said.split()
    return name, tuple(map(int, version.split("."))), has_venv == "1"


def check_host(host: Host, address: Address, *, force: bool) -> None:
    """Refuse a machine that cannot be a controller, or should not unless forced. Raises EngineError."""
    for problem, fix in (*_impossible(host, address), *(() if force else _unwise(host))):
        raise EngineError(problem, place=address.url, fix=fix)


def _impossible(host: Host, address: Address) -> Iterator[tuple[str, str]]:
    if host.system != "Linux":
        yield f"it runs {host.system}", "take a machine with Linux"
    if host.python is None:
        problem, package = _lack_of_python([version for _, version, _ in host.pythons])
        yield f"{problem}, and 3.11 or newer with venv is needed", f"{address.ssh} sudo apt install {package}"
    if host.lacks:
        packages = ["openssh-client" if name == "ssh" else name for name in host.lacks]
        yield (f"it has no {' and no '.join(host.lacks)}",
               f"{address.ssh} sudo apt install {' '.join(packages)}")
    if host.is_taken and host.controller is None:
        yield (f"its folder ~/{FOLDER} holds something that no controller has put there",
               f"move it away: {address.ssh} mv {FOLDER} {FOLDER}.old")


def _lack_of_python(versions: Sequence[tuple[int, ...]]) -> tuple[str, str]:
    if not versions:
        return "it has no Python 3", "python3 python3-venv"
    name = "{}.{}".format(*max(versions))
    if max(versions) < OLDEST_PYTHON:
        return f"its Python is {name}", "python3.11 python3.11-venv"
    return "its Python cannot make virtual environments", f"python{name}-venv"


def _unwise(host: Host) -> Iterator[tuple[str, str]]:
    if host.vast:
        yield (f"it is a machine of Vast ({', '.join(host.vast)}): it can be taken back at any time, and its "
               "owner could read the keys that a controller needs",
               "take a small VPS of your own; if you do mean it, add --force")
    for what, found, least in (("memory", host.memory_gib, LEAST_MEMORY_GIB),
                               ("disk", host.disk_gib, LEAST_DISK_GIB)):
        if found < least and not host.is_set_up:
            yield (f"only {found:.1f} GiB of its {what} are free, and {least:g} are needed",
                   "free some, or take a larger one; to try all the same, add --force")


def what_up_does(host: Host, address: Address, commit: str, clouds: Sequence[str], files: Sequence[str],
                 usd_per_hour: Decimal) -> list[tuple[str, str]]:
    """What the user is asked to approve, as names and what is so about them."""
    old = host.controller.commit if host.controller else None
    code = f"this checkout's commit {commit[:7]} into ~/{FOLDER}"
    if old == commit:
        code = f"commit {commit[:7]} is there already"
    elif old:
        code += f", which has {old[:7]}; its API server is restarted: runs go on, none is recovered meanwhile"
    month = price_for(datetime(2026, 1, 31) - datetime(2026, 1, 1), usd_per_hour)
    return [("machine", f"{address.url}; {host.memory_gib:.1f} GiB of memory and {host.disk_gib:.0f} of disk "
                        "are free"),
            ("price", f"${usd_per_hour:f}/h, ${month:.2f} in 30 days, whether or not it has runs"),
            ("code", code),
            ("packages", f"~/{FOLDER}/.venv by pip from the launcher's lock file ({', '.join(clouds)}); "
                         "none of the system's"),
            ("keys", f"{', '.join(files)}: it rents machines with them; whoever is root there can read them"),
            ("", "not those of the store and of W&B: they come with each run that you submit, and stay in "
                 "its ~/.sky"),
            ("SkyPilot", "its ~/.sky/config.yaml and plugins.yaml, as `ldlm init` writes them"),
            ("server", f"on its loopback, port {host.port}, reached by ssh; {SERVICES[host.services[0]]}")]
