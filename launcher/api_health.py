"""Asks an API server of SkyPilot how it is. Standard library only: controllers use it."""

import base64
import json
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import ProxyHandler, Request, build_opener


def ask_health(url: str, timeout_s: float) -> dict[str, Any]:
    """What it says: `status`, `version` and more.

    Args:
        url: May hold a user and a password.

    Raises:
        OSError: Nobody answers, or not to this user.
        ValueError: What answers is no API server.
    """
    said = _ask(url, "/api/health", timeout_s)
    if not isinstance(said, dict) or "status" not in said:
        raise ValueError("it says nothing of its health")
    return said


def ask_plugins(url: str, timeout_s: float) -> dict[str, str]:
    """Versions of its plugins, by name. Raises as `ask_health`."""
    said = _ask(url, "/api/plugins", timeout_s)
    if not isinstance(said, dict) or not isinstance(said.get("plugins"), list):
        raise ValueError("it names no plugins")
    return {one["name"]: str(one.get("version", "")) for one in said["plugins"] if one.get("name")}


def _ask(url: str, path: str, timeout_s: float) -> Any:
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    place = f"{host}:{parts.port}" if parts.port else str(host)
    request = Request(parts._replace(netloc=place, path=f"{parts.path.rstrip('/')}{path}").geturl())
    if parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    # No proxy stands between this machine and itself.
    proxies = [ProxyHandler({})] if parts.hostname in ("127.0.0.1", "localhost", "::1") else []
    try:
        with build_opener(*proxies).open(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except HTTPException as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
