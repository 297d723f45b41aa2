"""`ldlm rm`: shows what a run has in its store and costs a month, asks, and deletes it.

By itself it deletes what takes the room, the checkpoints. The record stays: what the run was, learned and
cost, from which later plans know how fast such a run is. Everything goes with `--all`.
"""

import os
import shutil
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from launcher import console
from launcher.carry_out import ask, end_interrupted
from launcher.engine import ALIVE
from launcher.engine_folder import engine_home
from launcher.engines import check_is_over, state_of
from launcher.errors import RunRecordError, StoreError
from launcher.kept import a_month, usd_per_month
from launcher.local_engine import LocalEngine
from launcher.month import keep_spent
from launcher.run_record import read_record
from launcher.runs import find_run, store_of
from launcher.store_prices import OWN_DISK, store_price
from trainer.contract import Name
from trainer.run_folder import RunFolder
from trainer.run_parts import Amount, Part, objects_by_part
from trainer.store import StoredObject
from trainer.unfinished_uploads import UnfinishedUpload, abort_uploads, unfinished_uploads, what_remains


class Doomed(NamedTuple):
    """What is to be deleted of a run.

    Attributes:
        stays: What is not.
        everything: Nothing stays, not even what this machine's engine keeps of it.
    """

    objects: dict[Part, list[StoredObject]]
    uploads: list[UnfinishedUpload]
    stays: dict[Part, Amount]
    everything: bool

    @property
    def num_bytes(self) -> int:
        """Of all that goes."""
        listed = sum(Amount.of(found).num_bytes for found in self.objects.values())
        return listed + sum(upload.num_bytes for upload in self.uploads)


def run_rm(run_id: str, store_option: str | None, *, everything: bool, yes: bool, as_json: bool) -> None:
    """Show, ask, delete. What an interruption leaves, the same command deletes.

    Raises:
        RunRecordError: There is no such run, or it is alive.
        StoreError: The store cannot be listed, or does not delete.
        Refused: Nobody agrees.
    """
    folder = find_run(run_id, store_option)
    check_not_alive(folder)
    doomed = find_doomed(folder, everything=everything)
    with console.aside() if as_json else nullcontext():
        show(folder, doomed)
    if doomed.num_bytes or everything:
        what = f"everything of {run_id}" if everything else f"the checkpoints of {run_id}"
        ask(f"Delete {what}, {console.data_size(doomed.num_bytes)}?", yes)
        check_not_alive(folder)  # the question may have stood for long
        try:
            remove(folder, doomed)
        except KeyboardInterrupt:
            end_interrupted("interrupted: the same command deletes the rest")
    if as_json:
        console.answer_json(_as_json(folder, doomed))
    else:
        console.answer(_last_line(folder, doomed))


def check_not_alive(folder: RunFolder) -> None:
    """Raise RunRecordError while some machine may still write into a run."""
    stop = f"stop it first: ldlm stop {folder.run_id}"
    here = LocalEngine().state(folder.run_id)
    if here.phase in ALIVE:
        raise RunRecordError(f"run {folder.run_id} is running", place=folder.url, fix=stop)
    record = read_record(folder)
    check_is_over(record, state_of(record, folder.store), datetime.now(UTC), if_here=stop,
                  if_elsewhere=f"{stop}, there")


def find_doomed(folder: RunFolder, *, everything: bool) -> Doomed:
    """What there is to delete. Unfinished uploads that the keys do not allow to see are told, and left."""
    found = objects_by_part(folder)
    going = list(Part) if everything else [Part.CHECKPOINTS]
    try:
        where = folder.run_id if everything else folder.key(Name.CHECKPOINTS)
        uploads = unfinished_uploads(folder.store, where)
    except StoreError as error:
        console.talk(f"unfinished uploads stay, and are billed if there are any: {error}", "note")
        uploads = []
    return Doomed({part: found[part] for part in going}, uploads,
                  {part: Amount.of(found[part]) for part in Part if part not in going}, everything)


