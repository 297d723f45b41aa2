"""What a cloud's metadata server tells a machine of itself. As `deadman.py`: standard library, Python 3.8."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

_ANSWER_S = 5.0  # both answer in milliseconds; where there is none, the wait is paid for (guess)
# Google's own libraries read this variable too.
HOSTS = {"gcp": os.environ.get("GCE_METADATA_HOST", "metadata.google.internal"), "azure": "169.254.169.254"}
HEADERS = {"gcp": ("Metadata-Flavor", "Google"), "azure": ("Metadata", "true")}  # without: no answer
# Never through a proxy: it would be asked about another machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Question(NamedTuple):
    path: str
    answers: Mapping[str, bool]


# SkyPilot 0.14.1 sets GCP's flag beside `provisioningModel: SPOT` (sky/templates/gcp-ray.yml.j2); Azure's
# answer is empty for a machine that was made without a priority.
_IS_SPOT = {
    "gcp": _Question("computeMetadata/v1/instance/scheduling/preemptible", {"TRUE": True, "FALSE": False}),
    "azure": _Question("metadata/instance/compute/priority?api-version=2021-02-01&format=text",
                       {"Spot": True, "Low": True, "Regular": False, "": False}),
}


def is_spot(cloud: str, hosts: Mapping[str, str] = HOSTS) -> bool | None:
    """Whether this machine can be taken back, by its cloud's own word; None where the cloud says nothing.

    Args:
        cloud: `gcp` or `azure`; other clouds are not asked.
        hosts: Metadata servers by cloud, as `HOST` or `HOST:PORT`.
    """
    question = _IS_SPOT.get(cloud)
    if question is None:
        return None
    request = urllib.request.Request(f"http://{hosts[cloud]}/{question.path}",
                                     headers=dict([HEADERS[cloud]]))
    try:
        with OPENER.open(request, timeout=_ANSWER_S) as answer:
            said = answer.read(100).decode(errors="replace").strip()
    except OSError:
        return None
    return question.answers.get(said)
