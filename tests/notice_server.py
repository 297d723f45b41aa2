"""The parts of three clouds' metadata services that tell a machine of its end, written from their documents.

Each is a server on a port of this machine, told by the environment variable that the cloud's own libraries
read. Timings are the clouds' own; a test that would take minutes names shorter ones. What lacks a header, a
version or a token is refused as there.

- Azure, "Scheduled Events for Linux VMs": `Metadata: true`, a version in every request, the first answer in
  up to two minutes, `NotBefore` in whole seconds and blank once it has begun, 30 s at least for `Preempt`.
- GCP, "Query VM metadata" and "Spot VMs": `Metadata-Flavor: Google`, ETags, `wait_for_change` until there is
  another one than `last_etag` or `timeout_sec` has passed; 30 s.
- AWS, "Spot Instance interruption notices" and "Use IMDSv2": a token by PUT, which expires; 401 without one,
  404 until there is a notice; two minutes.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class NoticeServer(ThreadingHTTPServer):
    """What the three have in common.

    Attributes:
        notice_s: From the notice to the end of the machine.
        asked: Requests so far: method and path.
        ahead_s: How far this server's clock is before this machine's.
        gone_at: When the machine ends, by the server's clock; None: there is no notice.
    """

    daemon_threads = True
    cloud = ""
    variable = ""
    notice_s = 30.0

    def __init__(self, **changes: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.asked: list[str] = []
        self.ahead_s = 0.0
        self.gone_at: datetime | None = None
        self.changed = threading.Condition()
        for name, value in changes.items():
            setattr(self, name, value)

    def now(self) -> datetime:
        """By the server's clock."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    def take_back(self) -> None:
        """Give notice. The machine itself ends elsewhere, see `dies_after`."""
        with self.changed:
            self.gone_at = self.now() + timedelta(seconds=self.notice_s)
            self.changed.notify_all()

    @property
    def environment(self) -> dict[str, str]:
        """Of a process on a machine of this cloud, as SkyPilot 0.14.1 starts it."""
        info = {"cluster_name": "c-1", "cloud": self.cloud, "region": None, "zone": None}
        return {"SKYPILOT_CLUSTER_INFO": json.dumps(info), self.variable: f"127.0.0.1:{self.server_port}",
                "http_proxy": "http://127.0.0.1:9"}  # nobody is there

    def answer(self, request: "_Request", path: str, query: dict[str, str]) -> tuple[int, str]:
        """Status and text."""
        raise NotImplementedError


class _Request(BaseHTTPRequestHandler):
    server: NoticeServer

    def do_GET(self) -> None:
        self.extra: dict[str, str] = {}
        self.server.asked.append(f"{self.command} {self.path}")
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status, text = (400, "") if "X-Forwarded-For" in self.headers else \
            self.server.answer(self, parts.path, query)
        self.send_response(status)
        for name, value in self.extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        try:
            self.wfile.write(text.encode())
        except OSError:  # whoever asked has ended meanwhile
            self.close_connection = True

    do_PUT = do_GET

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.server.now(), usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


