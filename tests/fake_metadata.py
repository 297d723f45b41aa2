"""The metadata service of a machine at GCP or Azure and the part of the cloud's API that ends machines.

Written from the clouds' documents, sharing nothing with `trainer/deadman.py`. A program of its own: it has to
listen at the services' real address, inside a network namespace. What the API is asked goes to a file, one
JSON line each. What it does not know, and what lacks a header or a version, it refuses as they do.

    python fake_metadata.py gcp|azure LOG [VERB that is refused]
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "of-this-machine-alone"
VM = ("/subscriptions/0a/resourceGroups/train-3-ab12-eastus/providers/Microsoft.Compute/virtualMachines/"
      "train-3-ab12-9f-0")
CLOUD, LOG, *REFUSED = sys.argv[1:]


def of_gcp(path: str, query: dict[str, list[str]]) -> str | None:
    """An answer of http://metadata.google.internal; None: it has no such entry."""
    return {"/computeMetadata/v1/instance/name": "train-3-ab12-head",
            "/computeMetadata/v1/instance/zone": "projects/4711/zones/us-central1-a",
            "/computeMetadata/v1/instance/service-accounts/default/token":
                json.dumps({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"})}.get(path)


def of_azure(path: str, query: dict[str, list[str]]) -> str | None:
    """An answer of Azure's instance metadata service; every call names the version that it speaks."""
    if "api-version" not in query:
        return None
    if path == "/metadata/instance/compute":
        return json.dumps({"resourceId": VM, "name": VM.rsplit("/", 1)[-1], "priority": "Spot"})
    if path == "/metadata/identity/oauth2/token" and query["resource"] == ["https://management.azure.com/"]:
        return json.dumps({"access_token": TOKEN, "token_type": "Bearer", "expires_in": "86399"})
    return None


class Service(BaseHTTPRequestHandler):
    """Metadata by GET, the API by the rest."""

    def do_GET(self) -> None:
        header, answer = {"gcp": (("Metadata-Flavor", "Google"), of_gcp),
                          "azure": (("Metadata", "true"), of_azure)}[CLOUD]
        split = urlsplit(self.path)
        if self.headers[header[0]] != header[1] or "X-Forwarded-For" in self.headers:
            self.answer(403)
        elif (text := answer(split.path, parse_qs(split.query))) is None:
            self.answer(404)
        else:
            self.answer(200, text)

    def end_machine(self) -> None:
        is_refused = self.command in REFUSED
        is_known = self.headers["Authorization"] == f"Bearer {TOKEN}"
        with open(LOG, "a") as log:
            print(json.dumps([self.command, self.path, "refused" if is_refused else "granted"]), file=log)
        self.answer(403 if is_refused else 202 if is_known else 401)

    do_DELETE = do_POST = end_machine

    def answer(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("", 80), Service).serve_forever()
