"""Which checkpoint counts, and which is deleted. What runs on every store is in test_store.py."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from trainer.contract import ExitCode, Name, Outcome, StoreError, checkpoint_folder
from trainer.manifest import (
    CheckpointError,
    Manifest,
    StoredFile,
    complete_checkpoints,
    newest_readable,
    quarantine,
    read_rest,
)
from trainer.retention import Keep, retain, tidy_finished
from trainer.run_folder import RunFolder, RunOutcome
from trainer.store import Store, local_store_url, open_store


class RecordingStore(Store):
    """A folder that writes down what is deleted, and fails to read keys that hold a word."""

    def __init__(self, root: Path) -> None:
        inner = open_store(local_store_url(root))
        super().__init__(inner.url, inner.address, inner._backend)
        self.deleted: list[str] = []
        self.unreadable: str | None = None

    def get(self, key: str) -> bytes:
        if self.unreadable and self.unreadable in key:
            raise StoreError("cannot read: no route to host", place=f"{self.url}/{key}")
        return super().get(key)

    def delete(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        self.deleted += listed
        super().delete(listed)


@pytest.fixture
def store(tmp_path: Path) -> RecordingStore:
    return RecordingStore(tmp_path)


@pytest.fixture
def folder(store: RecordingStore) -> RunFolder:
    return RunFolder(store, "run")


def commit(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        data = f"state of {step}".encode()
        folder.write_bytes(f"{checkpoint_folder(step)}/a1-rest", data)
        listed = StoredFile(name="a1-rest", num_bytes=len(data), sha256=sha256(data).hexdigest())
        folder.write(f"{checkpoint_folder(step)}/manifest.json",
                     Manifest(step=step, attempt=1, world_size=2, shards=[], pieces=[], rest=listed,
                              groups=[], data_fingerprint="x", model={}))


def newest(folder: RunFolder, say: Callable[[str], None] = lambda _: None) -> tuple[int, bytes] | None:
    """Step and small tensors of the newest checkpoint that can be read."""
    found = newest_readable(folder, lambda manifest: read_rest(folder, manifest), say)
    return (found[0].step, found[1]) if found else None


def path_of(tmp_path: Path, step: int, name: str) -> Path:
    return tmp_path / "run" / checkpoint_folder(step) / name


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "bit flipped": ("a1-rest", flip_a_bit, "step 8 not used: .*a1-rest: its SHA-256 is not the manifest's"),
    "cut short": ("a1-rest", truncate, "step-00000008 ignored: a1-rest is missing or has the wrong size"),
    "lost": ("a1-rest", Path.unlink, "step-00000008 ignored: a1-rest is missing or has the wrong size"),
    "manifest cut": ("manifest.json", truncate, "00000008 ignored: its manifest is not a valid Manifest"),
    "manifest lost": ("manifest.json", Path.unlink, "step-00000008 has no manifest: its save did not finish"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_one_before_a_damaged_checkpoint_is_used_and_the_log_says_why(
        folder: RunFolder, tmp_path: Path, kind: str) -> None:
    commit(folder, 4, 8)
    name, damage, expected = DAMAGE[kind]
    damage(path_of(tmp_path, 8, name))
    said: list[str] = []

    assert newest(folder, said.append) == (4, b"state of 4")
    assert len(said) == 1
    assert re.search(expected, said[0])


def test_when_all_are_damaged_nobody_starts_again_from_zero_and_nothing_is_deleted(
        folder: RunFolder, store: RecordingStore, tmp_path: Path) -> None:
    commit(folder, 4, 8)
    flip_a_bit(path_of(tmp_path, 4, "a1-rest"))
    truncate(path_of(tmp_path, 8, "a1-rest"))

    with pytest.raises(CheckpointError, match="all 2 committed checkpoints are damaged") as caught:
        newest(folder)

    assert caught.value.node_exit_code == ExitCode.BROKEN
    assert "run/checkpoints" in str(caught.value.place) and "delete that folder" in str(caught.value.fix)
    assert store.deleted == []


@pytest.mark.parametrize("unreadable", ["step-00000008/a1-rest", "step-00000008/manifest.json"])
def test_a_store_that_fails_for_a_moment_is_no_reason_to_take_an_older_checkpoint(
        folder: RunFolder, store: RecordingStore, unreadable: str) -> None:
    commit(folder, 4, 8)
    store.unreadable = unreadable

    with pytest.raises(StoreError, match="no route to host"):
        newest(folder)


@pytest.mark.parametrize(("manifest", "number"), [
    ({"step": 12, "attempt": 1, "world_size": 2, "files": []}, 1),
    ({"step": 12, "format": 3, "new": True}, 3)])
def test_a_checkpoint_of_another_version_is_refused_and_neither_passed_over_nor_deleted(
        folder: RunFolder, store: RecordingStore, manifest: dict[str, object], number: int) -> None:
    """The first format, DeepSpeed's files, did not name itself."""
    commit(folder, 4, 8)
    folder.write_bytes(f"{checkpoint_folder(12)}/manifest.json", json.dumps(manifest).encode())

    told = f"the checkpoint of step 12 is in format {number}, and this version reads 2"
    with pytest.raises(CheckpointError, match=told) as caught:
        newest(folder)
    assert "the version of ldlm that wrote it" in str(caught.value.fix)
    with pytest.raises(CheckpointError, match=told):
        retain(folder, step=8, keep=Keep(1), attempt=1)
    assert store.deleted == []


