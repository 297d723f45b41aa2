"""A server that takes webhooks as Slack and Discord do: a POST of JSON, answered with a code.

What it is told to answer comes in order; the last answer stays.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_http import serving

PATH = "/services/T00000000/B00000000/a-secret-that-is-never-shown"


class WebhookServer:
    """What arrived, and what is answered.

    Attributes:
        url: Where it is, with the secret.
        answers: HTTP codes; "silence": none within the test; "hang up": the line is cut without one.
        messages: JSON of every POST, in order, whatever was answered.
        paths: Of every request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[int | str] = [200]
        self.messages: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.elsewhere = ""  # where a redirect leads
        self.lock = threading.Lock()
        self.is_over = threading.Event()

    @property
    def ids(self) -> list[str]:
        """Of the messages."""
        return [message["id"] for message in self.messages]


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        hook: WebhookServer = self.server.hook
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json"
        with hook.lock:
            hook.messages.append(body)
            hook.paths.append(self.path)
            answer = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
        if answer == "silence":
            hook.is_over.wait(60)
        if isinstance(answer, str):
            self.close_connection = True
            return
        self.send_response(answer)
        if hook.elsewhere:
            self.send_header("Location", hook.elsewhere)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.hook.paths.append(f"GET {self.path}")
        self.send_error(405)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def webhook_server() -> Iterator[WebhookServer]:
    """A server on a free port of this machine, for as long as the block runs."""
    with serving(_Handler) as http:
        http.hook = hook = WebhookServer(  # type: ignore[attr-defined]
            f"http://127.0.0.1:{http.server_port}{PATH}")
        try:
            yield hook
        finally:
            hook.is_over.set()
