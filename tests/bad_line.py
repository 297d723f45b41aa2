"""An S3 server behind a line that treats requests badly: slow, silent, cut off in the middle, or refused.

In this process, in memory, over `plain_s3.py`. What is wrong is drawn for each request from a seed.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.plain_s3 import Handler, Server

ERRORS = {500: "InternalError", 503: "SlowDown", 429: "TooManyRequests"}


class BadServer(Server):
    """Attributes:
        share: Of requests that are treated badly.
        how: A status of ERRORS, `cut` (the connection, in the middle of what it carries), or `silent`.
        struck: Requests treated so, by method.
        keeps_conditions: False: what is to be created is written over what is there.
    """

    def __init__(self, gigabits_per_s: float = 0) -> None:
        super().__init__(gigabits_per_s, 0)
        self.share, self.how = 0.0, "cut"
        self.struck: Counter[str] = Counter()
        self.keeps_conditions = True
        self.released = threading.Event()
        self._random, self._lock = random.Random(0), threading.Lock()
        self.RequestHandlerClass = _BadHandler

    @property
    def url(self) -> str:
        """Of a store on it, with nothing in it."""
        return f"s3://b{id(self)}/runs?endpoint=http://127.0.0.1:{self.server_port}&region=us-east-1"

    def strikes(self, method: str) -> bool:
        """Draw whether a request is treated badly, and count it."""
        with self._lock:
            found = self._random.random() < self.share
            self.struck[method] += found
            return found


class _BadHandler(Handler):
    server: BadServer

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has gone, or was cut off
            self.close_connection = True

    def do_PUT(self) -> None:  # noqa: N802
        if not self.server.keeps_conditions:
            del self.headers["If-None-Match"]
        super().do_PUT()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if not self.server.strikes(self.command):
            return True
        self._strike()
        return False

    def _strike(self) -> None:
        how, num_bytes = self.server.how, int(self.headers.get("Content-Length", 0))
        self.close_connection = True
        if how == "silent":
            self.server.released.wait()
        elif how == "cut":
            self.rfile.read(num_bytes // 2)
        else:
            self.rfile.read(num_bytes)
            code = ERRORS[int(how)]
            self._answer(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", int(how))


@contextmanager
def bad_server(gigabits_per_s: float = 0) -> Iterator[BadServer]:
    """One that serves until it is left."""
    with BadServer(gigabits_per_s) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            serving.join()
