"""What the doctor looks at that has nothing to do with renting: disk, store, clock, W&B, webhook."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from launcher.console import data_size
from launcher.errors import StoreError
from launcher.findings import Finding, Verdict
from launcher.home import ldlm_home
from launcher.webhook_setting import webhook_envs
from trainer.contract import Env
from trainer.store import Store, check_refuses, may_exist, open_store

_LEAST_FREE = 4 * 2**30  # both environments weigh 2 GB, a small run's checkpoints some hundred MB (guess)
_CLOCK_S = 60  # as nodes are judged: cents of a bill, and far from the 15 minutes at which S3 refuses


def look_at_disk() -> Iterator[Finding]:
    """Whether this machine has room for runs, environments and logs."""
    home = ldlm_home().absolute()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    detail = f"{data_size(free)} free at {home}"
    if free < _LEAST_FREE:
        yield Finding("disk", Verdict.PROBLEM, detail, "free some, or set LDLM_HOME to a folder elsewhere")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding("disk", Verdict.PROBLEM, f"{nearest} cannot be written",
                      "make it writable, or set LDLM_HOME to a folder elsewhere")
    else:
        yield Finding("disk", Verdict.OK, detail)


def look_at_store(url: str | None, *, is_rented: bool) -> Iterator[Finding]:
    """Write, read, list and delete a small object, and compare clocks by it.

    Args:
        url: None where nobody has named a store.
        is_rented: Machines of others are to reach it.

    Raises:
        StoreError: It cannot be used so.
    """
    if url is None or (is_rented and url.startswith("file:")):
        detail = f"{url} is on this machine" if url else "none is named"
        yield Finding("store", Verdict.PROBLEM if is_rented else Verdict.NOT_CHECKED,
                      f"{detail}, and a rented machine keeps nothing", "ldlm init --store s3://BUCKET/PREFIX")
        return
    if not may_exist(url):
        yield Finding("store", Verdict.OK, f"{url}: made by the first run")
        return
    store = open_store(url)
    ahead_s = _try(store)
    yield Finding("store", Verdict.OK, f"{store.url}: written, read, listed, deleted")
    yield _clock(ahead_s)


def _try(store: Store) -> float:
    """Use the store in every way. Returns by how many seconds this clock is ahead of the store's."""
    folder = f"ldlm-doctor-{secrets.token_hex(4)}"
    key, data = f"{folder}/probe", os.urandom(64)
    store.put(key, data)
    try:
        now, written = datetime.now(UTC), store.written_at(key)
        if store.get(key) != data or [item.key for item in store.objects(folder)] != [key]:
            raise StoreError("does not give back what was written", place=store.url,
                             fix="name another store: --store")
        check_refuses(store, key)
    finally:
        store.delete([key])
        _remove_empty(store, folder)
    return (now - written).total_seconds()


def _remove_empty(store: Store, folder: str) -> None:
    if store.local_folder:  # there, unlike in a cloud, a folder outlives its objects
        with suppress(OSError):
            Path(store.local_folder, folder).rmdir()


def _clock(ahead_s: float) -> Finding:
    if abs(ahead_s) <= _CLOCK_S:
        return Finding("clock", Verdict.OK, f"within {max(1, round(abs(ahead_s)))} s of the store's")
    where = "ahead of" if ahead_s > 0 else "behind"
    return Finding("clock", Verdict.PROBLEM, f"{abs(ahead_s):.0f} s {where} the store's",
                   "set this machine's clock: timedatectl set-ntp true")


def look_at_wandb(mode: str) -> Iterator[Finding]:
    """Whether nodes would have a key for W&B. The key itself is shown to nobody, W&B neither.

    Args:
        mode: `train.wandb.mode` of the recipe; `auto` without one.
    """
    if mode in ("off", "offline"):
        yield Finding("W&B", Verdict.OK, f"the recipe says {mode}")
    elif os.environ.get(Env.WANDB_KEY):
        yield Finding("W&B", Verdict.OK, f"{Env.WANDB_KEY} is set; whether W&B takes it was not asked")
    elif mode == "online":
        yield Finding("W&B", Verdict.PROBLEM, f"the recipe says online, and {Env.WANDB_KEY} is not set",
                      f"export {Env.WANDB_KEY}=...")
    else:
        yield Finding("W&B", Verdict.NOT_CHECKED,
                      f"{Env.WANDB_KEY} is not set: runs are not shown as they train",
                      f"export {Env.WANDB_KEY}=..., or later: ldlm wandb sync RUN")


def look_at_webhook(*, is_tried: bool) -> Iterator[Finding]:
    """Whether somebody would be told what happens to runs. Of the address only the host is shown.

    Args:
        is_tried: Send it a message.
    """
    from trainer.webhook import WebhookError, address_problem, host_of, post, test_payload

    fix = f"ldlm init --webhook, or export {Env.WEBHOOK}=..."
    if not (url := webhook_envs(os.environ).get(Env.WEBHOOK)):
        yield Finding("webhook", Verdict.PROBLEM if is_tried else Verdict.NOT_CHECKED,
                      "none is named: nobody is told when a run is preempted or ends", fix)
    elif problem := address_problem(url):
        yield Finding("webhook", Verdict.PROBLEM, f"its address cannot be used: {problem}", fix)
    elif not is_tried:
        yield Finding("webhook", Verdict.OK,
                      f"{host_of(url)} is told; a message for a try: ldlm doctor --webhook")
    else:
        try:
            post(url, test_payload())
            yield Finding("webhook", Verdict.OK, f"{host_of(url)} has taken a message")
        except WebhookError as error:
            yield Finding("webhook", Verdict.PROBLEM, f"{error.place}: {error.problem}", fix)
