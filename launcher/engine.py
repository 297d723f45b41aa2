"""What an engine is, and what is missing on this machine before one could rent on a cloud."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from launcher.errors import EngineError
from launcher.settings import api_server
from trainer.contract import Document, Outcome


class EnginePhase(StrEnum):
    """What an engine knows of a run by itself, without looking into the store."""

    NONE = "none"  # never submitted here
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"
    UNKNOWN = "unknown"  # who supervised it is gone, does not answer, or says what nobody here understands


ALIVE = (EnginePhase.RUNNING, EnginePhase.STOPPING)
OVER = (EnginePhase.NONE, EnginePhase.ENDED)  # of `unknown` neither is known


@dataclass(frozen=True)
class EngineState:
    """One look at a run through its engine.

    Attributes:
        document: Document of the task that runs, or ran last.
        attempt: Number of the newest attempt.
        pid: Process that supervises the run on this machine.
        detail: One line for people: what it does now, or how it ended.
        word: The engine's own name for the state, where it has one.
        outcome: How the run ended, where ldlm's part in SkyPilot's server has ended it.
        ended_at: When it ended, where the engine knows it.
    """

    phase: EnginePhase
    document: Document | None = None
    attempt: int | None = None
    pid: int | None = None
    detail: str = ""
    word: str = ""
    outcome: Outcome | None = None
    ended_at: datetime | None = None


class Engine(Protocol):
    """Carries out rendered tasks. A run is known by the LDLM_RUN_ID in its task."""

    def submit(self, task: str) -> None:
        """Start a task (SkyPilot YAML text) and return once it is in safe hands."""

    def state(self, run_id: str) -> EngineState:
        """What the engine knows of a run now."""

    def logs(self, run_id: str, follow: bool = False) -> Iterator[str]:
        """Lines that the run's attempts printed; with `follow` also those to come."""

    def cancel(self, run_id: str) -> None:
        """Ask a run to commit a checkpoint and stop. Returns at once; `state` tells the rest."""

    def resources(self, run_id: str) -> list[str]:
        """What a run holds now, a few words each: processes here, machines elsewhere. Empty: nothing."""

    def tear_down(self, run_id: str) -> None:
        """End a run at once, without a last checkpoint; `resources` tells when nothing of it is left."""


@dataclass(frozen=True)
class _Cloud:
    """What SkyPilot needs to rent at one provider."""

    title: str
    modules: tuple[str, ...]  # any one of these is enough
    variable: str | None
    files: tuple[str, ...]
    login: str


_CLOUDS = {
    "vast": _Cloud("Vast.ai", ("vastai_sdk",), None, ("~/.config/vastai/vast_api_key",),
                   "write the API key of your Vast.ai account to ~/.config/vastai/vast_api_key"),
    "azure": _Cloud("Azure", ("azure.mgmt.compute",), None,
                    ("~/.azure/azureProfile.json", "~/.azure/msal_token_cache.json"), "az login"),
    "slurm": _Cloud("Slurm", ("hostlist",), None, ("~/.slurm/config",),
                    "write its login node to ~/.slurm/config, as ~/.ssh/config is written"),
    "gcp": _Cloud("Google Cloud", ("googleapiclient",), "GOOGLE_APPLICATION_CREDENTIALS",
                  ("~/.config/gcloud/application_default_credentials.json",),
                  "gcloud auth application-default login"),
}


def missing(infra: str) -> Iterator[EngineError]:
    """Everything that is missing before one could rent: package, credentials, and how to get them."""
    name = infra.partition("/")[0]
    if name in _CLOUDS:
        yield from missing_access(name)
    elif name != "local":
        yield no_engine(infra)


def no_engine(infra: str) -> EngineError:
    """Why nothing can be rented at a place that SkyPilot may know, and ldlm does not."""
    return EngineError(f"there is no engine for {infra!r}", place="--infra",
                       fix=f"use --infra local, or one of {', '.join(sorted(_CLOUDS))}")


def is_known(infra: str) -> bool:
    """True for what could carry a run out: `local`, a cloud, a cluster of one's own."""
    return infra.partition("/")[0] in ("local", *_CLOUDS)


def missing_access(name: str) -> Iterator[EngineError]:
    """Of SkyPilot here, and of a cloud's SDK and credentials unless the API server is elsewhere.

    Args:
        name: `vast`, `azure`, `gcp` or `slurm`.
    """
    cloud, is_remote = _CLOUDS[name], bool(api_server())
    yield from _missing_packages(name, cloud, () if is_remote else cloud.modules)
    if not is_remote and not has_credentials(name):
        places = " or ".join([*cloud.files, *([f"${cloud.variable}"] if cloud.variable else [])])
        yield EngineError(f"no {cloud.title} credentials: nothing at {places}", place=f"--infra {name}",
                          fix=cloud.login)


def has_credentials(name: str) -> bool:
    """True if something lies where a cloud's tools keep their keys; whether they are right is not asked."""
    cloud = _CLOUDS[name]
    return bool(cloud.variable and os.environ.get(cloud.variable)) or any(
        Path(file).expanduser().is_file() for file in cloud.files)


def _missing_packages(name: str, cloud: _Cloud, modules: tuple[str, ...]) -> Iterator[EngineError]:
    lacks = [] if has_skypilot() else ["SkyPilot"]
    if modules and not any(_has_module(module) for module in modules):
        lacks.append(f"the {cloud.title} SDK (Python module {' or '.join(modules)})")
    if lacks:
        fix = "make .venv" if name == "vast" else f".venv/bin/pip install -e '.[{name}]'"
        yield EngineError(f"{' and '.join(lacks)} not installed", place=f"--infra {name}", fix=fix)


def has_skypilot() -> bool:
    """True if `sky.Task` could be imported, without the seconds that importing it takes."""
    spec = importlib.util.find_spec("sky")
    # A checkout has a folder named sky/, which Python finds as an empty namespace: no origin.
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / "task.py").is_file()


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is absent
        return False
