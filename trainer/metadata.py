"""What a cloud's metadata server tells a machine of itself. As `deadman.py`: standard library, Python 3.8."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from email.message import Message
from http.client import HTTPException
from typing import NamedTuple

ANSWER_S = 5.0  # they answer in milliseconds; where there is none, the wait is paid for (guess)
_MOST_BYTES = 2**16
_LINK_LOCAL = "169.254.169.254"


def _own_host(variable: str, usual: str) -> str:
    """`HOST` or `HOST:PORT`; the variable may hold it as a URL."""
    return os.environ.get(variable, usual).replace("http://", "").rstrip("/")


# The clouds' own libraries read these variables too.
HOSTS = {"gcp": _own_host("GCE_METADATA_HOST", "metadata.google.internal"),
         "azure": _own_host("AZURE_POD_IDENTITY_AUTHORITY_HOST", _LINK_LOCAL),
         "aws": _own_host("AWS_EC2_METADATA_SERVICE_ENDPOINT", _LINK_LOCAL)}
HEADERS = {"gcp": ("Metadata-Flavor", "Google"), "azure": ("Metadata", "true")}  # without: no answer
# Never through a proxy: it would be asked about another machine.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# What may be raised where nobody, or somebody else, listens at its address.
NO_ANSWER = (OSError, HTTPException)


class Answer(NamedTuple):
    """What a metadata server has said."""

    text: str
    headers: Message


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


def read(url: str, header: tuple[str, str], method: str = "GET", timeout_s: float = ANSWER_S) -> Answer:
    """Ask a metadata server. Raises one of `NO_ANSWER`."""
    request = urllib.request.Request(url, headers=dict([header]), method=method)
    with OPENER.open(request, timeout=timeout_s) as answer:
        return Answer(answer.read(_MOST_BYTES).decode(errors="replace").strip(), answer.headers)


def is_spot(cloud: str, hosts: Mapping[str, str] = HOSTS) -> bool | None:
    """Whether this machine can be taken back, by its cloud's own word; None where the cloud says nothing.

    Args:
        cloud: `gcp` or `azure`; other clouds are not asked.
        hosts: Metadata servers by cloud, as `HOST` or `HOST:PORT`.
    """
    question = _IS_SPOT.get(cloud)
    if question is None:
        return None
    try:
        return question.answers.get(read(f"http://{hosts[cloud]}/{question.path}", HEADERS[cloud]).text)
    except NO_ANSWER:
        return None
