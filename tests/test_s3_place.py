"""Nodes ask the S3 that this machine asks: what only its environment or AWS profile says stands in their URL.

A server of our own hears which region each request is signed for; the clients are the real ones.
"""

import os
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from local_http import serving
from s3_server import KEYS

from launcher.commands import PlanOptions, propose, resume_command
from trainer.contract import StoreError
from trainer.store import open_store

EMPTY = (b'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><KeyCount>0</KeyCount>'
         b"<IsTruncated>false</IsTruncated></ListBucketResult>")


class S3:
    """Empty, and a witness.

    Attributes:
        regions: For which requests were signed, in their order.
    """

    def __init__(self) -> None:
        self.url, self.regions = "", list[str]()


@pytest.fixture
def s3() -> Iterator[S3]:
    found = S3()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.regions.append(self.headers["authorization"].split("/")[2])
            body = EMPTY if "list-type" in self.path else b""
            self.send_response(200 if body else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found


@pytest.fixture(autouse=True)
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Keys, and nothing else of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    files = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}
    for name, value in {**KEYS, **files}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def told_to_nodes(url: str, *overrides: str, infra: str = "vast") -> tuple[str, str]:
    """Store and text's source in the task of a run."""
    options = PlanOptions(infra=infra, store=url, overrides=overrides)
    train = propose("canary", options).task.documents()[1]["envs"]
    source = re.search(r'"source":"([^"]*)"', train["LDLM_TRAIN_CONFIG"])
    return train["LDLM_STORE"], source[1] if source else ""


def asked_from_a_node(url: str, s3: S3, aws: pytest.MonkeyPatch) -> str:
    """The region that a machine signs for which knows the URL alone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        if name not in KEYS:
            aws.delenv(name)
    s3.regions.clear()
    assert open_store(url).objects("run") == []
    return s3.regions[0]


@pytest.mark.parametrize(("said", "region"), [
    ({"AWS_DEFAULT_REGION": "eu-central-1"}, "eu-central-1"), ({"AWS_REGION": "eu-north-1"}, "eu-north-1"),
    ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-central-1"}, "eu-north-1"),
    ({"AWS_PROFILE": "team"}, "sa-east-1"), ({}, "us-east-1")])
def test_a_node_signs_for_the_region_that_this_machine_signs_for(s3: S3, aws, tmp_path: Path,
                                                                 said: dict[str, str], region: str) -> None:
    (tmp_path / "config").write_text("[profile team]\nregion = sa-east-1\naws_access_key_id = id\n"
                                     "aws_secret_access_key = key\n")
    for name, value in said.items():
        aws.setenv(name, value)
    url, _ = told_to_nodes(f"s3://bucket/ldlm?endpoint={s3.url}")
    assert set(s3.regions) == {region}  # while it was planned
    assert asked_from_a_node(url, s3, aws) == region


@pytest.mark.parametrize("where", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile", "its services"])
def test_a_node_asks_the_endpoint_that_this_machine_asks(s3: S3, aws, tmp_path: Path, where: str) -> None:
    if where.startswith("AWS_"):
        aws.setenv(where, s3.url)
        if where.endswith("_S3"):
            aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # of all services, and S3 has its own
    elif where == "profile":
        (tmp_path / "config").write_text(f"[default]\nregion = eu-west-3\nendpoint_url = {s3.url}\n")
    else:
        (tmp_path / "config").write_text("[default]\nservices = minio\nendpoint_url = http://127.0.0.1:9\n"
                                         f"[services minio]\ns3 =\n  endpoint_url = {s3.url}\n")
    url, _ = told_to_nodes("s3://bucket/ldlm?region=eu-west-1")
    assert s3.regions and asked_from_a_node(url, s3, aws) == "eu-west-1"


def test_what_the_url_says_wins_and_a_url_that_says_all_stays_as_it_is(s3: S3, aws) -> None:
    aws.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    url = f"s3://bucket/ldlm?region=eu-west-1&endpoint={s3.url}"
    assert told_to_nodes(url)[0] == url and set(s3.regions) == {"eu-west-1"}


def test_a_text_at_s3_is_read_in_the_same_place(s3: S3, aws) -> None:
    aws.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    text = f"s3://texts/books?endpoint={s3.url}"
    assert told_to_nodes(f"s3://bucket/ldlm?endpoint={s3.url}", f"train.data.source={text}")[1] == (
        f"{text}&region=eu-central-1")


def test_a_run_on_this_machine_has_its_environment_and_keeps_its_url(s3: S3, aws) -> None:
    aws.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    url = f"s3://bucket/ldlm?endpoint={s3.url}"
    assert told_to_nodes(url, infra="local")[0] == url


def test_an_endpoint_of_the_environment_that_would_win_over_the_url_is_refused(s3: S3, aws) -> None:
    aws.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL_S3 is http://127.0.0.1:9") as caught:
        open_store(f"s3://bucket/ldlm?endpoint={s3.url}")
    assert caught.value.fix == "unset AWS_ENDPOINT_URL_S3"


def test_a_store_under_its_two_urls_is_one_store(aws) -> None:
    def command(address: str) -> str:
        record: Any = SimpleNamespace(run_id="a-run", store_address=address)
        return resume_command(record)

    aws.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    aws.setenv("LDLM_STORE", "s3://bucket/ldlm")
    for address in ("s3://bucket/ldlm", "s3://bucket/ldlm?region=eu-central-1"):
        assert command(address) == "ldlm resume a-run"
    for address in ("s3://bucket/ldlm?region=eu-west-1", "s3://bucket/other?region=eu-central-1"):
        assert command(address) == f"ldlm resume a-run --store '{address}'"
