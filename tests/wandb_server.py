"""A stand-in for W&B's server: enough of GraphQL and of its file stream for the real SDK to log to it.

Written from what SDK 0.31.0 asks for, not from W&B's own code: what it shows is what the SDK sends, and
that a resumed run goes on behind the history that the server names.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_http import serving

ENTITY = "someone"
HISTORY = "wandb-history.jsonl"


@dataclass
class Run:
    """What the server holds of one run.

    Attributes:
        history: Lines of the history, in order.
        files: Names of uploaded files.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    files: list[str] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)


class WandbServer:
    """All runs by `project/run`.

    Attributes:
        down: Answer nothing but errors.
        keys: The API keys that were presented.
        seen: Names of the GraphQL operations, in order.
        views: Workspaces that were saved.
        alerts: That were to be sent to people.
        refused: Operations that are answered with an error, each once.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, Run] = {}
        self.keys: set[str] = set()
        self.seen: list[str] = []
        self.views: list[dict[str, Any]] = []
        self.alerts: list[dict[str, Any]] = []
        self.refused: set[str] = set()
        self.down = False
        self.lock = threading.Lock()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of a GraphQL answer."""
        name, project = variables.get("name") or variables.get("run"), variables.get("project")
        if operation == "RunResumeStatus":
            run = self.runs.get(f"{project}/{name}")
            return {"model": {"id": "m", "name": project, "entity": {"id": "e", "name": ENTITY},
                              "bucket": self._bucket(str(name), run) if run else None}}
        if operation == "UpsertBucket":
            return self._upsert(str(name), str(project), variables)
        if operation == "CreateRunFiles":
            run = self.runs[f"{project}/{name}"]
            run.files += variables["files"]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": [
                {"name": file, "uploadUrl": f"{self.url}/upload/{file}"} for file in variables["files"]]}}
        if operation == "UpsertView2":
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}
        if operation == "NotifyScriptableRunAlert":
            self.alerts.append(variables)
            return {"notifyScriptableRunAlert": {"success": True}}
        if operation == "GetDefaultEntity":
            return {"viewer": {"id": "v", "entity": ENTITY, "defaultEntity": {"id": "e", "name": ENTITY}}}
        if operation == "ArtifactType":
            return {"project": {"artifact": {"artifactType": {"name": "run_table"}}}}
        if operation == "CreateArtifact":  # there already, so the SDK uploads no files of it
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {
                "latestArtifact": {"id": "a"}}}}}
        return {"viewer": {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}",
                           "teams": {"edges": []}},
                "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _upsert(self, name: str, project: str, variables: dict[str, Any]) -> dict[str, Any]:
        is_new = f"{project}/{name}" not in self.runs
        run = self.runs.setdefault(f"{project}/{name}", Run())
        run.config |= json.loads(variables.get("config") or "{}")
        run.commit = variables.get("commit") or run.commit
        where = {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}}
        return {"upsertBucket": {"bucket": self._bucket(name, run) | {"project": where}, "inserted": is_new}}

    def _bucket(self, name: str, run: Run) -> dict[str, Any]:
        return {"id": f"id-{name}", "name": name, "displayName": name, "description": None, "sweepName": None,
                "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary),
                "historyLineCount": len(run.history), "eventsLineCount": 0, "logLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                # Without a `t` the SDK takes the run for one that was never started.
                "wandbConfig": json.dumps({"t": {}}), "eventsTail": "[]", "tags": [], "jobType": None,
                "notes": None, "group": None, "files": {"edges": []}, "state": "running"}

    def stream(self, project: str, name: str, body: dict[str, Any]) -> None:
        """Take in one piece of the file stream; lines stand where their offset says."""
        run = self.runs[f"{project}/{name}"]
        for file, piece in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in piece["content"] if file != "output.log"]
            if file == HISTORY:
                run.history[piece["offset"]:piece["offset"] + len(lines)] = lines
            elif file == "wandb-summary.json":
                run.summary = lines[-1]
        if body.get("complete"):
            run.exit_codes.append(body.get("exitcode", 0))


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        wandb: WandbServer = self.server.wandb
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if wandb.down:
            self._reply({"error": "down"}, 503)
            return
        if not self.path.endswith(("/graphql", "/file_stream")):  # the SDK's own telemetry
            self._reply({})
            return
        body = json.loads(gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw)
        with wandb.lock:
            wandb.keys.add(self.headers.get("Authorization", ""))
            if self.path.endswith("/file_stream"):
                _, _, _, project, name, _ = self.path.split("/")
                wandb.stream(project, name, body)
                self._reply({"limits": {}})
                return
            operation = re.search(r"(?:query|mutation)\s+(\w+)", body["query"])
            wandb.seen.append(operation.group(1) if operation else "?")
            if wandb.seen[-1] in wandb.refused:
                wandb.refused.remove(wandb.seen[-1])
                self._reply({"errors": [{"message": "refused"}]}, 400)
                return
            self._reply({"data": wandb.answer(wandb.seen[-1], body.get("variables") or {})})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server on a free port of this machine, for as long as the block runs."""
    with serving(_Handler) as http:
        http.wandb = WandbServer(f"http://127.0.0.1:{http.server_port}")  # type: ignore[attr-defined]
        yield http.wandb  # type: ignore[attr-defined]