def remove(folder: RunFolder, doomed: Doomed) -> None:
    """Delete it. No checkpoint may look whole without its files, so manifests go first; the recipe goes last:
    what an interruption leaves can then still be named, and deleted. Raises StoreError."""
    if doomed.everything:
        keep_spent(folder, datetime.now(UTC))
    recipe = folder.key(Name.RECIPE)
    keys = [item.key for found in doomed.objects.values() for item in found if item.key != recipe]
    folder.store.delete(sorted(keys, key=lambda key: not key.endswith(f"/{Name.MANIFEST}")))
    abort_uploads(folder.store, doomed.uploads)
    if doomed.everything:
        folder.store.delete([recipe])
        if store_of(folder.run_id) == folder.store.address:
            shutil.rmtree(engine_home() / folder.run_id, ignore_errors=True)
    _remove_empty_folders(folder, folder.run_id if doomed.everything else folder.key(Name.CHECKPOINTS))


def _remove_empty_folders(folder: RunFolder, key: str) -> None:
    """On a disk, unlike in a cloud, a folder outlives its objects; a new run of this id would count on it."""
    if folder.store.local_folder is not None:
        for path, _, _ in os.walk(folder.store.local_folder / key, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(path)


def show(folder: RunFolder, doomed: Doomed) -> None:
    """What goes and what stays, by kind, with its bytes and dollars a month."""
    price = store_price(folder.store.address)

    def row(what: str, amount: Amount, then: str) -> list[str]:
        month = "-" if price is OWN_DISK else a_month(price, amount.num_bytes).removesuffix(" a month")
        return [what, str(amount.num_files), console.data_size(amount.num_bytes), month, then]

    goes = [row(part, Amount.of(found), "deleted") for part, found in doomed.objects.items() if found]
    if doomed.uploads:
        amount = Amount(len(doomed.uploads), sum(upload.num_bytes for upload in doomed.uploads))
        goes.append(row("unfinished uploads", amount, "deleted"))
    stays = [row(part, amount, "stays") for part, amount in doomed.stays.items() if amount.num_files]
    console.answer(f"What {folder.run_id} has in {folder.store.url}", "title")
    console.answer_table(["", "files", "size", "a month", ""], goes + stays, right=[1, 2, 3])
    console.answer()
    if price is not None and price is not OWN_DISK:
        per_gb = f"${price.kept_usd_per_gb_month} a GB and month"
        console.answer_facts([("list price", f"{per_gb} ({price.place})")])
    lost = ("what it learned is forgotten; what it cost counts for this month's cap alone"
            if doomed.everything else "without checkpoints it cannot be resumed, sampled or exported")
    console.answer_notes([*filter(None, [what_remains(folder.store.address)]), lost])
    console.answer()


def _last_line(folder: RunFolder, doomed: Doomed) -> str:
    run_id, freed = folder.run_id, console.data_size(doomed.num_bytes)
    if doomed.everything:
        return f"deleted {run_id}: {_saved(folder, doomed, freed)}"
    if not doomed.num_bytes:
        return f"nothing was deleted: {run_id} has no checkpoint; its record goes by ldlm rm {run_id} --all"
    return (f"deleted the checkpoints of {run_id}: {_saved(folder, doomed, freed)}; "
            f"its record stays: ldlm cost {run_id}")


def _saved(folder: RunFolder, doomed: Doomed, freed: str) -> str:
    price = store_price(folder.store.address)
    less = "" if price in (None, OWN_DISK) else f", {a_month(price, doomed.num_bytes)} less"
    return f"{freed} freed{less}"


def _as_json(folder: RunFolder, doomed: Doomed) -> dict[str, Any]:
    usd = usd_per_month(store_price(folder.store.address), doomed.num_bytes)
    return {"run_id": folder.run_id, "store": folder.store.url, "num_bytes": doomed.num_bytes,
            "usd_per_month": usd, "unfinished_uploads": len(doomed.uploads),
            "deleted": _amounts({part: Amount.of(found) for part, found in doomed.objects.items()}),
            "stays": _amounts(doomed.stays)}


def _amounts(parts: dict[Part, Amount]) -> dict[str, Any]:
    return {part.value: amount._asdict() for part, amount in parts.items()}