class Azure(NoticeServer):
    """Scheduled Events of the machine `train-0`.

    Attributes:
        first_answer_s: The first request switches the service on.
        kind, resources: Of the event.
        other_events: Such that concern this machine not, or not now.
    """

    cloud, variable = "Azure", "AZURE_POD_IDENTITY_AUTHORITY_HOST"
    first_answer_s = 120.0
    kind = "Preempt"
    resources = ("train-0",)
    other_events: tuple[dict[str, Any], ...] = ()

    def answer(self, request: _Request, path: str, query: dict[str, str]) -> tuple[int, str]:
        if request.headers["Metadata"] != "true" or request.command != "GET":
            return 400, '{"error": "Bad request. Required metadata header not specified"}'
        if path == "/metadata/instance/compute/name" and {"api-version", "format"} <= set(query):
            return 200, "train-0"
        if path != "/metadata/scheduledevents" or query.get("api-version") != "2020-07-01":
            return 400, '{"error": "Bad request. api-version is invalid or was not specified"}'
        if sum("scheduledevents" in one for one in self.asked) == 1:
            time.sleep(self.first_answer_s)
        events = [*self.other_events, *([self.event(self.kind, self.gone_at, *self.resources)]
                                        if self.gone_at else [])]
        return 200, json.dumps({"DocumentIncarnation": 1 + len(events), "Events": events})

    def event(self, kind: str, at: datetime, *resources: str) -> dict[str, Any]:
        """One entry of the document."""
        has_begun = at <= self.now()
        return {"EventId": "602d9444-d2cd-49c7-8624-8643e7171297", "EventType": kind,
                "ResourceType": "VirtualMachine", "Resources": list(resources),
                "EventStatus": "Started" if has_begun else "Scheduled",
                "NotBefore": "" if has_begun else format_datetime(at, usegmt=True),
                "Description": "", "EventSource": "Platform", "DurationInSeconds": -1}


class Gcp(NoticeServer):
    """`instance/preempted`."""

    cloud, variable = "GCP", "GCE_METADATA_HOST"

    def answer(self, request: _Request, path: str, query: dict[str, str]) -> tuple[int, str]:
        if request.headers["Metadata-Flavor"] != "Google":
            return 403, "Missing Metadata-Flavor:Google header."
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, ""
        with self.changed:
            before = query.get("last_etag", self.etag)
            if query.get("wait_for_change") == "true":
                self.changed.wait_for(lambda: self.etag != before, float(query.get("timeout_sec", 3600)))
            request.extra["ETag"] = self.etag
            return 200, "TRUE" if self.gone_at else "FALSE"

    @property
    def etag(self) -> str:
        """Another one for each value."""
        return "411261ca6c9e4042" if self.gone_at else "d20adb5d6d4e4fb1"


class Aws(NoticeServer):
    """`spot/instance-action`, by IMDSv2.

    Attributes:
        token_s: How long a token lives at most, shorter than what was asked for.
    """

    cloud, variable, notice_s = "AWS", "AWS_EC2_METADATA_SERVICE_ENDPOINT", 120.0
    token_s = 21600.0

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self._tokens: dict[str, float] = {}

    @property
    def environment(self) -> dict[str, str]:
        """AWS's variable holds a URL."""
        return {**super().environment, self.variable: f"http://127.0.0.1:{self.server_port}/"}

    def answer(self, request: _Request, path: str, query: dict[str, str]) -> tuple[int, str]:
        if request.command == "PUT":
            asked_s = request.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            if path != "/latest/api/token" or not asked_s or not 1 <= int(asked_s) <= 21600:
                return 400, ""
            token = f"AQAEAL{len(self._tokens)}=="
            self._tokens[token] = time.monotonic() + min(float(asked_s), self.token_s)
            return 200, token
        if self._tokens.get(request.headers["X-aws-ec2-metadata-token"] or "", 0) < time.monotonic():
            return 401, ""
        if path != "/latest/meta-data/spot/instance-action" or self.gone_at is None:
            return 404, ""
        return 200, json.dumps({"action": "terminate", "time": f"{self.gone_at:%Y-%m-%dT%H:%M:%SZ}"})


class Garbage(NoticeServer):
    """Stands where a cloud's service should: a proxy's page, half an answer, another program's JSON."""

    texts = ("<html>Sign in</html>", '{"Events": 3}', '{"Events": [{"EventType": "Preempt"}]}', "[]", "",
             '{"time": "soon"}', "\x00\xff")

    def answer(self, request: _Request, path: str, query: dict[str, str]) -> tuple[int, str]:
        request.extra["ETag"] = "no such\tETag"
        return 200, self.texts[len(self.asked) % len(self.texts)]


@contextmanager
def serving(server: NoticeServer) -> Iterator[NoticeServer]:
    """Answer in the background, within the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
