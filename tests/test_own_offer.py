"""A node finds out which candidate it is on, and counts the dearest where it cannot tell."""

import json
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from trainer.contract import ConfigError
from trainer.metadata import is_spot
from trainer.own_offer import own_envs

PRICE, LABEL, GPU = "LDLM_PRICE_USD_PER_HOUR", "LDLM_OFFER", "LDLM_GPU"


class Metadata(HTTPServer):
    """Both clouds' metadata servers, as their documents describe them: without its header no answer.

    https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys (instance/scheduling/preemptible)
    https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service (compute/priority)
    """

    answers: dict[str, str]
    asked: list[str]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        header = "Metadata-Flavor" if self.path.startswith("/computeMetadata/") else "Metadata"
        wanted = {"Metadata-Flavor": "Google", "Metadata": "true"}[header]
        said = self.server.answers.get(self.path)
        allowed = self.headers.get(header) == wanted and "X-Forwarded-For" not in self.headers
        self.send_response(404 if said is None else 200 if allowed else 403)
        self.end_headers()
        self.wfile.write((said or "").encode() if allowed else b"no such header")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), _Answers)
    server.answers, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Says which cards this machine has, through a program named nvidia-smi."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def have(name: str, count: int = 1) -> None:
        rows = "\n".join([f"{name}, 81559, 81000, 580.95.05"] * count)
        program.write_text(f"#!/bin/sh\ncat <<'ROWS'\n{rows}\nROWS\n")

    have("NVIDIA H100 80GB HBM3")
    return have


def place(cloud: str, region: str | None = None, zone: str | None = None) -> str:
    """As SkyPilot 0.14.1 writes it: sky/backends/cloud_vm_ray_backend.py."""
    return json.dumps({"cluster_name": "c-1", "cloud": cloud, "region": region, "zone": zone})


def task(*offers: tuple[str, bool, dict[str, str]], **own: str) -> dict[str, str]:
    """The envs of a task whose first candidate is an H100 at $2.00, spot on Azure unless told otherwise."""
    told = [{"infra": infra, "spot": spot, "envs": envs} for infra, spot, envs in offers]
    first = {PRICE: "2.00", LABEL: "H100:1 on azure (spot)", GPU: "H100:1"}
    return first | {"LDLM_OFFERS": json.dumps(told)} | own


FIRST = ("azure", True, {})
ON_DEMAND = ("azure", False, {PRICE: "6.98", LABEL: "H100:1 on azure (on-demand)"})
A100 = ("gcp/us-central1", True, {PRICE: "2.76", LABEL: "A100-80GB:1 on gcp/us-central1 (spot)",
                                  GPU: "A100-80GB:1"})
H100_ON_GCP = ("gcp/us-east5", True, {PRICE: "6.33", LABEL: "H100:1 on gcp/us-east5 (spot)"})


def never(cloud: str) -> bool | None:
    raise AssertionError(f"{cloud} was asked for what is known")


def test_a_task_with_one_candidate_tells_all_itself():
    assert own_envs({PRICE: "2.00", GPU: "H100:1"}, never) == {}


def test_a_machine_is_known_by_its_place(cards):
    envs = task(FIRST, A100, H100_ON_GCP)
    assert own_envs(envs | {"SKYPILOT_CLUSTER_INFO": place("Azure", "eastus")}, never) == {PRICE: "2.00"}
    there = own_envs(envs | {"SKYPILOT_CLUSTER_INFO": place("GCP", "us-east5", "us-east5-a")}, never)
    assert there == H100_ON_GCP[2]


def test_two_of_one_place_are_told_by_their_cards(cards):
    envs = task(("gcp", True, {}), ("gcp", True, A100[2]))
    envs["SKYPILOT_CLUSTER_INFO"] = place("GCP", "us-central1", "us-central1-a")
    assert own_envs(envs, never) == {PRICE: "2.00"}
    cards("NVIDIA A100-SXM4-80GB")
    assert own_envs(envs, never) == A100[2]
    cards("NVIDIA L4")  # neither: it will be refused, and is paid for until then
    assert own_envs(envs, never)[PRICE] == "2.76"


