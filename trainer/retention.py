"""Which files below a run's checkpoints are superfluous once a newer one is durable, and their deletion.

A checkpoint is deleted manifest first: what an interruption leaves never looks whole. What saves that did not
finish have left behind, and what is in quarantine, goes with the first good checkpoint after it.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from trainer.contract import Name
from trainer.manifest import Manifest, complete_checkpoints
from trainer.run_folder import RunFolder

_STEP = re.compile(r"step-(\d{8,})$")
_DRAFT = re.compile(r"#\d+$")  # ends the name of a file that obstore has not finished; no listing shows it


def retain(folder: RunFolder, step: int, keep: int) -> None:
    """Delete complete checkpoints older than the newest `keep`, and debris up to `step`.

    Args:
        folder: The run.
        step: Of the newest one that is known to be good. Later ones do not count: an attempt that
            found them damaged has started before them, and another rank may be writing the next.
        keep: At least 1.

    Raises:
        StoreError: They cannot be listed or deleted.
    """
    complete = [manifest for manifest in complete_checkpoints(folder, say=lambda _: None)
                if manifest.step <= step]
    kept = {manifest.step: manifest for manifest in complete[:keep]}
    by_step: dict[int, list[str]] = {}
    for found in folder.store.objects(folder.key(Name.CHECKPOINTS)):
        name = _STEP.search(found.key.rpartition("/")[0])
        if name and int(name[1]) <= step:
            by_step.setdefault(int(name[1]), []).append(found.key)
    for number, keys in sorted(by_step.items(), reverse=True):
        folder.store.delete(sorted(_superfluous(keys, kept.get(number)), key=_manifest_first))
    if folder.store.local_folder is not None:
        for path in sorted((folder.store.local_folder / folder.key(Name.CHECKPOINTS)).iterdir()):
            _tidy(path, step)


def _superfluous(keys: Iterable[str], manifest: Manifest | None) -> Iterator[str]:
    """Of one checkpoint's objects, those that it does not need; all, if it is not kept."""
    needed = {Name.MANIFEST, *manifest.sizes} if manifest else set()
    return (key for key in keys if key.rpartition("/")[2] not in needed)


def _manifest_first(key: str) -> tuple[bool, str]:
    return not key.endswith("/" + Name.MANIFEST), key


def _tidy(folder: Path, step: int) -> None:
    """On a disk, a killed write leaves its draft, and a deleted checkpoint its folder."""
    name = _STEP.search(folder.name)
    if not name or int(name[1]) > step:
        return
    for path in folder.iterdir():
        if _DRAFT.search(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()
