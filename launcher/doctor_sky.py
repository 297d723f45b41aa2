"""What the doctor looks at of SkyPilot: its version, its API server, whose keys that would give away."""

import re
from collections.abc import Iterator
from importlib import metadata

from launcher.controller import SCHEME
from launcher.controller_status import HOW, NO_CONTROLLER, ask_status
from launcher.findings import Finding, Verdict
from launcher.lint_rules import looks_secret
from launcher.plugin_version import plugin_version
from launcher.recipe import checkout_folder
from launcher.server_health import server_health
from launcher.settings import api_server, controller_usd_per_hour, read_settings
from launcher.sky_ready import (
    PLUGIN,
    RENTED,
    Lack,
    SkyServer,
    lacks_guard,
    lacks_guard_of_others,
    lacks_plugin,
    lacks_supervision,
)
from launcher.sky_server import keys_that_travel, look_at_server
from launcher.sky_setup import lacking_here

_INSTALL = "python3 -m trainer.environment launcher"


def look_at_version() -> Iterator[Finding]:
    """Whether SkyPilot here is the version that everything was tried with."""
    pinned = _pinned()
    try:
        found = metadata.version("skypilot")
    except metadata.PackageNotFoundError:
        yield Finding("SkyPilot", Verdict.PROBLEM, f"not installed; {pinned} is pinned", _INSTALL)
        return
    if found == pinned:
        yield Finding("SkyPilot", Verdict.OK, f"{found}, as pinned")
    else:
        yield Finding("SkyPilot", Verdict.PROBLEM, f"{found}, and {pinned} is pinned", _INSTALL)


def look_at_sky(clouds: frozenset[str]) -> Iterator[Finding]:
    """The API server, and what stands in the way of renting through it.

    Args:
        clouds: Where one would rent; a cluster of one's own does not need our plugin.

    Raises:
        EngineError: A server elsewhere does not answer, or a file of SkyPilot here is damaged.
    """
    silence = server_health().error
    if silence and (api_server() or "").startswith(SCHEME):
        yield Finding("API server", Verdict.NOT_CHECKED, "it is asked through the controller, which see")
        return
    if silence and api_server():
        raise silence
    if silence:
        yield Finding("API server", Verdict.NOT_CHECKED,
                      f"{silence.place} does not run; a launch starts it, on this machine",
                      ".venv/bin/sky api start")
        yield _by_files()
        return
    server, plugin = look_at_server(), plugin_version()
    yield _of_server(server)
    yield _of_lack("keys", lacks_guard(server), "NO_UPLOAD: keys of clouds stay off rented machines")
    if other := lacks_guard_of_others(server, keys_that_travel(server, plugin)):
        yield _of_lack("other keys", other, "")
    yield _of_lack("supervision", lacks_supervision(server), "in the API server, no machine rented for it")
    if clouds & set(RENTED):
        yield _of_lack("plugin", lacks_plugin(server, plugin),
                       f"{PLUGIN} {server.plugins.get(PLUGIN, '')} is loaded, the one of this checkout")


def look_at_controller() -> Iterator[Finding]:
    """Who recovers runs, whether that goes on while this machine sleeps, and at which price.

    Raises:
        EngineError: A controller cannot be reached, or its API server does not answer.
    """
    said, settings = api_server(), read_settings()
    price = controller_usd_per_hour()
    paid = f"${price}/h" if price is not None else "its price is in no bill"
    if said is None:
        yield Finding("controller", Verdict.OK, NO_CONTROLLER, HOW)
    elif said != settings.api_server or not said.startswith(SCHEME):
        named = "URL" if looks_secret(said) else said
        shown = "the one of your environment, whose address holds a key" if looks_secret(said) else said
        fix = "" if price is not None else f"ldlm init --api-server {named} --controller-usd-per-hour PRICE"
        yield Finding("controller", Verdict.OK, f"{shown}, of your own; {paid}", fix)
    elif silence := server_health().error:
        raise silence
    else:
        since = ask_status(settings)["since"]
        yield Finding("controller", Verdict.OK, f"{said} is alive, since {since[:10]}; {paid}")


def _of_server(server: SkyServer) -> Finding:
    pinned = _pinned()
    if server.version != pinned:
        return Finding("API server", Verdict.PROBLEM,
                       f"{server.url} runs {server.version}, and {pinned} is pinned",
                       f"install skypilot=={pinned} on its machine and restart it")
    where = "on this machine" if server.is_here else "which is said to be elsewhere"
    return Finding("API server", Verdict.OK, f"{server.url}, {where}")


def _of_lack(what: str, lack: Lack | None, good: str) -> Finding:
    if lack is None:
        return Finding(what, Verdict.OK, good)
    return Finding(what, Verdict.PROBLEM, f"the API server {lack.problem}", lack.fix)


def _by_files() -> Finding:
    """What a server would read when it starts here."""
    for error in lacking_here():
        return Finding("keys, plugin", Verdict.PROBLEM, error.problem, error.fix or "")
    return Finding("keys, plugin", Verdict.OK, "SkyPilot's files here say what they should")


def _pinned() -> str:
    lock = (checkout_folder() / "launcher" / "requirements.lock").read_text(encoding="utf-8")
    found = re.search(r"^skypilot==(\S+)", lock, re.MULTILINE)
    return found[1] if found else "?"