def test_regions_of_vast_are_told_apart(cards):
    envs = task(("vast/Spain, ES, EU", True, {}), ("vast/Texas, US, NA", True, {PRICE: "3.00"}))
    told = own_envs(envs | {"SKYPILOT_CLUSTER_INFO": place("Vast", "Texas, US, NA")}, never)
    assert told == {PRICE: "3.00"}


@pytest.mark.parametrize(("cloud", "path", "spot", "regular"), [
    ("gcp", "/computeMetadata/v1/instance/scheduling/preemptible", "TRUE", "FALSE"),
    ("azure", "/metadata/instance/compute/priority?api-version=2021-02-01&format=text", "Spot", "Regular"),
    ("azure", "/metadata/instance/compute/priority?api-version=2021-02-01&format=text", "Spot", ""),
])
def test_spot_and_on_demand_of_one_card_are_told_by_the_cloud_s_metadata_server(
        cloud, path, spot, regular, metadata, cards, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    envs = task((cloud, True, {}), (cloud, False, {PRICE: "9.00"}))
    envs["SKYPILOT_CLUSTER_INFO"] = place({"gcp": "GCP", "azure": "Azure"}[cloud], "somewhere")
    ask = partial(is_spot, hosts={"gcp": metadata.host, "azure": metadata.host})

    metadata.answers = {path: spot}
    assert own_envs(envs, ask) == {PRICE: "2.00"}
    metadata.answers = {path: regular}
    assert own_envs(envs, ask) == {PRICE: "9.00"}
    assert metadata.asked == [path, path]


def test_where_the_cloud_does_not_say_the_dearest_counts(metadata, cards):
    """At GCP and Azure an answer that nobody knows, none at all; other clouds are not asked."""
    ask = partial(is_spot, hosts={"gcp": metadata.host, "azure": metadata.host})
    envs = task(FIRST, ON_DEMAND) | {"SKYPILOT_CLUSTER_INFO": place("Azure", "eastus")}
    assert own_envs(envs, ask) == ON_DEMAND[2]
    metadata.answers = {metadata.asked[-1]: "Reserved"}
    assert own_envs(envs, ask) == ON_DEMAND[2]

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        assert own_envs(envs, partial(is_spot, hosts={"azure": nobody})) == ON_DEMAND[2]
    assert is_spot("vast") is None


@pytest.mark.parametrize("said", ["", "no JSON", "[]", "{}", '{"cloud": null}'])
def test_where_skypilot_does_not_say_the_dearest_that_fits_counts(said, cards):
    envs = task(FIRST, A100, H100_ON_GCP, ("gcp", True, {PRICE: "50", GPU: "H100:8"}))
    assert own_envs(envs | {"SKYPILOT_CLUSTER_INFO": said}, never) == H100_ON_GCP[2]


def test_a_price_that_is_missing_counts_as_the_dearest_and_never_as_nothing(cards):
    envs = task(FIRST, (*H100_ON_GCP[:2], {**H100_ON_GCP[2], PRICE: ""}), ON_DEMAND)
    there = own_envs(envs | {"SKYPILOT_CLUSTER_INFO": place("GCP", "us-east5")}, never)
    assert there == {**H100_ON_GCP[2], PRICE: "6.98"}
    with pytest.raises(ConfigError, match="no candidate has a price"):
        own_envs(task(("azure", True, {}), ("gcp", True, {}), LDLM_PRICE_USD_PER_HOUR=""), never)


@pytest.mark.parametrize("text", ["no JSON", "3", "[3]", '[{"infra": "gcp"}]', '{"infra": "gcp"}',
                                  '[{"infra": 3, "spot": true, "envs": {}}]'])
def test_candidates_that_cannot_be_read_are_an_error_that_names_the_variable(text):
    with pytest.raises(ConfigError, match="LDLM_OFFERS: the candidates cannot be read"):
        own_envs({PRICE: "2.00", "LDLM_OFFERS": text}, never)
