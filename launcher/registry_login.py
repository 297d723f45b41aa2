"""The login of a private registry of images, under the names by which SkyPilot takes it.

SkyPilot gives it to the machine that pulls, and takes every image of the run to be of that registry.
"""

from collections.abc import Mapping

from launcher.errors import EngineError

_NAMES = ("SKYPILOT_DOCKER_USERNAME", "SKYPILOT_DOCKER_PASSWORD", "SKYPILOT_DOCKER_SERVER")
CHECK_IMAGE = f"check its name and its tag; if it is not public, set {', '.join(_NAMES)}"


def registry_login(environ: Mapping[str, str]) -> dict[str, str]:
    """The login by its names; empty where there is none.

    Raises:
        EngineError: A part of it is missing.
    """
    found = {name: environ[name] for name in _NAMES if environ.get(name)}
    missing = [name for name in _NAMES if name not in found]
    if found and missing:
        raise EngineError(f"a login of a registry without {' and '.join(missing)}", place="environment",
                          fix="set all three, or none: unset " + " ".join(found))
    return found
