"""A small API server of SkyPilot: well, knows some managed jobs, and may lose connections in the middle."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_http import serving
from sky.server import constants
from sky.server.requests.serializers import encoders

QUEUE, LAUNCH = "/jobs/queue/v2", "/jobs/launch"
HEALTH = {"status": "healthy", "version": "0.14.1", "commit": "of a test",
          "api_version": str(constants.API_VERSION)}


@dataclass
class FakeSkyServer:
    """What it answers.

    Attributes:
        jobs: Rows of its queue, as SkyPilot's client decodes them.
        drops: Paths of requests whose results it never tells: the connection breaks.
        pages: What it answers with 200 at some paths instead.
        asked: Paths of all requests, in their order.
    """

    url: str = ""
    jobs: Sequence[Mapping[str, Any]] = ()
    drops: set[str] = field(default_factory=set)
    pages: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def result(self, path: str) -> dict[str, Any]:
        """Of a request that has been carried out."""
        value = {"jobs": self.jobs, "total": len(self.jobs)} if path == QUEUE else None
        nothing, name = encoders.pickle_and_encode(None), "sky.jobs.queue_v2" if path == QUEUE else path
        return {"request_id": path, "name": name, "entrypoint": nothing, "request_body": nothing,
                "status": "SUCCEEDED", "created_at": 0.0, "user_id": "me", "return_value": json.dumps(value),
                "error": "null", "pid": None, "schedule_type": "short"}


@contextmanager
def fake_sky_server() -> Iterator[FakeSkyServer]:
    """Serve on a free port."""
    fake = FakeSkyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path, _, query = self.path.partition("?")
            fake.asked.append(path)
            if path == "/api/health":
                self.answer(json.dumps(HEALTH))
            elif path in fake.pages:
                self.answer(fake.pages[path])
            elif path == "/api/get":
                request = query.partition("=")[2]
                if request not in fake.drops:
                    self.answer(json.dumps(fake.result(request)))
            elif path.startswith("/plugins/"):  # it has none
                self.send_error(404)
            else:
                self.answer("null", request=path)

        do_POST = do_GET

        def answer(self, text: str, request: str = "") -> None:
            self.send_response(200)
            self.send_header("X-SkyPilot-API-Version", HEALTH["api_version"])
            self.send_header("X-SkyPilot-Version", HEALTH["version"])
            self.send_header("X-Skypilot-Request-ID", request)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        yield fake
