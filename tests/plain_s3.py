"""A small S3 server for benchmarks, where moto would be what is measured: it copies objects for every range.

    python -m tests.plain_s3 [--folder FOLDER] GBIT PORT

GBIT: what its line moves in a second each way; 0 for no limit.
FOLDER: of buckets; their files are there from the beginning, and are not written to.

Objects lie in memory, nobody is refused, and a request costs little but the bytes. It knows what boto3's and
obstore's transfers ask for, one bucket's listing and `If-None-Match: *`; tests use moto.
"""

import argparse
import hashlib
import itertools
import mmap
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

_Parts = list[bytearray | mmap.mmap]
_objects: dict[str, _Parts] = {}
_uploads: dict[str, dict[int, bytearray]] = {}
_numbers = itertools.count()
_AT_ONCE = 2**20  # bytes


class Line:
    """One way of a network's line, shared by all connections."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at_s, self._asking = bytes_per_s, 0.0, threading.Lock()

    def carry(self, num_bytes: int) -> None:
        """Return when they are through."""
        if not self._bytes_per_s:
            return
        with self._asking:
            self._free_at_s = max(self._free_at_s, time.monotonic()) + num_bytes / self._bytes_per_s
            until = self._free_at_s
        time.sleep(max(0.0, until - time.monotonic()))



class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:  # noqa: N802
        """An object, or a part of one; a bucket is there without asking."""
        key, query, data = self._key(), self._query(), self._body()
        if self.headers.get("If-None-Match") == "*" and key in _objects:
            self._answer("<Error><Code>PreconditionFailed</Code><Message>there</Message></Error>", 412)
            return
        if "uploadId" in query:
            _uploads[query["uploadId"]][int(query["partNumber"])] = data
        elif "/" in key:
            _objects[key] = [data]
        self._answer(etag=_etag(data))

    def do_POST(self) -> None:  # noqa: N802
        """Begin or end an upload in parts; delete several objects."""
        key, query, data = self._key(), self._query(), self._body()
        if "delete" in query:
            gone = re.findall(r"<Key>(.*?)</Key>", data.decode())
            for name in gone:
                _objects.pop(f"{key}/{unescape(name)}", None)
            told = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in gone)
            self._answer(f"<DeleteResult>{told}</DeleteResult>")
        elif "uploads" in query:
            upload = str(next(_numbers))
            _uploads[upload] = {}
            self._answer(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                         "</InitiateMultipartUploadResult>")
        else:
            parts = _uploads.pop(query["uploadId"])
            _objects[key] = [parts[number] for number in sorted(parts)]
            self._answer(f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>\"{key}\"</ETag>"
                         "</CompleteMultipartUploadResult>")

    def do_GET(self) -> None:  # noqa: N802
        """An object, a range of one, or a listing."""
        query = self._query()
        if "list-type" in query:
            self._answer(_listing(self._key().split("/")[0], query.get("prefix", ""), query.get("delimiter")))
        elif parts := _objects.get(self._key()):
            size = sum(map(len, parts))
            first, last = _asked_range(self.headers.get("Range"), size)
            self._head(206 if "Range" in self.headers else 200, last + 1 - first,
                       {"Content-Range": f"bytes {first}-{last}/{size}"} if "Range" in self.headers else {})
            self.wfile.flush()
            for piece in _pieces(parts, first, last + 1):
                for at in range(0, len(piece), _AT_ONCE):
                    self.server.down.carry(len(piece[at:at + _AT_ONCE]))
                    self.connection.sendall(piece[at:at + _AT_ONCE])
        else:
            self._answer("<Error><Code>NoSuchKey</Code><Message>none</Message></Error>", 404)

    def do_HEAD(self) -> None:  # noqa: N802
        """The size of an object."""
        parts = _objects.get(self._key())
        self._head(200 if parts else 404, sum(map(len, parts or [])))
        self.wfile.flush()

    def do_DELETE(self) -> None:  # noqa: N802
        """One object."""
        _objects.pop(self._key(), None)
        self._answer(status=204)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/")

    def _query(self) -> dict[str, str]:
        return {name: values[0]
                for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}

    def _body(self) -> bytearray:
        data = bytearray(int(self.headers.get("Content-Length", 0)))
        for at in range(0, len(data), _AT_ONCE):
            part = memoryview(data)[at:at + _AT_ONCE]
            self.rfile.readinto(part)
            self.server.up.carry(len(part))
        return data

    def _head(self, status: int, num_bytes: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"Content-Length": str(num_bytes), "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
                 "ETag": f'"{num_bytes}"'}
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, xml: str = "", status: int = 200, etag: str = "") -> None:
        self._head(status, len(xml.encode()), {"ETag": etag} if etag else {})
        self.wfile.write(xml.encode())
        self.wfile.flush()


def _etag(data: bytearray) -> str:
    return f'"{hashlib.md5(data[:64], usedforsecurity=False).hexdigest()}"'


def _asked_range(header: str | None, size: int) -> tuple[int, int]:
    first, _, last = (header or "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last), size - 1) if last else size - 1


def _pieces(parts: _Parts, start: int, end: int) -> list[memoryview]:
    found, begin = [], 0
    for part in parts:
        view = memoryview(part)[max(0, start - begin):max(0, end - begin)]
        begin += len(part)
        if len(view):
            found.append(view)
    return found


def _listing(bucket: str, prefix: str, delimiter: str | None) -> str:
    keys = [key.removeprefix(f"{bucket}/") for key in sorted(_objects)
            if key.startswith(f"{bucket}/{prefix}")]
    folders = sorted({prefix + key.removeprefix(prefix).split("/")[0] + "/"
                      for key in keys if delimiter and "/" in key.removeprefix(prefix)})
    shown = [key for key in keys if not delimiter or "/" not in key.removeprefix(prefix)]
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{sum(map(len, _objects[f'{bucket}/{key}']))}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"0\"</ETag></Contents>" for key in shown)
    common = "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{common}</ListBucketResult>"


class Server(ThreadingHTTPServer):
    """All connections, over one line."""

    daemon_threads = True

    def __init__(self, gigabits_per_s: float, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.up, self.down = Line(gigabits_per_s * 1e9 / 8), Line(gigabits_per_s * 1e9 / 8)


def hold(folder: Path) -> None:
    """Serve the files of a folder of buckets, without reading them before anybody asks."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            _objects[str(path.relative_to(folder))] = [content]


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("gbit", type=float)
    parser.add_argument("port", type=int)
    asked = parser.parse_args()
    if asked.folder:
        hold(asked.folder)
    Server(asked.gbit, asked.port).serve_forever()


if __name__ == "__main__":
    main()
