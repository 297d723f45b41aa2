"""Which files below a run's checkpoints are superfluous once a newer one is durable, and their deletion.

A checkpoint is deleted manifest first: what an interruption leaves never looks whole. What saves that did not
finish have left behind, and what is in quarantine, goes with the first good checkpoint after it.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from trainer.contract import LdlmError, Name, Outcome, checkpoint_folder
from trainer.manifest import Manifest, complete_checkpoints
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import DamagedError, NotFoundError, is_draft
from trainer.unfinished_uploads import abort_uploads, unfinished_uploads

_STEP = re.compile(r"step-(\d{8,})$")
_LISTS_WITHIN_S = (0.0, 1.0, 4.0, 15.0)  # pauses before each look of a store that lags (guess)
_OF_ATTEMPT = re.compile(r"a(\d+)-")  # begins the name of a file


class Keep(NamedTuple):
    """Which complete checkpoints stay.

    Attributes:
        newest: So many, at least 1.
        stays: Of a step: its checkpoint is never superfluous. Where it has none, because another save was
            under way or this one has failed, the first one after it stands for it.
    """

    newest: int
    stays: Callable[[int], bool] = lambda _: False

    def of(self, complete: Sequence[Manifest]) -> list[Manifest]:
        """Those of some that stay; newest first, as they are given."""
        steps_before = [*(manifest.step for manifest in complete[1:]), 0]
        return [manifest for place, manifest in enumerate(complete) if place < self.newest
                or any(map(self.stays, range(manifest.step, steps_before[place], -1)))]


def retain(folder: RunFolder, step: int, keep: Keep, attempt: int) -> bool:
    """Delete complete checkpoints that need not stay, and debris up to `step`.

    Returns:
        False where the store does not list the checkpoint of `step` yet, so that nothing was deleted.

    Args:
        folder: The run.
        step: Of the newest one that is known to be good. Later ones do not count: an attempt that
            found them damaged has started before them, and another rank may be writing the next.
        keep: Which of them stay.
        attempt: That owns the run. What a later one has written stays, and so does all where it has saved.

    Raises:
        StoreError: They cannot be listed or deleted.
    """
    # One listing for both: what it lacks because it lags must not be deleted as debris.
    listed = folder.store.objects(folder.key(Name.CHECKPOINTS))
    complete = [manifest for manifest in complete_checkpoints(folder, lambda _: None, listed)
                if manifest.step <= step]
    if any(manifest.attempt > attempt for manifest in complete):
        return True  # this attempt has lost the run
    if not complete or complete[0].step != step:
        return False
    kept = {manifest.step: manifest for manifest in keep.of(complete)}
    by_step: dict[int, list[str]] = {}
    for found in listed:
        name = _STEP.search(found.key.rpartition("/")[0])
        if name and int(name[1]) <= step:
            by_step.setdefault(int(name[1]), []).append(found.key)
    for number, keys in sorted(by_step.items(), reverse=True):
        superfluous = (key for key in _superfluous(keys, kept.get(number))
                       if _attempt_of(key) <= attempt)
        folder.store.delete(sorted(superfluous, key=_manifest_first))
    if folder.store.local_folder is not None:
        _tidy(folder.store.local_folder / folder.key(""), step, attempt)
    return True


def tidy_finished(folder: RunFolder, attempt: int, stays: Callable[[int], bool]) -> None:
    """Of a run that has finished keep the newest checkpoint and those that stay: a bucket bills for ever.

    One that has come to a limit or was stopped may go on, and keeps what it may fall back on. Nobody tidies
    after this, so a listing that lags is asked for again. Raises nothing: where this fails, more stays.
    """
    try:
        found = folder.find(Name.OUTCOME, RunOutcome)
        if found and found.outcome is Outcome.FINISHED:
            if (root := folder.store.local_folder) is not None:  # it stands: nobody writes it any more
                _delete_drafts((root / folder.key("")).glob(f"{Name.OUTCOME}*"))
            for pause_s in _LISTS_WITHIN_S:
                time.sleep(pause_s)
                if retain(folder, found.step, Keep(1, stays), attempt):
                    return
    except LdlmError as error:
        print(f"warning: old checkpoints not deleted: {error}", flush=True)


def withdraw(folder: RunFolder, attempt: int, keep: Keep) -> None:
    """Delete what an attempt that has lost the run has uploaded and what does not count, or not any more.

    Raises:
        StoreError: They cannot be listed or deleted.
    """
    listed = folder.store.objects(folder.key(Name.CHECKPOINTS))
    kept = keep.of(list(complete_checkpoints(folder, lambda _: None, listed)))
    needed = {folder.key(f"{checkpoint_folder(manifest.step)}/{name}")
              for manifest in kept for name in (*manifest.sizes, Name.MANIFEST)}
    own = [found.key for found in listed if found.key not in needed
           and attempt == (_attempt_of(found.key) or _attempt_of_manifest(folder, found.key))]
    folder.store.delete(sorted(own, key=_manifest_first))
    if folder.store.local_folder is not None:
        for path in (folder.store.local_folder / folder.key(Name.CHECKPOINTS)).glob("*"):
            with suppress(OSError):  # not empty
                path.rmdir()


def abort_killed(folder: RunFolder, attempt: int) -> None:
    """Abort the uploads of checkpoints in which attempts before this one were killed, which a bucket bills.
    They have lost the run, so none of these can come to count; those of later ones stay. Raises nothing: keys
    that may not do it are named, and training needs no others.
    """
    if folder.store.local_folder is not None:
        return  # `retain` finds what they have left on a disk
    try:
        found = unfinished_uploads(folder.store, folder.key(Name.CHECKPOINTS))
        abort_uploads(folder.store, [upload for upload in found if 0 < _attempt_of(upload.key) < attempt])
    except LdlmError as error:
        print(f"note: uploads of attempts that were killed stay, if there are any: {error}", flush=True)


def _attempt_of_manifest(folder: RunFolder, key: str) -> int:
    if not key.endswith("/" + Name.MANIFEST):
        return 0
    try:
        return folder.read(key.removeprefix(folder.key("")), Manifest).attempt
    except (NotFoundError, DamagedError):
        return 0


def _attempt_of(key: str) -> int:
    """That has written a file; 0: its name does not say."""
    name = _OF_ATTEMPT.match(key.rpartition("/")[2])
    return int(name[1]) if name else 0


def _superfluous(keys: Iterable[str], manifest: Manifest | None) -> Iterator[str]:
    """Of one checkpoint's objects, those that it does not need; all, if it is not kept."""
    needed = {Name.MANIFEST, *manifest.sizes} if manifest else set()
    return (key for key in keys if key.rpartition("/")[2] not in needed)


def _manifest_first(key: str) -> tuple[bool, str]:
    return not key.endswith("/" + Name.MANIFEST), key


def _tidy(run: Path, step: int, attempt: int) -> None:
    """On a disk, a killed write leaves its draft, and a deleted checkpoint its folder."""
    for path in sorted((run / Name.CHECKPOINTS).glob("*")):
        name = _STEP.search(path.name)
        if name and int(name[1]) <= step:
            _delete_drafts(file for file in path.iterdir() if _attempt_of(file.name) <= attempt)
            with suppress(OSError):  # not empty
                path.rmdir()
    for path in sorted((run / Name.ATTEMPTS).glob("*")):
        if path.name.isdigit() and int(path.name) < attempt:
            _delete_drafts(path.rglob("*"))


def _delete_drafts(paths: Iterable[Path]) -> None:
    for path in paths:
        if is_draft(path.name):
            path.unlink(missing_ok=True)
