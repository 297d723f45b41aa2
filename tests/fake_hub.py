"""A server that speaks the Hugging Face Hub's protocol, from folders on this disk.

HEAD and GET of `/OWNER/NAME/resolve/REVISION/FILE` with ETag (the SHA-256, as for files in LFS),
X-Repo-Commit, X-Linked-Size, X-Linked-ETag and ranges; `/api/models/OWNER/NAME[/revision/REVISION]`.
Uploads: a model is made, each file is asked about, large ones go by git LFS (basic transfer), and a commit
names them all. What was uploaded counts from its commit on, as on the Hub.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from local_http import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_UPLOADS = {"create": re.compile(r"/api/repos/create"), "yaml": re.compile(r"/api/validate-yaml"),
            "preupload": re.compile(r"/api/models/([^/]+/[^/]+)/preupload/main"),
            "batch": re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch"),
            "commit": re.compile(r"/api/models/([^/]+/[^/]+)/commit/main")}
_MODEL = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?")


@dataclass
class FakeHub:
    """What the server has and does; change it while it runs.

    Attributes:
        url: For HF_ENDPOINT.
        commit: Of all models now.
        models: Folder of each model. All have one commit, on the branch `main` with the tag `v1`.
        gated: Models that want a licence accepted.
        cut_after: By file name, bytes after which a connection breaks.
        num_cuts: How often connections break so, over all files.
        damaged: Files whose first byte arrives wrong, as often as they stand here.
        gets: Names of the files that were asked for by GET.
        ranges: Range headers of those that had one.
        tokens: That may write; others are unknown.
        read_only: Tokens that are known and may not.
        breaks: Of an upload: `preupload`, `batch`, `put` or `commit` is answered by an error 400.
        commits: Messages of those that were made.
    """

    url: str = ""
    commit: str = COMMIT
    models: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    num_cuts: int = 0
    damaged: list[str] = field(default_factory=list)
    gets: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    breaks: str = ""
    commits: list[str] = field(default_factory=list)
    root: Path | None = None  # where models are made
    large: dict[str, bytes] = field(default_factory=dict)  # by their SHA-256


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Start the server on a free port; end it after the block."""
    hub = FakeHub()
    with serving(type("Handler", (_Handler,), {"hub": hub})) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        path = unquote(self.path.partition("?")[0])
        kind, found = next((kind, found) for kind, form in _UPLOADS.items()
                           if (found := form.fullmatch(path)))
        if token in self.hub.read_only:
            self._refuse(403, "Forbidden", "this token may only read")
        elif token not in self.hub.tokens:
            self._refuse(401, "Unauthorized", "Invalid username or password.")
        elif kind == self.hub.breaks:
            self._refuse(400, "Broken", "something broke on the way")
        else:
            answer = getattr(self, f"_{kind}")(found.group(1) if found.groups() else "", body)
            self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.breaks == "put":
            self._refuse(400, "Broken", "something broke on the way")
            return
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self._send(200, {}, b"")

    def _create(self, _: str, body: bytes) -> dict[str, object]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        assert self.hub.root is not None
        self.hub.models.setdefault(name, self.hub.root / name).mkdir(parents=True, exist_ok=True)
        return {"url": f"{self.hub.url}/{name}", "name": name, "id": name}

    def _yaml(self, _: str, body: bytes) -> dict[str, object]:
        assert json.loads(body)["content"].startswith("---\n")
        return {"errors": [], "warnings": []}

    def _preupload(self, name: str, body: bytes) -> dict[str, object]:
        files = json.loads(body)["files"]
        return {"files": [{"path": file["path"], "shouldIgnore": False, "oid": None, "uploadMode": "lfs" if
                           file["path"].endswith(".safetensors") else "regular"} for file in files]}

    def _batch(self, name: str, body: bytes) -> dict[str, object]:
        objects = json.loads(body)["objects"]
        return {"transfer": "basic", "objects": [
            {**item, "actions": {"upload": {"href": f"{self.hub.url}/{item['oid']}"}}} for item in objects]}

    def _commit(self, name: str, body: bytes) -> dict[str, object]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
                continue
            large = line["key"] == "lfsFile"
            path = self.hub.models[name] / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.hub.large[value["oid"]] if large else base64.b64decode(value["content"]))
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

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
        elif revision not in (None, "main", "v1", self.hub.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif model:
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            self._send(200, {"Content-Type": "application/json"},
                       json.dumps({"id": name, "sha": self.hub.commit, "siblings": files}).encode())
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
                   "X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
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
