"""What makes a save count where others write too: a sleeper, an attempt before, a store that lags."""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")  # hashes of pieces are in the trainer's environment alone

from trainer import commit  # noqa: E402
from trainer.commit import Committer, Content  # noqa: E402
from trainer.contract import Document, LdlmError, StoreError, checkpoint_folder  # noqa: E402
from trainer.identity import Identity  # noqa: E402
from trainer.lease import SupersededError  # noqa: E402
from trainer.manifest import Manifest, complete_checkpoints, quarantine, read_rest  # noqa: E402
from trainer.piece_codec import Copied  # noqa: E402
from trainer.pieces import Stretch  # noqa: E402
from trainer.retention import Keep  # noqa: E402
from trainer.run_folder import RunFolder, SavePace  # noqa: E402
from trainer.store import Store, StoredObject, local_store_url, open_store  # noqa: E402


class LaggingStore(Store):
    """A folder whose next listings do not show what is below some step. `asked`: keys that were read."""

    def __init__(self, root: Path) -> None:
        inner = open_store(local_store_url(root))
        super().__init__(inner.url, inner.address, inner._backend)
        self.hidden, self.num_lagging = "", 0
        self.asked: list[str] = []

    def get(self, key: str) -> bytes:
        self.asked.append(key)
        return super().get(key)

    def objects(self, prefix: str = "") -> list[StoredObject]:
        found = super().objects(prefix)
        if self.num_lagging:
            self.num_lagging -= 1
            found = [one for one in found if self.hidden not in one.key]
        return found


class Threads:
    """The ranks of an attempt as threads of this process."""

    def __init__(self, world_size: int) -> None:
        self._said: list[Any] = [None] * world_size
        self._barrier, self._failures = threading.Barrier(world_size, timeout=20), set[str]()
        self.ranks = [_Rank(self, rank, world_size) for rank in range(world_size)]


class _Rank:
    def __init__(self, shared: Threads, rank: int, world_size: int) -> None:
        self._shared, self.rank, self.world_size = shared, rank, world_size

    def gather(self, own: Any) -> list[Any]:
        self._shared._said[self.rank] = own
        self._shared._barrier.wait()
        seen = list(self._shared._said)
        self._shared._barrier.wait()
        return seen

    def tell_failure(self, key: str) -> None:
        self._shared._failures.add(key)

    def has_failed(self, key: str) -> bool:
        return key in self._shared._failures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(commit, "_LISTING_LAGS_S", 0.01)
    monkeypatch.setattr(commit, "_ASK_EVERY_S", 0.0)
    monkeypatch.setattr(commit, "_PARTS_TIMEOUT_S", 5.0)
    return RunFolder(LaggingStore(tmp_path), "run")


def attempt(folder: RunFolder, num_ranks: int = 1, told_step: int = 0, pace: SavePace | None = None,
            before_commit: Callable[[], None] = lambda: None) -> list[Committer]:
    """The ranks of the next attempt."""
    number = folder.claim_attempt(Document.TRAIN, billed_from=datetime.now(UTC), offer="", host="h",
                                  price_usd_per_hour=Decimal(0)).number
    identity = Identity(data_fingerprint="x", model={}, precision="fp32", encoder=None)
    return [Committer(folder, number, peers, groups=[], keep=Keep(2), identity=identity, told_step=told_step,
                      before_commit=before_commit, pace=pace) for peers in Threads(num_ranks).ranks]


def save(ranks: Iterable[Committer], step: int, *, count: int = 100,
         before: Callable[[int], None] = lambda _: None) -> list[LdlmError | None]:
    """One save of some ranks, to its end. Returns why it failed, by rank.

    Args:
        count: Numbers of each rank.
        before: Called by each rank, with its number, before it uploads.
    """
    found = list(ranks)
    for rank in found:
        number = rank._peers.rank
        stretch = Stretch("master", "float32", 0, count * number, count)
        copied = [Copied(stretch, np.full(count, step, np.float32).view(np.uint8))]

        def content(number: int = number, copied: list[Copied] = copied) -> Content:
            before(number)
            return Content(copied, f"rest of {step}".encode())

        rank.begin(step, content, 0.0)
    for rank in found:
        rank.wait()
    return [rank.pop_error() for rank in found]


def restored(ranks: list[Committer], say: Callable[[str], None] = lambda _: None) -> list[int]:
    """The steps from which ranks go on."""
    def restore(rank: Committer) -> int:
        found = rank.restore_newest(lambda manifest: read_rest(rank._folder, manifest), say)
        rank.wait()
        return found[0] if found else 0

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(restore, ranks))


