"""What S3 answers to a key that has expired, or in the wrong region, is told with what to do.

A server of our own gives S3's answers, word for word; the clients are the real ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from cli_lab import environment, files_below, refused
from local_http import serving
from s3_server import KEYS, running_s3_server

from trainer.contract import StoreError
from trainer.store import open_store
from trainer.store_words import explained

EXPIRED = (400, "<Code>ExpiredToken</Code><Message>The provided token has expired.</Message>")
WRONG_REGION = (400, "<Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is "
                     "malformed; the region 'us-east-1' is wrong; expecting 'eu-west-3'</Message>"
                     "<Region>eu-west-3</Region>")
REDIRECT = (301, "<Code>PermanentRedirect</Code><Message>The bucket you are attempting to access must be "
                 "addressed using the specified endpoint.</Message>")
# By an answer: problem and fix.
TOLD = {
    EXPIRED: ("ExpiredToken: The provided token has expired.",
              "renew the credentials of this store: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
              "AWS_PROFILE; or `aws configure`"),
    WRONG_REGION: ("AuthorizationHeaderMalformed: The authorization header is malformed; the region "
                   "'us-east-1' is wrong; expecting 'eu-west-3'",
                   "name the bucket's region in the store's URL: ?region=eu-west-3"),
    REDIRECT: ("the bucket is in another region than the store's URL, or the environment, says",
               "name the bucket's region in the store's URL: ?region=REGION; `aws s3api get-bucket-location "
               "--bucket BUCKET` tells it"),
}


@contextmanager
def answering(status: int, error: str) -> Iterator[str]:
    """A server that answers everything so. Yields the URL of a store on it."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{error}</Error>'.encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as server:
        yield f"s3://bucket/x?endpoint=http://127.0.0.1:{server.server_port}&region=us-east-1"


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("answer", TOLD, ids=["expired key", "wrong region", "redirect"])
def test_what_s3_refuses_is_told_with_what_to_do(answer):
    problem, fix = TOLD[answer]
    with answering(*answer) as url:
        store = open_store(url)
        for verb, place, act in (("read", "/key", lambda: store.get("key")), ("list", "", store.objects),
                                 ("write", "/key", lambda: store.put("key", b""))):
            with pytest.raises(StoreError) as caught:
                act()
            assert (caught.value.problem, caught.value.fix) == (f"cannot {verb}: {problem}", fix)
            assert str(caught.value.place).startswith(f"s3://bucket/x{place}")


def test_a_port_is_not_taken_for_the_status_of_an_answer():
    said = "Error performing GET http://127.0.0.1:40311/bucket - Server returned 400: ExpiredToken"
    assert (explained(said, "s3://bucket/x", "read").fix or "").startswith("renew the credentials")
    refused_by_status = said.replace("400: ExpiredToken", "403")
    assert "the key is right" in (explained(refused_by_status, "s3://bucket/x", "read").fix or "")


@pytest.mark.parametrize("answer", TOLD, ids=["expired key", "wrong region", "redirect"])
def test_a_launch_into_such_a_store_starts_and_writes_nothing(answer, tmp_path):
    home = tmp_path / "home"
    with answering(*answer) as url:
        said = refused(6, "launch", "smoke", "--yes", "--store", url, env=environment(LDLM_HOME=str(home)))
    assert TOLD[answer][1] in said
    assert not home.exists() or files_below(home) == []


def test_a_launch_into_a_bucket_that_is_not_there_starts_and_writes_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with running_s3_server() as server:
        said = refused(6, "launch", "smoke", "--yes", "--store", server.url("not-there", "x"),
                       env=environment(LDLM_HOME=str(home)))
    assert "NoSuchBucket" in said
    assert "check that the bucket exists, in the region and at the endpoint that the URL names" in said
    assert not home.exists() or files_below(home) == []


@pytest.mark.parametrize(("cap", "infra"), [("0.0001", []), ("0.01", ["--infra", "vast", "--dry-run"])])
def test_a_cap_below_what_the_run_would_cost_is_refused_with_the_least_that_would_do(cap, infra):
    said = refused(4, "launch", "smoke", "--store", "s3://bucket/x", "--yes", "--max-cost", cap, *infra)
    assert "this run would cost ~$" in said and f"and --max-cost is ${cap}" in said
    assert "fix: add --max-cost 0." in said
