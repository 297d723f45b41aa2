"""What `ldlm pull` would bring of a run, whether it fits, and what is there already. No torch, no hashes."""

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from trainer.contract import LdlmError, Name, StoreError, checkpoint_folder
from trainer.manifest import Manifest, complete_checkpoints
from trainer.run_folder import RunFolder
from trainer.run_parts import Part, objects_by_part
from trainer.store import NotFoundError, StoredObject

DRAFT = ".part"  # ends the name of a file that has not come whole
_MARGIN_BYTES = 64 * 2**20  # that a disk should keep free (guess)
_BLOCK_BYTES = 512  # of `st_blocks`, whatever the file system's own are


class Which(StrEnum):
    """Which checkpoints come."""

    NEWEST = "newest"
    ALL = "all"
    NONE = "none"


class PullPlan(NamedTuple):
    """What would come.

    Attributes:
        objects: By kind; checkpoints are not among them.
        checkpoints: Complete ones, newest first. Of NEWEST all are here, in case the newest is damaged.
    """

    objects: dict[Part, list[StoredObject]]
    checkpoints: list[Manifest]
    which: Which

    @property
    def wanted(self) -> list[Manifest]:
        """The checkpoints that come if none is damaged."""
        return self.checkpoints[:1] if self.which is Which.NEWEST else self.checkpoints

    @property
    def num_bytes(self) -> int:
        """Of all that comes."""
        listed = sum(item.num_bytes for found in self.objects.values() for item in found)
        return listed + sum(manifest.num_bytes for manifest in self.wanted)


def plan_pull(source: RunFolder, which: Which, say: Callable[[str], None]) -> PullPlan:
    """Look at a run.

    Args:
        say: Told about each checkpoint that is not complete.

    Raises:
        StoreError: It cannot be read.
    """
    found = objects_by_part(source)
    del found[Part.CHECKPOINTS]
    checkpoints = [] if which is Which.NONE else list(complete_checkpoints(source, say))
    return PullPlan(found, checkpoints, which)


def check_place(source: RunFolder, to: Path) -> None:
    """Refuse a folder into which this run cannot come. Nothing is made there.

    Raises:
        LdlmError: It is no folder, the store of the run itself, or has another run of this name.
    """
    if to.exists() and not to.is_dir():
        raise LdlmError("is a file, and a store is a folder", place=str(to), fix="name a folder: --to DIR")
    if source.store.local_folder is not None and source.store.local_folder.resolve() == to.resolve():
        raise LdlmError(f"run {source.run_id} is in this folder already", place=str(to),
                        fix="name another folder: --to DIR")
    for name in (Name.RECIPE, Name.PLAN):  # written once, at launch
        here = to / source.run_id / name
        if here.is_file() and here.read_bytes() != _read(source, name):
            raise LdlmError(f"there is another run of the name {source.run_id}", place=str(here.parent),
                            fix="name another folder: --to DIR")


def _read(source: RunFolder, name: str) -> bytes:
    try:
        return source.read_bytes(name)
    except NotFoundError:
        return b""


def bytes_here(plan: PullPlan, run: Path) -> int:
    """What of the checkpoints lies at a place already, whole or in part, at most; its hashes are not asked.

    Args:
        run: The folder of the run there.
    """
    return sum(min(size, max(_held(folder / name), _held(folder / f"{name}{DRAFT}")))
               for manifest in plan.wanted for folder in [run / checkpoint_folder(manifest.step)]
               for name, size in manifest.sizes.items())


def _held(path: Path) -> int:
    # A draft has its whole length from the start, with holes.
    return path.stat().st_blocks * _BLOCK_BYTES if path.is_file() else 0


def check_room(to: Path, num_bytes: int) -> None:
    """Refuse what does not fit on a disk. Raises StoreError."""
    to = to.absolute()
    nearest = next(folder for folder in (to, *to.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if num_bytes + _MARGIN_BYTES > free:
        raise StoreError(f"{num_bytes / 2**20:,.0f} MiB would not fit: {free / 2**20:,.0f} MiB are free",
                         place=str(to), fix="free disk space, or name a folder on another disk: --to DIR")
