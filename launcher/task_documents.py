"""A rendered task, taken apart into what the local engine needs of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import EngineError
from trainer.contract import Document, Env

# It becomes a folder here and in every store, the name of a SkyPilot job, and a word on command lines.
RUN_ID = re.compile(r"[a-z][a-z0-9-]{0,59}")
RUN_ID_FIX = "use up to 60 lower-case letters, digits and dashes, a letter first"


@dataclass(frozen=True)
class TaskDocument:
    """One document: one program on one kind of machine.

    Attributes:
        setup: Shell text that installs; may be empty.
        run: Shell text whose exit code is the attempt's.
        max_restarts_on_errors: Restarts after exit codes that have no name.
        recover_on_exit_codes: Codes after which it is started again without limit.
    """

    document: Document
    name: str
    workdir: Path
    setup: str
    run: str
    envs: Mapping[str, str]
    max_restarts_on_errors: int
    recover_on_exit_codes: tuple[int, ...]

    @property
    def run_id(self) -> str:
        """The run that this belongs to."""
        return self.envs[Env.RUN_ID]

    @property
    def price_usd_per_hour(self) -> Decimal:
        """What an hour of this document's machine costs."""
        return Decimal(self.envs.get(Env.PRICE) or "0")

    @property
    def num_gpus(self) -> int:
        """GPUs of the machine, by the count in LDLM_GPU (`RTX5090:1`)."""
        gpu = self.envs.get(Env.GPU, "")
        return int(gpu.rpartition(":")[2]) if gpu else 0


def parse_task(text: str) -> list[TaskDocument]:
    """Take a rendered task apart: a header, then `train`, `bench`, or both in this order.

    Raises:
        EngineError: It is no task that this engine can run; says which document and key.
    """
    try:
        loaded = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise EngineError(f"is not YAML: {str(error).splitlines()[0]}", place="task") from error
    bodies = loaded[1:] if loaded and _is_header(loaded[0]) else loaded
    if not 1 <= len(bodies) <= len(Document):
        raise EngineError(f"has {len(bodies)} documents; the local engine runs one or two", place="task")
    documents = [_parse(body) for body in bodies]
    if [found.document for found in documents] not in ([*Document], [Document.TRAIN], [Document.BENCH]):
        raise EngineError(f"its documents are {', '.join(found.name for found in documents)}, not "
                          f"{', then '.join(Document)}", place="task")
    if len({(document.run_id, document.envs[Env.STORE]) for document in documents}) > 1:
        raise EngineError(f"its documents differ in {Env.RUN_ID} or {Env.STORE}", place="task")
    return documents


def _is_header(body: Any) -> bool:
    return isinstance(body, dict) and set(body) <= {"name", "execution"}


def _parse(body: Any) -> TaskDocument:
    name = body.get("name") if isinstance(body, dict) else None
    if name not in list(Document):
        raise EngineError(f"a document is called {name!r}; there are {', '.join(Document)}", place="task")
    document, place = Document(name), f"task, document {name}"
    if not isinstance(body, dict) or not isinstance(body.get("run"), str):
        raise EngineError("has no `run` text", place=place)
    workdir = Path(str(body.get("workdir")))
    if not workdir.is_absolute() or not workdir.is_dir():
        raise EngineError(f"workdir {str(workdir)!r} is not the absolute path of a folder here", place=place)
    recovery = (body.get("resources") or {}).get("job_recovery") or {}
    codes = recovery.get("recover_on_exit_codes") or ()
    return TaskDocument(
        document=document, name=str(document), workdir=workdir,
        setup=body.get("setup") or "", run=body["run"], envs=_parse_envs(body.get("envs"), place),
        max_restarts_on_errors=int(recovery.get("max_restarts_on_errors") or 0),
        recover_on_exit_codes=(codes,) if isinstance(codes, int) else tuple(codes))


def _parse_envs(envs: Any, place: str) -> dict[str, str]:
    if not isinstance(envs, dict):
        raise EngineError("has no `envs`", place=place)
    for name, value in envs.items():
        if not isinstance(value, str):
            raise EngineError(f"envs.{name} is {value!r}, not text", place=place,
                              fix="quote it in the template")
    for name in (Env.RUN_ID, Env.STORE):
        if not envs.get(name):
            raise EngineError(f"envs.{name} is missing", place=place)
    if not RUN_ID.fullmatch(envs[Env.RUN_ID]):
        raise EngineError(f"{Env.RUN_ID} {envs[Env.RUN_ID]!r} cannot name a folder", place=place,
                          fix=RUN_ID_FIX)
    _check_numbers(envs, place)
    return dict(envs)


def _check_numbers(envs: Mapping[str, str], place: str) -> None:
    try:
        price = Decimal(envs.get(Env.PRICE) or "0")
    except InvalidOperation:
        price = Decimal("NaN")
    if not price.is_finite() or price < 0:
        raise EngineError(f"{Env.PRICE} {envs[Env.PRICE]!r} is not an amount of dollars", place=place)
    gpu = envs.get(Env.GPU, "")
    if gpu and not gpu.rpartition(":")[2].isdigit():
        raise EngineError(f"{Env.GPU} {gpu!r} is not NAME:COUNT", place=place)
