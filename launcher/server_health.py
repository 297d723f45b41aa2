"""Whether the API server of SkyPilot that this user's commands ask is there; SkyPilot is not imported for it.

A command that needs to know it in several places waits once: an address that nobody has takes seconds.
"""

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from urllib.error import HTTPError

from launcher.api_health import ask_health, ask_plugins
from launcher.controller import SCHEME
from launcher.controller_ssh import server_url
from launcher.errors import EngineError
from launcher.settings import API_SERVER, api_server

_ANSWERS_WITHIN_S = 3.0
_PORT_HERE, _USUAL_PORT = "SKYPILOT_API_SERVER_LOCAL_PORT", "46580"  # SkyPilot's own
_WELL = "healthy"
_PASSWORD = re.compile(r"(://[^/@:]*:)[^/@]*@")
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Health:
    """What is known of an API server.

    Attributes:
        version: Of its SkyPilot; None where it is not well.
        error: Why nothing can be asked of it; None where it is well.
    """

    version: str | None
    error: EngineError | None


def server_health() -> Health:
    """Of the server that is named, through ssh if need be, else of this machine's. Starts none."""
    with _one_at_a_time:
        return _health(api_server(), _url_here())


def plugins_here() -> dict[str, str]:
    """Versions of what the API server of this machine has loaded, by name; nothing where none answers."""
    with suppress(OSError, ValueError):
        return ask_plugins(_url_here(), _ANSWERS_WITHIN_S)
    return {}


def _url_here() -> str:
    return f"http://127.0.0.1:{os.environ.get(_PORT_HERE, _USUAL_PORT)}"


def forget_health() -> None:
    """What was found may not hold any more: a server is being started here."""
    _health.cache_clear()


@cache
def _health(named: str | None, here: str) -> Health:
    place = without_password(named or here)
    try:
        said = ask_health(server_url(named) if named else here, _ANSWERS_WITHIN_S)
    except EngineError as error:  # ssh does not get there
        return Health(None, error)
    except (OSError, ValueError) as error:
        is_stranger = isinstance(error, ValueError) or getattr(error, "code", None) in (401, 403)
        fix = f"{start_words()}; or sign in: .venv/bin/sky api login" if is_stranger else start_words()
        return Health(None, EngineError(f"SkyPilot's API server does not answer ({_why(error)})", place=place,
                                        fix=fix))
    if said["status"] != _WELL:
        return Health(None, EngineError(f"SkyPilot's API server is not well ({said['status']})", place=place,
                                        fix=f"{start_words()}; or sign in: .venv/bin/sky api login"))
    return Health(str(said.get("version") or "of unknown version"), None)


def without_password(url: str) -> str:
    """A URL as it may be shown."""
    return _PASSWORD.sub(r"\1...@", url)


def start_words() -> str:
    """What to type where the API server does not answer."""
    named = api_server() or ""
    if named.startswith(SCHEME):
        return f"ask what is wrong: ldlm controller status; or ldlm controller up --ssh {named[len(SCHEME):]}"
    if named:
        return ("see that it runs and can be reached from here; or settle another: ldlm init --api-server "
                f"URL; or for once: {API_SERVER}=URL")
    return "start it: .venv/bin/sky api start"


def _why(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)
