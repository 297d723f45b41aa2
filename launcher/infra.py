"""Where something may run, in SkyPilot's language: `vast`, `gcp/us-central1`. Read here alone. Pure."""

import difflib
import re

from launcher.errors import UsageError

# With the parts that may follow a cloud's name.
_FORMS = {"local": "local", "vast": "vast/REGION", "azure": "azure/REGION", "gcp": "gcp/REGION/ZONE",
          "slurm": "slurm/CLUSTER/PARTITION", "k8s": "k8s/CONTEXT"}
CLOUDS = tuple(_FORMS)
_ALIASES = {"kubernetes": "k8s"}
_SMALL = ("azure", "gcp")  # whose regions are never written in capitals
# Regions of Vast have spaces and commas: `Texas, US, NA`, and `, US, NA` where a host says no more.
REGION = r"[\w,][\w .,'()-]*"
_PART = re.compile(rf"{REGION}|\*")


def is_within(infra: str, wider: str) -> bool:
    """True for `gcp/us-central1` within `gcp`, and for the same; SkyPilot tells no capitals apart."""
    return f"{infra.lower()}/".startswith(f"{wider.lower()}/")


def read_infra(text: str, place: str | None = "--infra") -> str:
    """An infra as SkyPilot would read it: the cloud in small letters, `*` at the end left out.

    Raises:
        UsageError: There is no such cloud, or what follows its name is no region of it.
    """
    first, *others = (part.strip() for part in text.strip().strip("/").split("/"))
    cloud = _ALIASES.get(first.lower(), first.lower())
    if cloud not in CLOUDS:
        near = difflib.get_close_matches(cloud, CLOUDS, n=1)
        meant = f"did you mean {near[0]}? Else " if near else ""
        raise UsageError(f"{text!r} is no infrastructure that ldlm knows", place=place,
                         fix=f"{meant}use one of {', '.join(CLOUDS)}")
    form = _FORMS[cloud]
    is_too_long = cloud != "k8s" and len(others) > form.count("/")  # names of contexts have slashes
    if is_too_long or not all(_PART.fullmatch(part) for part in others):
        raise UsageError(f"{text!r} is not written as {form}", place=place,
                         fix=f"use {cloud} alone{f', or {form}' if form != cloud else ''}")
    while others and others[-1] == "*":
        others.pop()
    return "/".join([cloud, *(part.lower() if cloud in _SMALL else part for part in others)])