def test_a_run_without_checkpoints_has_none_and_debris_is_no_checkpoint(folder: RunFolder) -> None:
    assert newest(folder) is None
    folder.write_bytes(f"{checkpoint_folder(4)}/a1-rest", b"torn")
    assert newest(folder) is None


def test_retention_deletes_each_manifest_before_its_files(folder: RunFolder, store: RecordingStore) -> None:
    commit(folder, 4, 8, 12, 16)

    retain(folder, step=16, keep=Keep(2), attempt=1)

    assert store.deleted == [f"run/checkpoints/step-{step:08d}/{name}" for step in (8, 4)
                             for name in ("manifest.json", "a1-rest")]
    assert [manifest.step for manifest in complete_checkpoints(folder, lambda _: None)] == [16, 12]


def test_a_checkpoint_whose_step_stays_is_deleted_neither_as_an_old_one_nor_instead_of_a_new_one(
        folder: RunFolder) -> None:
    commit(folder, 4, 8, 10, 12, 14)

    retain(folder, step=14, keep=Keep(2, lambda step: step % 8 == 0), attempt=1)

    assert [manifest.step for manifest in complete_checkpoints(folder, lambda _: None)] == [14, 12, 8]


def test_where_a_step_that_stays_has_no_checkpoint_the_first_one_after_it_stays(folder: RunFolder) -> None:
    """Another save was under way at 8, or the one of 8 has failed."""
    commit(folder, 4, 10, 12, 14)

    retain(folder, step=14, keep=Keep(1, lambda step: step % 8 == 0), attempt=1)

    assert [manifest.step for manifest in complete_checkpoints(folder, lambda _: None)] == [14, 10]


@pytest.mark.parametrize(("outcome", "left"), [
    (Outcome.FINISHED, [14, 8]), (Outcome.LIMIT, [14, 12, 10, 8]), (Outcome.STOPPED, [14, 12, 10, 8]),
    (None, [14, 12, 10, 8])])
def test_of_a_run_that_has_finished_the_newest_stays_and_those_of_every_steps(
        folder: RunFolder, outcome: Outcome | None, left: list[int]) -> None:
    commit(folder, 8, 10, 12, 14)
    if outcome:
        folder.write(Name.OUTCOME, RunOutcome(outcome=outcome, at=datetime.now(UTC), step=14, reason=""))

    tidy_finished(folder, 1, stays=lambda step: step % 8 == 0)

    assert [manifest.step for manifest in complete_checkpoints(folder, lambda _: None)] == left


def test_retention_keeps_the_newest_good_one_although_a_damaged_one_has_a_later_step(
        folder: RunFolder, tmp_path: Path) -> None:
    """A resume went back to 8 because 12 is damaged; the next save is 10."""
    commit(folder, 8, 10, 12)
    flip_a_bit(path_of(tmp_path, 12, "a1-rest"))

    retain(folder, step=10, keep=Keep(1), attempt=1)

    assert newest(folder) == (10, b"state of 10")


