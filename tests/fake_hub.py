"""A server that speaks the Hugging Face Hub's protocol for downloads, from folders on this disk.

HEAD and GET of `/OWNER/NAME/resolve/REVISION/FILE` with ETag (the SHA-256, as for files in LFS),
X-Repo-Commit, X-Linked-Size, X-Linked-ETag and ranges; `/api/models/OWNER/NAME[/revision/REVISION]`.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")


@dataclass
class FakeHub:
    """What the server has and does; change it while it runs.

    Attributes:
        url: For HF_ENDPOINT.
        models: Folder of each model. All have one commit, on the branch `main` with the tag `v1`.
        gated: Models that want a licence accepted.
        cut_after: By file name, bytes after which a connection breaks.
        num_cuts: How often connections break so, over all files.
        damaged: Files whose first byte arrives wrong, as often as they stand here.
        gets: Names of the files that were asked for by GET.
        ranges: Range headers of those that had one.
    """

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    num_cuts: int = 0
    damaged: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Start the server on a free port; end it after the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        model, file = _MODEL.fullmatch(path), _FILE.fullmatch(path)
        found = model or file
        name, revision = found.group(1, 2) if found else ("", None)
        folder = self.hub.models.get(name)
        if folder is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
        elif name in self.hub.gated:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif revision not in (None, "main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif model:
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self._send(200, {"Content-Type": "application/json"},
                       json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
        elif file and (folder / file[3]).is_file():
            self._send_file(folder / file[3], with_body=with_body)
        else:
            self._refuse(404, "EntryNotFound", "Entry not found")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message}, b"")

    def _send_file(self, path: Path, *, with_body: bool) -> None:
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content)),
                   "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if not with_body:
            self._send(200, {**headers, "Content-Length": str(len(content))}, b"")
            return
        self.hub.gets.append(path.name)
        if path.name in self.hub.damaged:
            self.hub.damaged.remove(path.name)
            content = bytes([content[0] ^ 1]) + content[1:]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked:
            self.hub.ranges.append(asked[0])
            headers["Content-Range"] = f"bytes {asked[1]}-{len(content) - 1}/{len(content)}"
        body = content[int(asked[1]) if asked else 0:]
        self._send(206 if asked else 200, headers, body, self._cut(path.name))

    def _cut(self, name: str) -> int | None:
        if name not in self.hub.cut_after or not self.hub.num_cuts:
            return None
        self.hub.num_cuts -= 1
        return self.hub.cut_after[name]

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
