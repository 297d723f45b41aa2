"""Asks SkyPilot's API server what it is like; `launcher/sky_ready.py` judges the answer."""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.controller import SCHEME
from launcher.errors import EngineError
from launcher.plugin_version import plugin_version
from launcher.server_health import server_health, start_words
from launcher.settings import api_server
from launcher.sky_engine import ask_server, server_url, sky_sdk
from launcher.sky_ready import (
    KEYS,
    NO_UPLOAD,
    RENTED,
    SkyServer,
    lacks,
    lacks_guard,
    lacks_guard_of_others,
    lacks_plugin,
)

_LOOK_S = 10.0


def sky_lacks(clouds: Collection[str]) -> Iterator[EngineError]:
    """Why nothing should be rented through the server: it would give keys away or rent something else.

    Args:
        clouds: Where machines would be rented; a cluster of the user's own needs nothing.

    Raises:
        EngineError: The server does not answer.
    """
    rented = [cloud for cloud in RENTED if cloud in clouds]
    if not rented:
        return
    server, plugin = look_at_server(), plugin_version()
    found = dict.fromkeys(lack for cloud in rented for lack in lacks(server, cloud, plugin))
    if other := lacks_guard_of_others(server, keys_that_travel(server, plugin)):
        found[other] = None
    for lack in found:
        yield EngineError(f"SkyPilot's API server {lack.problem}", place=server.url, fix=lack.fix)


def start_server(say: Callable[[str], None]) -> None:
    """Have the API server run; one that is named must do so already.

    Args:
        say: Told that it is started here.

    Raises:
        EngineError: It does not answer, or could not be started.
    """
    silence = server_health().error
    if silence is None:
        return
    if api_server():
        raise silence
    with sky_sdk(say):  # which says so
        from sky.server import common

        common.check_server_healthy_or_start_fn()


def look_at_server() -> SkyServer:
    """Ask the API server of this user. Starts none.

    Raises:
        EngineError: It does not answer, or not to this user.
    """
    with sky_sdk(with_server=False) as sky:
        from sky.server import common

        from sky import skypilot_config

        info = common.get_api_server_status()
        if info.status != common.ApiServerStatus.HEALTHY:
            raise EngineError(f"SkyPilot's API server is not well ({info.status.value})", place=server_url(),
                              fix=f"{start_words()}; or sign in: .venv/bin/sky api login")
        # One that is named may have another home, or be the end of a tunnel, whatever its address.
        named = api_server() or ""
        is_here = not named and bool(common.is_api_server_local())
        config = sky.get(common.get_request_id(ask_server("GET", "/workspaces/config", _LOOK_S)))
        plugins = ask_server("GET", "/api/plugins", _LOOK_S).json()["plugins"]
        return SkyServer(server_url(), is_here, str(info.version), config, skypilot_config.to_dict(),
                         {one["name"]: str(one.get("version", "")) for one in plugins if one.get("name")},
                         _supervises(is_here, config),
                         named.removeprefix(SCHEME) if named.startswith(SCHEME) else None)


def keys_that_travel(server: SkyServer, plugin: str) -> list[str]:
    """Files that SkyPilot would copy from its server's home onto every rented machine, by its own word.

    Nothing where the server lacks the guard or our plugin, which is told first.

    Args:
        plugin: Version of our plugin as this checkout has it: one of another may not know.

    Raises:
        EngineError: The server does not answer.
    """
    if lacks_guard(server) or lacks_plugin(server, plugin):
        return []
    kept = [cloud for cloud, section in server.config.items()
            if isinstance(section, Mapping) and section.get("remote_identity") == NO_UPLOAD]
    with sky_sdk(with_server=False):
        answer = ask_server("GET", f"{KEYS}?kept={','.join(kept)}")
    if not answer.ok:
        raise EngineError("SkyPilot's API server does not say whose keys it would copy: it answers "
                          f"{answer.status_code}", place=server.url,
                          fix="look into ~/.sky/api_server/server.log on its machine")
    return list(answer.json()["files"])


def files_to_rent_with(cloud: str) -> dict[str, Path]:
    """Files here with which SkyPilot rents at a cloud, by their names in the home of whoever shall rent.

    Args:
        cloud: `vast`, `azure` or `gcp`, whose keys are here.
    """
    from sky.utils import registry

    known: Any = registry.CLOUD_REGISTRY.from_str(cloud)
    found: dict[str, Path] = {}
    for name, place in known.get_credential_file_mounts().items():
        source = Path(place).expanduser()
        found |= {f"{name}/{path.relative_to(source)}": path for path in source.rglob("*")} | {name: source}
    return {name: path for name, path in found.items() if path.is_file()}


def _supervises(is_here: bool, config: Mapping[str, Any]) -> bool:
    """Whether managed jobs live in the server. What its config says counts from its start on, so on this
    machine the mark is looked at that it has set then; elsewhere servers do it unless told not to."""
    from sky.utils import controller_utils

    if is_here:
        return bool(controller_utils.is_jobs_consolidation_mode())
    jobs = config.get("jobs") or {}
    return (jobs.get("controller") or {}).get("consolidation_mode") is not False