def test_debris_goes_with_the_first_checkpoint_after_it_and_what_is_being_written_stays(
        folder: RunFolder, tmp_path: Path) -> None:
    commit(folder, 4, 8, 12)
    truncate(path_of(tmp_path, 4, "a1-rest"))
    quarantine(folder, 8, "XXH3 differs", attempt=2)
    for step, name in ((2, "a1-rank-0000.bin"), (12, "a0-rank-0000.bin"), (12, "part-0001.json"),
                       (12, "a0-rank-0000.bin#1"), (2, "a1-rank-0001.bin#1"), (14, "a1-rank-0001.bin"),
                       (14, "a1-rank-0000.bin#1")):
        path = path_of(tmp_path, step, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"torn")

    retain(folder, step=12, keep=Keep(3), attempt=1)

    below = tmp_path / "run/checkpoints"
    assert sorted(str(path.relative_to(below)) for path in below.rglob("*")) == [
        "step-00000012", "step-00000012/a1-rest", "step-00000012/manifest.json",
        "step-00000014", "step-00000014/a1-rank-0000.bin#1", "step-00000014/a1-rank-0001.bin"]


def test_retention_deletes_nothing_by_a_listing_that_lacks_the_newest_one(
        folder: RunFolder, store: RecordingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(folder, 4, 8, 12)
    listed = [found for found in store.objects("run/checkpoints") if "step-00000012" not in found.key]
    lagging = [listed]  # the next one is whole
    whole = store.objects("run/checkpoints")
    monkeypatch.setattr(store, "objects", lambda _: lagging.pop() if lagging else whole)

    retain(folder, step=12, keep=Keep(1), attempt=1)

    assert store.deleted == []


def test_what_a_finished_run_leaves_is_tidied_though_the_store_lists_its_last_checkpoint_late(
        folder: RunFolder, store: RecordingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(folder, 4, 8, 12)
    folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.FINISHED, at=datetime.now(UTC), step=12, reason=""))
    whole = store.objects("run/checkpoints")
    lagging = [[found for found in whole if "step-00000012" not in found.key] for _ in range(2)]
    monkeypatch.setattr(store, "objects", lambda _: lagging.pop() if lagging else whole)
    monkeypatch.setattr("trainer.retention.time.sleep", lambda _: None)

    tidy_finished(folder, 1, stays=lambda _: False)

    assert {key.split("/")[2] for key in store.deleted} == {"step-00000004", "step-00000008"}


def test_retention_leaves_what_a_later_attempt_writes_to_that_one(
        folder: RunFolder, store: RecordingStore) -> None:
    commit(folder, 4, 8)
    folder.write_bytes(f"{checkpoint_folder(8)}/a2-rank-0000.bin", b"under way")

    retain(folder, step=8, keep=Keep(1), attempt=1)

    assert not any("a2-" in key for key in store.deleted) and any("a1-" in key for key in store.deleted)


def test_a_checkpoint_in_quarantine_is_named_and_the_one_before_is_taken(folder: RunFolder) -> None:
    commit(folder, 4, 8)
    quarantine(folder, 8, "its bytes 0 to 9 are not what was written", attempt=3)
    said: list[str] = []
    assert newest(folder, said.append) == (4, b"state of 4")
    assert said == ["checkpoint step-00000008 ignored: in quarantine since attempt 3 found it damaged: "
                    "its bytes 0 to 9 are not what was written"]


def test_when_all_are_in_quarantine_nobody_starts_again_from_zero(folder: RunFolder) -> None:
    commit(folder, 4)
    quarantine(folder, 4, "XXH3 differs", attempt=1)
    with pytest.raises(CheckpointError, match="delete their quarantine.json and resume"):
        newest(folder)


def test_the_size_of_a_checkpoint_is_that_of_its_files(folder: RunFolder) -> None:
    commit(folder, 4)
    assert next(complete_checkpoints(folder, lambda _: None)).num_bytes == len(b"state of 4")
