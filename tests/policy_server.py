"""S3 and STS of an AWS that obeys policies: it judges every request by a policy, and moto stores what passes.

The judge is written from AWS's documents on how policies are evaluated and shares nothing with the launcher:
what no statement allows is denied; `*` and `?` match as there; conditions are met or the statement is void.
"""

import fnmatch
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local_http import serving
from s3_server import running_s3_server

# AWS's documented answer to GetFederationToken, shortened.
MADE = {"AccessKeyId": "ASIAMADEFORTHISRUN00", "SecretAccessKey": "made-secret", "SessionToken": "made-token"}
_ANSWER = """<GetFederationTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetFederationTokenResult><Credentials><SessionToken>{SessionToken}</SessionToken>
<SecretAccessKey>{SecretAccessKey}</SecretAccessKey><Expiration>2026-11-28T12:00:00Z</Expiration>
<AccessKeyId>{AccessKeyId}</AccessKeyId></Credentials></GetFederationTokenResult>
<ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></GetFederationTokenResponse>"""
_DELETED = '<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</DeleteResult>'
_NOT_DELETED = "<Error><Key>{}</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_NO_KEYS = (b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: u is not "
            b"authorized to perform: sts:GetFederationToken</Message></Error></ErrorResponse>")
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


def is_allowed(policy: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]) -> bool:
    """AWS's answer to one request under one policy."""
    return any(statement["Effect"] == "Allow"
               and any(_matches(pattern, action) for pattern in _list(statement["Action"]))
               and any(_matches(pattern, resource) for pattern in _list(statement["Resource"]))
               and all(key in context and any(_matches(pattern, context[key]) for pattern in _list(patterns))
                       for key, patterns in statement.get("Condition", {}).get("StringLike", {}).items())
               for statement in policy["Statement"])


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _matches(pattern: str, value: str) -> bool:
    """`${*}`, `${?}` and `${$}` are these characters themselves."""
    words = re.split(r"\$\{([*?$])\}", pattern.replace("[", "[[]"))
    literal = [f"[{word}]" if index % 2 else word for index, word in enumerate(words)]
    return fnmatch.fnmatchcase(value, "".join(literal))


def action_of(method: str, path: str, query: Mapping[str, list[str]]) -> tuple[str, str]:
    """What a request to S3 asks for, in the words of policies: the action, and on what."""
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    if not key:
        verb = "ListBucketMultipartUploads" if "uploads" in query else "ListBucket"
        return f"s3:{verb}", f"arn:aws:s3:::{bucket}"
    is_of_upload = "uploadId" in query
    verb = {"GET": "ListMultipartUploadParts" if is_of_upload else "GetObject", "HEAD": "GetObject",
            "PUT": "PutObject", "POST": "PutObject",
            "DELETE": "AbortMultipartUpload" if is_of_upload else "DeleteObject"}[method]
    return f"s3:{verb}", f"arn:aws:s3:::{bucket}/{key}"


class Aws:
    """What it was asked, and what it said no to.

    Attributes:
        endpoint: Of S3 and of STS.
        minted: What GetFederationToken was asked with.
        makes_keys: False: it refuses to.
        knows_keys: False: its buckets trust others only.
    """

    def __init__(self, s3: Any) -> None:
        self.s3, self.endpoint = s3, ""
        self.minted: list[dict[str, str]] = []
        self.makes_keys = self.knows_keys = True

    def url(self, bucket: str, prefix: str) -> str:
        """A store on this server."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def answer(self, method: str, target: str, headers: Mapping[str, str],
               body: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body for a request."""
        split = urlsplit(target)
        query = parse_qs(split.query, keep_blank_values=True)
        if b"Action=GetFederationToken" in body:
            self.minted.append({name: values[0] for name, values in parse_qs(body.decode()).items()})
            return (200, {}, _ANSWER.format(**MADE).encode()) if self.makes_keys else (403, {}, _NO_KEYS)
        rules = json.loads(self.minted[-1]["Policy"])
        if headers.get("x-amz-security-token") != MADE["SessionToken"] or not self.knows_keys:
            return 403, {}, _DENIED
        action, resource = action_of(method, split.path, query)
        if "delete" in query:  # of several objects: S3 says no to each by itself
            denied = [key for key in re.findall("<Key>(.*?)</Key>", body.decode())
                      if not is_allowed(rules, "s3:DeleteObject", f"{resource}/{key}", {})]
            if denied:
                return 200, {}, _DELETED.format("".join(_NOT_DELETED.format(key) for key in denied)).encode()
        elif not is_allowed(rules, action, resource, {}):
            return 403, {}, _DENIED
        plain = {"Content-Type": "application/octet-stream"}  # else urllib says that it is a form
        request = urllib.request.Request(self.s3.endpoint + target, body or None, plain | dict(headers),
                                         method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as found:
                return found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            is_secret = error.code == 404 and not is_allowed(  # S3 tells only those who may list
                rules, "s3:ListBucket", resource.partition("/")[0], {})
            return (403, {}, _DENIED) if is_secret else (error.code, dict(error.headers), error.read())


@contextmanager
def running_aws() -> Iterator[Aws]:
    """Such an AWS, on a free port, for as long as the block runs."""
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = aws.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if "content-length" not in {name.lower() for name in headers}:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

        def log_message(self, *words: Any) -> None:
            pass

    with running_s3_server() as s3:
        aws = Aws(s3)
        with serving(Handler) as server:
            aws.endpoint = f"http://127.0.0.1:{server.server_port}"
            yield aws
