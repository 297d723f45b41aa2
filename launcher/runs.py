"""Runs by their ids: where they are found, what carries them out."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import yaml

from launcher.engine import ALIVE, Engine, EnginePhase
from launcher.engine_folder import engine_home
from launcher.engines import engine_of, view
from launcher.errors import LdlmError, RunRecordError, StoreError, UsageError
from launcher.home import ldlm_home
from launcher.local_engine import LocalEngine
from launcher.run_record import RunRecord, RunView, find_folder, read_record
from launcher.settings import usual_store_url
from launcher.task_documents import RUN_ID, RUN_ID_FIX
from trainer.contract import Env
from trainer.run_folder import RunFolder
from trainer.store import Store, local_store_url, open_store, store_url

_AT_ONCE = 32  # runs that are read beside each other: they wait, mostly


def find_run(run_id: str, store_option: str | None) -> RunFolder:
    """Find a run: in the store that is named, where this machine's engine ran it, or in the default one.

    Raises:
        RunRecordError: No such run there.
    """
    check_run_id(run_id, "RUN")
    url = store_option or usual_store(run_id)
    return find_folder(open_store(store_url(url)), run_id)


def open_run(run_id: str, store_option: str | None) -> tuple[Store, RunRecord]:
    """Find a run as `find_run` does, and read it.

    Raises:
        RunRecordError: No such run there, or its record is damaged.
    """
    folder = find_run(run_id, store_option)
    return folder.store, read_record(folder)


def view_run(run_id: str, store_option: str | None) -> RunView:
    """Find a run as `find_run` does, and judge where it is. Raises RunRecordError."""
    store, record = open_run(run_id, store_option)
    return view(record, store)


def find_engine(run_id: str, store_option: str | None) -> Engine:
    """The engine that a run was last given to; this machine's for one that lives here, or has no record.

    Raises:
        RunRecordError: No engine and no record knows it.
        StoreError: The record cannot be read.
    """
    check_run_id(run_id, "RUN")
    local = LocalEngine()
    here = local.state(run_id).phase
    if here in ALIVE:  # whatever becomes of the store, it can be watched and stopped
        return local
    try:
        store, record = open_run(run_id, store_option)
    except (RunRecordError, StoreError):
        if here is EnginePhase.NONE:
            raise
        return local
    return engine_of(record, store)


def read_all_runs(store: Store, is_wanted: Callable[[RunFolder], bool] = lambda folder: True,
                  say: Callable[[int, int], None] = lambda done, total: None,
                  ) -> Iterator[RunRecord | LdlmError]:
    """Every run of a store, in order of names, or what is wrong with one that cannot be read.

    A run is some twenty small objects, and a store far away answers in a tenth of a second: several are read
    at once.

    Args:
        store: Of the runs.
        is_wanted: Others are left out; asked beside others.
        say: Told how many of how many folders were looked at.
    """
    def read(name: str) -> RunRecord | LdlmError | None:
        folder = RunFolder(store, name)
        try:
            return read_record(folder) if is_wanted(folder) and folder.exists() else None
        except LdlmError as error:
            return error

    names = store.folders()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for done, found in enumerate(pool.map(read, names), 1):
            say(done, len(names))
            if found is not None:
                yield found


def view_all_runs(store: Store, is_wanted: Callable[[RunFolder], bool] = lambda folder: True,
                  say: Callable[[int, int], None] = lambda done, total: None,
                  ) -> tuple[list[RunView], list[LdlmError]]:
    """Every run of a store, judged, and what is wrong with those that cannot be read. See `read_all_runs`."""
    views, problems = [], []
    for found in read_all_runs(store, is_wanted, say):
        try:
            if isinstance(found, LdlmError):
                raise found
            views.append(view(found, store))
        except LdlmError as error:
            problems.append(error)
    return views, problems


def open_default_store(store_option: str | None) -> Store:
    """The store to list runs of."""
    return open_store(store_url(store_option or usual_store_url() or default_store_url()))


def check_run_id(run_id: str, place: str) -> None:
    """Refuse what cannot be the name of a folder in every store. Raises UsageError."""
    if not RUN_ID.fullmatch(run_id):
        raise UsageError(f"{run_id!r} is not a run id", place=place, fix=RUN_ID_FIX)


def default_store_url() -> str:
    """`$LDLM_HOME/store`, by default in the home folder: for runs on this machine."""
    return local_store_url(ldlm_home() / "store")


def usual_store(run_id: str) -> str:
    """Where a run is looked for when no store is named."""
    return os.environ.get(Env.STORE) or store_of(run_id) or usual_store_url() or default_store_url()


def store_of(run_id: str) -> str | None:
    """The store of a run that this machine's engine has run, from the task it was given."""
    task = engine_home() / run_id / "task.yaml"
    if not RUN_ID.fullmatch(run_id) or not task.is_file():
        return None
    for document in yaml.safe_load_all(task.read_text(encoding="utf-8")):
        url = (document.get("envs") or {}).get(Env.STORE)
        if url:
            return str(url)
    return None
