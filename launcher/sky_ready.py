"""What SkyPilot's API server must be like before a machine is rented through it. Pure.

SkyPilot copies the keys of every cloud that it finds onto every machine that it rents, a stranger's too,
unless the config of its API server says `remote_identity: NO_UPLOAD` for each of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NO_UPLOAD = "NO_UPLOAD"  # SkyPilot's schema takes it in small letters too, and then does not obey
# Every cloud with machines for rent whose keys SkyPilot 0.14.1 can be told to keep: sky/utils/schemas.py.
GUARDED = ("vast", "azure", "gcp", "aws", "oci", "nebius")
RENTED = ("vast", "azure", "gcp")
PLUGIN = "ldlm"
KEYS = "/plugins/api/ldlm/keys"  # where SkyPilot's server names those that it would copy
PLUGIN_CLASS = "launcher.sky_plugin.LdlmPlugin"
# Of this environment: the sky of another could not load the plugin, and would not start.
RESTART = ".venv/bin/sky api stop; .venv/bin/sky api start"


@dataclass(frozen=True)
class SkyServer:
    """What an API server says of itself.

    Attributes:
        url: Without a password.
        is_here: It is the one of this user on this machine, and stops with it.
        controller: What `ldlm controller up --ssh` was told, of a server that it has set up.
        version: Of SkyPilot, there.
        config: Its config file.
        laid_over: This machine's config files, which SkyPilot lays over it for what is asked from here.
        plugins: Versions by name.
        supervises: Managed jobs are supervised in it; False: on a machine that it rents for that.
    """

    url: str
    is_here: bool
    version: str
    config: Mapping[str, Any]
    laid_over: Mapping[str, Any]
    plugins: Mapping[str, str]
    supervises: bool
    controller: str | None = None


@dataclass(frozen=True)
class Lack:
    """Why nothing should be rented through a server."""

    problem: str
    fix: str


def lacks(server: SkyServer, cloud: str, plugin: str) -> list[Lack]:
    """What stands in the way of renting at a cloud; nothing for a cluster of the user's own.

    Args:
        plugin: Version of our plugin as this checkout has it.
    """
    if cloud not in RENTED:
        return []
    found = (lacks_guard(server), lacks_supervision(server), lacks_plugin(server, plugin))
    return [lack for lack in found if lack]


def lacks_guard(server: SkyServer) -> Lack | None:
    """Whose keys would be copied onto rented machines."""
    unsaid = [cloud for cloud in GUARDED if not _is_said(server.config, cloud)]
    if unsaid:
        return Lack(f"would copy keys onto rented machines: no remote_identity: {NO_UPLOAD} for "
                    f"{', '.join(unsaid)}", _fix(server, _config_lines(unsaid)))
    unsaid = [cloud for cloud in GUARDED if any(
        value != NO_UPLOAD for config in (server.config, server.laid_over)
        for value in _identities(config, cloud))]
    if unsaid:
        return Lack(f"would copy keys onto rented machines: remote_identity of {', '.join(unsaid)} is "
                    "another for a region, a workspace or this folder",
                    f"set it to {NO_UPLOAD} there too: in SkyPilot's config, or in this folder's .sky.yaml")
    return None


def lacks_supervision(server: SkyServer) -> Lack | None:
    """Without keys on it, a machine that is rented to supervise could rent none itself."""
    if server.supervises:
        return None
    return Lack("would rent a machine to supervise the run, which has no keys to rent others",
                _fix(server, "jobs: {controller: {consolidation_mode: true}}"))


def lacks_plugin(server: SkyServer, plugin: str) -> Lack | None:
    """SkyPilot by itself takes the first machine that comes on Vast, and regions at any price elsewhere; and
    a plugin of another version lets filters that it does not know get lost."""
    found = server.plugins.get(PLUGIN)
    if found == plugin:
        return None
    if found is not None:
        return Lack(f"still runs another version of ldlm's plugin ({found}; of this checkout is {plugin}), "
                    "which may rent by other rules than this plan's", _renew(server))
    by_hand = f"plugins: [{{class: {PLUGIN_CLASS}}}]"
    return Lack("has not loaded ldlm's plugin: what it rents on Vast is not what was asked for, and on "
                "Azure and GCP it may cost more", _fix(server, by_hand, "plugins.yaml"))


def lacks_guard_of_others(server: SkyServer, files: Sequence[str]) -> Lack | None:
    """Whose keys would be copied although the server has been told to keep all that it can be told to keep.

    Args:
        files: That travel all the same, by its own word.
    """
    if not files:
        return None
    return Lack(f"would copy keys onto rented machines, whatever its config says: {', '.join(files)}",
                "move these files out of your home while you rent, or rent through a controller, which has "
                "no others: ldlm controller up" if server.is_here else
                "move these files out of its home on its machine while you rent")


def _config_lines(clouds: Sequence[str]) -> str:
    return ", ".join(f"{cloud}: {{remote_identity: {NO_UPLOAD}}}" for cloud in clouds)


def _fix(server: SkyServer, by_hand: str, file: str = "config.yaml") -> str:
    if server.is_here:
        return f"ldlm init, then {RESTART}"
    return f"on its machine, in its ~/.sky/{file}: {by_hand}; then restart it"


def _renew(server: SkyServer) -> str:
    if server.controller:
        return f"commit what is changed here, then: ldlm controller up --ssh {server.controller}"
    if server.is_here:
        return RESTART
    return f"bring ldlm on its machine to the commit of this checkout, then restart it there: {RESTART}"


def _is_said(config: Mapping[str, Any], cloud: str) -> bool:
    section = config.get(cloud)
    return isinstance(section, Mapping) and section.get("remote_identity") == NO_UPLOAD


def _identities(config: Mapping[str, Any], cloud: str) -> Iterator[Any]:
    """Every remote_identity that a config has for a cloud: in general, of a region, of a workspace."""
    workspaces = config.get("workspaces")
    places = [config, *(workspaces.values() if isinstance(workspaces, Mapping) else ())]
    for place in places:
        section = place.get(cloud) if isinstance(place, Mapping) else None
        if not isinstance(section, Mapping):
            continue
        regions = section.get("region_configs")
        inner = regions.values() if isinstance(regions, Mapping) else ()
        for part in (section, *inner):
            if isinstance(part, Mapping) and "remote_identity" in part:
                yield part["remote_identity"]
