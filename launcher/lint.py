"""What is known to go wrong with a task on its cloud. Pure; raising is the caller's.

Each rule is a behaviour of SkyPilot 0.14.1 or of a cloud that fails silently or costs money.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.render import Task, leftover_nulls
from trainer.contract import Env, ExitCode

_SECRET_NAME = re.compile(r"(SECRET|PASSWORD|TOKEN(?!IZER)|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20}|-----BEGIN [A-Z ]*PRIVATE KEY|"
    r"\b[0-9a-f]{40}\b|"  # a W&B key
    r"://[^/\s]+:[^/\s]+@|[?&](secret|password|sig|access_key|secret_access_key)[^=&]*=")
_RENTED = {"vast", "azure", "gcp"}
_MOUNTS = ("MOUNT", "MOUNT_CACHED")


@dataclass(frozen=True)
class LintProblem:
    """One trap in a task.

    Attributes:
        place: Document and key: `train: resources.use_spot`.
    """

    place: str
    problem: str
    fix: str


def looks_secret(text: str) -> bool:
    """True for what holds a key or a password, as far as its form shows."""
    return _SECRET_VALUE.search(text) is not None


def lint(task: Task) -> list[LintProblem]:
    """Every known trap in a task, in the order of its documents; an empty list is good news."""
    documents = task.documents()
    found = list(_nulls("header", documents[0])) if documents else []
    for document in documents[1:]:
        name = str(document.get("name", "?"))
        for rule in (_nulls, _infra, _vast, _recovery, _envs, _store):
            found += rule(name, document)
    return found


def _nulls(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    for path in leftover_nulls(document):
        yield LintProblem(f"{name}: {path}", "is null, which SkyPilot may load without a word",
                          "fill the hole in the template or take the key out")


def _infra(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    for resources in _resources(document):
        if resources.get("infra") == "local":
            yield LintProblem(f"{name}: resources.infra", "SkyPilot has no infra called local",
                              "leave infra out: the local engine needs none")


def _vast(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    on_vast = [found for found in _resources(document) if str(found.get("infra")).partition("/")[0] == "vast"]
    if not on_vast:
        return
    if any(resources.get("use_spot") for resources in on_vast):
        yield LintProblem(f"{name}: resources.use_spot", "use_spot on vast silently rents on-demand",
                          "set bid_usd_per_hour on the candidate instead")
    if (document.get("num_nodes") or 1) > 1:
        yield LintProblem(f"{name}: num_nodes", "SkyPilot has no clusters on vast",
                          "set num_nodes to 1, or choose another cloud")
    for path, mount in (document.get("file_mounts") or {}).items():
        mode = mount.get("mode", "MOUNT") if isinstance(mount, dict) else "COPY"
        if str(mode).upper() in _MOUNTS:
            yield LintProblem(f"{name}: file_mounts.{path}", "vast cannot mount buckets (no FUSE)",
                              "use mode COPY; the trainer uploads checkpoints itself")


def _recovery(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    for resources in _resources(document):
        recovery = resources.get("job_recovery")
        codes = recovery.get("recover_on_exit_codes", []) if isinstance(recovery, dict) else []
        for code in codes if isinstance(codes, list) else [codes]:
            if code != ExitCode.RECOVER:
                yield LintProblem(f"{name}: resources.job_recovery.recover_on_exit_codes",
                                  f"exit code {code} would restart the task without limit",
                                  f"list {int(ExitCode.RECOVER)} alone")


def _envs(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    for key, value in (document.get("envs") or {}).items():
        place = f"{name}: envs.{key}"
        if not isinstance(value, str) and value is not None:
            yield LintProblem(place, f"is {value!r}, and only text travels unchanged", "put it in quotes")
        elif value and (_SECRET_NAME.search(key) or looks_secret(value)):
            yield LintProblem(place, "looks like a secret, and envs are stored and shown in the clear",
                              "keep keys in the environment or the cloud's own login, never in a task")
        elif key == Env.PRICE and value == "":
            yield LintProblem(place, "the price is not known, so the run cannot stop itself at its cap",
                              "on vast set bid_usd_per_hour, on slurm price_usd_per_hour (0 where nobody "
                              "pays); live prices of other clouds are not asked for")


def _store(name: str, document: dict[str, Any]) -> Iterator[LintProblem]:
    """A file store on a rented machine dies with it; on Slurm and Kubernetes it may be a shared disk."""
    store = str((document.get("envs") or {}).get(Env.STORE))
    clouds = {str(resources.get("infra")).partition("/")[0] for resources in _resources(document)}
    if store.startswith("file:") and clouds & _RENTED:
        yield LintProblem(f"{name}: envs.{Env.STORE}", "a file store on a rented machine is lost with it",
                          "set store to object storage: s3://, gs:// or az://")


def _resources(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The resources of a document, and every alternative in them."""
    resources = document.get("resources") or {}
    yield resources
    for key in ("any_of", "ordered"):
        yield from resources.get(key) or []
