"""A gate before an S3 server: passes requests on as they are, counts what is read, and can be shut."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OWN = ("content-length", "transfer-encoding", "connection", "server", "date")  # headers of each connection


class Gate:
    """Where it listens, and what has passed.

    Attributes:
        read_bytes: Of objects that were read by ranges.
        shut_after: Ranges that pass before no other does; None: all.
        is_shut: Set once one had to wait.
        num_under_way: Ranges that were let in and are not read yet.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.read_bytes = 0
        self.num_under_way = 0
        self.shut_after: int | None = None
        self.is_shut = threading.Event()
        self._open = threading.Event()
        self._lock = threading.Lock()
        self._num_ranges = 0

    def open(self) -> None:
        """Let everything through from now on, and count anew."""
        self.shut_after, self.read_bytes = None, 0
        self._open.set()

    def lets_in(self) -> bool:
        """Ask for one more range. Who has had to wait is turned away when the gate opens."""
        with self._lock:
            self._num_ranges += 1
            waits = self.shut_after is not None and self._num_ranges > self.shut_after
            self.num_under_way += not waits
        if waits:
            self.is_shut.set()
            self._open.wait()
        return not waits

    def count(self, num_bytes: int) -> None:
        """A range has been read."""
        with self._lock:
            self.read_bytes += num_bytes

    def let_out(self) -> None:
        """It is with who has asked."""
        with self._lock:
            self.num_under_way -= 1


@contextmanager
def gate_before(endpoint: str) -> Iterator[Gate]:
    """Start a gate before the server at an endpoint; end it after the block."""
    behind = urlsplit(endpoint).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            is_range = self.command == "GET" and "range" in self.headers
            if is_range and not gate.lets_in():
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(behind, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if is_range:
                gate.count(len(data))
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OWN:
                    self.send_header(name, value)
            length = answer.getheader("content-length") if self.command == "HEAD" else len(data)
            self.send_header("content-length", str(length))
            self.end_headers()
            self.wfile.write(data)
            if is_range:
                gate.let_out()

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
        gate = Gate(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield gate
        gate.open()
        server.shutdown()