def complete(folder: RunFolder) -> list[tuple[int, int]]:
    """Step and attempt of each checkpoint that counts, newest first."""
    return [(manifest.step, manifest.attempt) for manifest in complete_checkpoints(folder, lambda _: None)]


def files(folder: RunFolder) -> list[str]:
    return [found.key.removeprefix("run/checkpoints/") for found in folder.store.objects("run/checkpoints")]


def test_a_step_whose_damaged_checkpoint_is_in_quarantine_can_be_saved_again(folder: RunFolder) -> None:
    first = attempt(folder)
    assert save(first, 4) == save(first, 8) == [None]
    quarantine(folder, 8, "its bytes are not what was written", attempt=2)
    second = attempt(folder)
    assert restored(second) == [4]

    assert save(second, 8) == [None]

    assert complete(folder) == [(8, 2), (4, 1)]


def test_who_slept_before_its_commit_does_not_replace_the_commit_of_the_attempt_after(
        folder: RunFolder) -> None:
    def sleep() -> None:  # right after this attempt has looked whose the run is
        assert save(attempt(folder), 4) == [None]

    [error] = save(attempt(folder, before_commit=sleep), 4)

    assert isinstance(error, SupersededError)
    assert complete(folder) == [(4, 2)]


def test_who_lost_the_run_does_not_wait_for_a_part_list_that_the_attempt_after_has_deleted(
        folder: RunFolder) -> None:
    first = attempt(folder, num_ranks=2)
    assert save(first[1:], 4) == [None]
    assert save(attempt(folder), 4) == [None]  # its retention takes the shard of rank 1 for debris
    assert files(folder) == [f"step-00000004/{name}" for name in (
        "a2-rank-0000.bin", "a2-rest.safetensors", "manifest.json")]

    [error] = save(first[:1], 4)

    assert isinstance(error, SupersededError)


def test_part_lists_of_two_attempts_do_not_replace_each_other(folder: RunFolder) -> None:
    first, second = attempt(folder, num_ranks=2), attempt(folder, num_ranks=2)
    assert save(second[1:], 4) == [None]
    assert save(first[1:], 4) == [None]

    assert save(second[:1], 4) == [None]

    assert complete(folder) == [(4, 2)]


def test_a_step_that_is_saved_again_counts_with_what_every_rank_has_uploaded_this_time(
        folder: RunFolder) -> None:
    store, failures = folder.store, [StoreError("cannot be reached")]
    assert isinstance(store, LaggingStore)

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    def rank_1_is_late(number: int) -> None:
        while number == 1 and not any("part-0001" in key for key in store.asked):
            time.sleep(0.01)

    ranks = attempt(folder, num_ranks=2, before_commit=fail_once)
    [error, none] = save(ranks, 4)
    assert isinstance(error, StoreError) and none is None and not complete(folder)
    store.asked.clear()

    assert save(ranks, 4, count=200, before=rank_1_is_late) == [None, None]

    [saved] = complete_checkpoints(folder, lambda _: None)
    assert [piece.count for piece in saved.pieces] == [200, 200]
    assert files(folder) == [f"step-00000004/{name}" for name in (
        "a1-try-2-rank-0000.bin", "a1-try-2-rank-0001.bin", "a1-try-2-rest.safetensors", "manifest.json")]


def test_a_rank_that_could_not_upload_a_step_does_not_make_the_next_save_of_it_fail(
        folder: RunFolder) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise StoreError("cannot be reached")

    ranks = attempt(folder, num_ranks=2)
    assert all(isinstance(error, StoreError) for error in save(ranks, 4, before=fail))

    assert save(ranks, 4) == [None, None]

    assert complete(folder) == [(4, 1)]


def test_who_lost_the_run_deletes_what_it_has_uploaded_in_vain_and_nothing_else(folder: RunFolder) -> None:
    first = attempt(folder, num_ranks=2)
    assert save(first, 2) == [None, None]
    second = attempt(folder)
    assert save(second, 4) == [None]
    assert save(first[1:], 6) == [None]
    folder.write_bytes(f"{checkpoint_folder(6)}/a2-rank-0000.bin", b"under way")

    first[0].withdraw()

    assert complete(folder) == [(4, 2), (2, 1)]
    assert [name for name in files(folder) if "06/" in name] == ["step-00000006/a2-rank-0000.bin"]


