"""`ldlm controller status`: where SkyPilot's API server is, whether it lives, what a controller costs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from launcher import console
from launcher.controller import FOLDER, SCHEME, SERVICES, Host, parse_address, read_host
from launcher.controller_ssh import Connection
from launcher.errors import EngineError
from launcher.git_state import git_sha
from launcher.server_health import Health, server_health, without_password
from launcher.settings import (
    API_SERVER,
    Settings,
    api_server,
    controller_usd_per_hour,
    read_settings,
    server_of_environment,
    settings_path,
)

NO_CONTROLLER = "this machine: while it sleeps or is off, no run is recovered"
HOW = "ldlm controller up --ssh HOST --usd-per-hour PRICE"


def run_status(*, as_json: bool) -> None:
    """Say where the server is that commands ask, and whether it lives. Raises EngineError of a controller."""
    settings, by_shell = read_settings(), server_of_environment()
    if is_controller(settings) and by_shell in (None, settings.api_server):
        said = ask_status(settings)
        facts = _status_facts(said)
    else:
        named, health = api_server(), server_health()
        where = named and without_password(named)
        said = {"where": where, "is_alive": health.error is None, "version": health.version}
        facts = _server_facts(where, health, settings)
    if as_json:
        console.answer_json(said)
        return
    console.answer_facts([(name, text) for name, text in facts if text])


def is_controller(settings: Settings) -> bool:
    """True if the server of the settings is one that `ldlm controller up` has set up."""
    return (settings.api_server or "").startswith(SCHEME)


def _server_facts(where: str | None, health: Health, settings: Settings) -> list[tuple[str, str]]:
    """Of a server that is no controller of ours."""
    by_shell, price = server_of_environment(), controller_usd_per_hour()
    alive = f"yes, SkyPilot {health.version}"
    if health.error:
        alive = f"NO, {health.error.problem}: {health.error.fix}" if where else "no; a launch starts it"
    is_hidden = by_shell and settings.api_server not in (None, by_shell)
    return [("API server", where or NO_CONTROLLER), ("named by", API_SERVER if by_shell else ""),
            ("alive", alive), ("price", f"${price}/h" if price is not None else ""),
            ("not asked", f"{settings.api_server}, of the settings" if is_hidden else ""),
            ("always on", "" if where else f"one of yours: {HOW}")]


def look(connection: Connection) -> Host:
    """What a machine is like. Raises EngineError."""
    probe = Path(__file__).with_name("controller_probe.sh").read_text(encoding="utf-8")
    return read_host(connection.run(probe), connection.address)


def ask_status(settings: Settings) -> dict[str, Any]:
    """Stable form of `controller status --json`. Raises EngineError where it cannot be reached."""
    address = parse_address(settings.api_server or "", str(settings_path()))
    connection = Connection(address)
    found = look(connection).controller
    if found is None or found.commit is None:
        raise EngineError("no controller is set up there", place=address.url,
                          fix=f"ldlm controller up --ssh {address.typed}")
    said = connection.ask(f"cd {FOLDER} && exec .venv/bin/python -m launcher.controller_host status")
    price = Decimal(settings.controller_usd_per_hour or 0)
    return {"where": address.url, "is_alive": said["is_alive"], "version": said["version"],
            "commit": found.commit, "since": found.since.isoformat(), "service": found.service,
            "clouds": list(found.clouds), "usd_per_hour": str(price), "usd_per_day": str(price * 24),
            "usd_so_far": f"{found.usd_so_far(price, datetime.now(UTC)):.6f}",
            "url": f"http://127.0.0.1:{connection.tunnel()}" if said["is_alive"] else None}


def _status_facts(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    here = (git_sha() or "").removesuffix("-dirty")
    update = f"ldlm controller up --ssh {said['where'].removeprefix(SCHEME)}"
    alive = f"yes, SkyPilot {said['version']}"
    if not said["is_alive"]:
        alive = f"NO, its API server does not answer: {update}"
    code = f"commit {said['commit'][:7]}"
    if said["commit"] != here:
        code += f", and here is {here[:7]}: {update}"
    day, so_far = (console.dollars(Decimal(said[name]), 2) for name in ("usd_per_day", "usd_so_far"))
    return [("controller", said["where"]), ("alive", alive), ("server", SERVICES[said["service"]]),
            ("code", code), ("keys of", ", ".join(said["clouds"])),
            ("since", f"{datetime.fromisoformat(said['since']):%Y-%m-%d %H:%M} UTC"),
            ("price", f"${said['usd_per_hour']}/h, {day} a day, {so_far} so far, with or without runs"),
            ("tunnel", f"SKYPILOT_API_SERVER_ENDPOINT={said['url']}, for sky itself" if said["url"] else "")]