def test_a_commit_of_who_lost_the_run_goes_with_it_when_enough_newer_ones_are_there(
        folder: RunFolder) -> None:
    """It slept in its commit, past the last look: its checkpoint is complete, or its shards are gone."""
    first = attempt(folder)
    assert save(first, 2) == [None]
    assert save(first, 4) == [None]
    for step in (6, 8):
        folder.write(f"{checkpoint_folder(step)}/manifest.json",
                     Manifest.model_validate_json(folder.read_bytes(f"{checkpoint_folder(2)}/manifest.json"))
                     .model_copy(update={"step": step}))
    second = attempt(folder)
    assert save(second, 10) == save(second, 12) == [None]
    folder.write(f"{checkpoint_folder(4)}/manifest.json", Manifest.model_validate(
        {"step": 4, "attempt": 1, "world_size": 1, "shards": [], "pieces": [], "groups": [], "model": {},
         "rest": {"name": "a1-rest.safetensors", "num_bytes": 1, "sha256": ""}, "data_fingerprint": "x"}))

    first[0].withdraw()

    assert complete(folder) == [(12, 2), (10, 2)]
    assert all("a2-" in name or "manifest" in name and name[5:13] in ("00000012", "00000010")
               for name in files(folder))


def test_an_attempt_begins_with_what_those_before_it_have_measured_of_its_saves(folder: RunFolder) -> None:
    [first] = attempt(folder)
    assert first.upload_bytes_per_s is None
    assert save([first], 4, count=10_000) == [None]
    [saved] = complete_checkpoints(folder, lambda _: None)
    assert first.spared_bytes == 40_000 - saved.shards[0].num_bytes > 9_000
    assert first.measured is not None and first.measured.num_bytes == saved.num_bytes

    pace = SavePace(interval_s=1.0, lost_s=1.0, num_bytes=600, save_s=3.0, stall_s=0.0)
    [second] = attempt(folder, pace=pace)
    assert second.upload_bytes_per_s == 200
    assert restored([second]) == [4]
    assert second.spared_bytes == first.spared_bytes


def test_ranks_that_do_not_see_the_same_listing_look_again(folder: RunFolder) -> None:
    assert save(attempt(folder), 4) == [None]
    assert isinstance(folder.store, LaggingStore)
    folder.store.hidden, folder.store.num_lagging = "step-", 1

    assert restored(attempt(folder, num_ranks=2)) == [4, 4]


def test_what_was_told_to_be_durable_is_read_by_its_name_where_the_listing_lacks_it(
        folder: RunFolder) -> None:
    first = attempt(folder)
    assert save(first, 4) == save(first, 8) == [None]
    assert isinstance(folder.store, LaggingStore)
    folder.store.hidden, folder.store.num_lagging = "step-00000008", 1000
    said: list[str] = []

    assert restored(attempt(folder, told_step=8), said.append) == [8]

    assert said == ["checkpoint step-00000008 is read by its name: it was told to be durable, and the store "
                    "does not list it yet"]


def test_what_was_told_to_be_durable_and_is_in_quarantine_is_not_taken_though_nothing_of_it_is_listed(
        folder: RunFolder) -> None:
    first = attempt(folder)
    assert save(first, 4) == save(first, 8) == [None]
    quarantine(folder, 8, "XXH3 differs", attempt=1)
    assert isinstance(folder.store, LaggingStore)
    folder.store.hidden, folder.store.num_lagging = "step-00000008", 1000

    assert restored(attempt(folder, told_step=8)) == [4]


def test_a_run_goes_on_where_what_was_told_to_be_durable_is_gone_and_says_so(folder: RunFolder) -> None:
    assert save(attempt(folder), 4) == [None]
    said: list[str] = []

    assert restored(attempt(folder, told_step=8), said.append) == [4]

    assert said == ["warning: checkpoint step-00000008 was told to be durable, and the store does not have "
                    "it: an older one is taken, if there is one"]


def test_what_an_attempt_did_not_live_to_tidy_up_goes_when_the_next_one_begins(
        folder: RunFolder, tmp_path: Path) -> None:
    first = attempt(folder)
    assert save(first, 4) == [None]
    for name in ("checkpoints/step-00000002/a1-rank-0000.bin", "checkpoints/step-00000004/a1-part-0001.json",
                 "attempts/1/heartbeat.json#1", "attempts/1/metrics/000003.jsonl#2"):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left over")

    assert restored(attempt(folder)) == [4]

    assert {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()} == {
        "a1-rank-0000.bin", "a1-rest.safetensors", "manifest.json", "attempt.json"}
    assert not (tmp_path / "run/checkpoints/step-00000002").exists()
