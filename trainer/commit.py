"""What makes a save count, and the checkpoint that all ranks go on from. The state is bytes here: no torch.

A thread of each rank compresses and uploads that rank's shard, then a part list with sizes and hashes; rank
0's thread waits for every part list and writes `manifest.json` LAST. So a machine may vanish at any moment:
the newest folder whose manifest parses and whose files have their sizes is the state of the run, everything
else is debris of a save that did not finish.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from pydantic import BaseModel

from trainer.contract import LdlmError, Name, StoreError, checkpoint_folder
from trainer.identity import Identity
from trainer.lease import check_own
from trainer.look_ahead import look_ahead
from trainer.manifest import (
    CheckpointError,
    Manifest,
    Shard,
    StoredFile,
    named_objects,
    newest_readable,
    quarantine,
)
from trainer.piece_codec import Copied, digest, encode
from trainer.pieces import Piece, Stretch
from trainer.retention import Keep, retain, withdraw
from trainer.run_folder import RunFolder, SavePace
from trainer.store import AlreadyExistsError, StoredObject

_T = TypeVar("_T")
_ENCODERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # threads: each compresses 0.7 GB/s (measured)
_REST = "rest.safetensors"
_LOOK_EVERY_S = 0.1
_ASK_EVERY_S = 5.0  # whose the run is, while another rank is waited for (guess)
_PARTS_TIMEOUT_S = 1800.0
_LISTING_LOOKS, _LISTING_LAGS_S = 3, 1.0  # where a store shows what it holds late (guess)


class Peers(Protocol):
    """The ranks of one attempt, as one of them sees them."""

    rank: int
    world_size: int

    def gather(self, own: _T) -> list[_T]:
        """What every rank has said, by rank. A collective."""

    def tell_failure(self, key: str) -> None:
        """Let the others find a failure under its name."""

    def has_failed(self, key: str) -> bool:
        """Whether somebody has told of it."""


class Content(NamedTuple):
    """What one rank saves.

    Attributes:
        copied: Its share of the state.
        rest: Small tensors, in the format of safetensors; of rank 0 only.
    """

    copied: Sequence[Copied]
    rest: bytes


class MeasuredSave(NamedTuple):
    """One save of all ranks: bytes in the store, and the time from its beginning until it was durable."""

    num_bytes: int
    seconds: float


class _Part(BaseModel):
    """What one rank has uploaded for one save."""

    shard: Shard
    pieces: list[Piece]


class Committer:
    """Uploads what a rank saves, in the background, and agrees with its peers on what is restored.

    Args:
        folder: The run.
        attempt: Number of this attempt; file names carry it, so that attempts never overwrite each other.
            From the second try of a step on they carry that, too.
        peers: The ranks of this attempt, each of which has a Committer and calls the same methods.
        groups: Name and shape of the parameters of each group, see `Manifest`.
        keep: Which checkpoints stay.
        identity: What a manifest says about text, encoder, model and precision; a restore needs the same.
        before_commit: Called by rank 0 before a checkpoint counts, in the background; what it raises
            makes the save fail.
        told_step: The newest that earlier attempts have told to be durable; 0: none.
        pace: What they have measured of their saves; None: nothing.

    Attributes:
        durable_step: Newest step whose manifest this process knows to be committed (rank 0 only).
        measured: What the newest durable save of the run has shown (rank 0 only); None: none was measured.
        spared_bytes: By which compression has made the newest checkpoint smaller (rank 0 only). It shortens
            exponents, and every number has one: state that is not rounded is shortened by as much.
    """

    def __init__(self, folder: RunFolder, attempt: int, peers: Peers, *, groups: list[dict[str, list[int]]],
                 keep: Keep, identity: Identity, before_commit: Callable[[], None],
                 told_step: int = 0, pace: SavePace | None = None) -> None:
        self._folder = folder
        self._attempt = attempt
        self._peers = peers
        self._groups = groups
        self._keep = keep
        self._identity = identity
        self._before_commit = before_commit
        self._told_step = told_step
        self._thread: threading.Thread | None = None
        self._error: LdlmError | None = None
        self._began_s = 0.0
        self._step = self._try = 0  # of the newest save
        self.durable_step = 0
        self.measured = MeasuredSave(pace.num_bytes, pace.save_s) if pace else None
        self.spared_bytes = 0

    @property
    def upload_bytes_per_s(self) -> float | None:
        """Of all ranks together, see `measured`: bytes as they are stored."""
        return self.measured and self.measured.num_bytes / self.measured.seconds

    # -- save ---------------------------------------------------------------------------------

    def begin(self, step: int, content: Callable[[], Content], began_s: float) -> None:
        """Upload in the background. To be called when no save is in flight.

        Args:
            step: Optimizer steps done.
            content: Called in the background; may wait for a copy under way.
            began_s: When the save began, on the monotonic clock.
        """
        self._began_s = began_s
        # All ranks save the same steps: each counts for itself, and all come to the same number.
        self._try = self._try + 1 if step == self._step else 1
        self._step = step
        self._thread = threading.Thread(target=self._upload, args=(step, content), name="checkpoint")
        self._thread.start()

    @property
    def is_saving(self) -> bool:
        """A save is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when no save is in flight, or when the time is over."""
        if self._thread:
            self._thread.join(timeout_s)
            self._thread = self._thread if self._thread.is_alive() else None

    def in_flight_bytes(self) -> float:
        """What the save under way has still to upload if it is as quick as the one before; 0 for none, and
        where none was measured."""
        if not self.is_saving or self.measured is None:
            return 0.0
        done = (time.monotonic() - self._began_s) / self.measured.seconds
        return self.measured.num_bytes * max(0.0, 1.0 - done)

    def pop_error(self) -> LdlmError | None:
        """Why the last finished save failed on this rank, once; None if it did not."""
        error, self._error = self._error, None
        return error

    def _upload(self, step: int, content: Callable[[], Content]) -> None:
        base = checkpoint_folder(step)
        try:
            copied, rest = content()
            part = self._put_shard(base, copied)
            if self._peers.rank == 0:
                self._commit(step, self._put_rest(base, rest), part)
            else:
                self._folder.write(self._part_file(step, self._peers.rank), part)
        except Exception as error:  # whatever it is, training must hear that this save does not count
            known = isinstance(error, LdlmError)
            self._error = error if known else LdlmError(f"{type(error).__name__}: {error}")
            self._peers.tell_failure(self._failure_key(step, self._peers.rank))
            return
        if self._peers.rank == 0:
            self._retain(step)

    def _name(self, what: str) -> str:
        """Of a file of the save under way. What an earlier try of its step has left has other names: a rank
        that is late must not be taken for done."""
        again = f"try-{self._try}-" if self._try > 1 else ""
        return f"a{self._attempt}-{again}{what}"

    def _part_file(self, step: int, rank: int) -> str:
        return f"{checkpoint_folder(step)}/{self._name(f'part-{rank:04d}.json')}"

    def _failure_key(self, step: int, rank: int) -> str:
        return f"ldlm/{self._attempt}/save-{step}/try-{self._try}/rank-{rank}"

    def _put_shard(self, base: str, copied: Sequence[Copied]) -> _Part:
        """Compress and upload piece by piece: host memory holds a few of them twice."""
        name, pieces = self._name(f"rank-{self._peers.rank:04d}.bin"), []

        def stored() -> Iterator[memoryview]:
            offset = 0
            for stretch, buffers in _encoded(copied):
                num_bytes = sum(map(len, buffers))
                pieces.append(Piece(**stretch._asdict(), file=name, offset=offset, num_bytes=num_bytes,
                                    packed_bytes=len(buffers[0]), xxh3=digest(*buffers)))
                offset += num_bytes
                yield from buffers

        self._folder.store.stream(self._folder.key(f"{base}/{name}"), stored())
        shard = Shard(name=name, num_bytes=sum(piece.num_bytes for piece in pieces))
        return _Part(shard=shard, pieces=pieces)

    def _put_rest(self, base: str, data: bytes) -> StoredFile:
        name = self._name(_REST)
        self._folder.write_bytes(f"{base}/{name}", data)
        return StoredFile(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _commit(self, step: int, rest: StoredFile, own: _Part) -> None:
        """Wait for every rank's part list, then make the checkpoint count."""
        parts = [own, *(self._await_part(step, rank) for rank in range(1, self._peers.world_size))]
        manifest = Manifest(step=step, attempt=self._attempt, world_size=self._peers.world_size,
                            shards=[part.shard for part in parts],
                            pieces=[piece for part in parts for piece in part.pieces], rest=rest,
                            groups=self._groups, **self._identity.model_dump())
        self._before_commit()
        self._write_manifest(manifest)
        self.measured = MeasuredSave(manifest.num_bytes, time.monotonic() - self._began_s)
        self.spared_bytes = manifest.spared_bytes
        self.durable_step = step

    def _write_manifest(self, manifest: Manifest) -> None:
        """The commit. It replaces what an attempt before has left there, never what a later one has: this
        machine may have slept since it last looked whose the run is."""
        base = checkpoint_folder(manifest.step)
        # Of a damaged checkpoint of this step, which must not take the good one with it.
        self._folder.store.delete([self._folder.key(f"{base}/{Name.QUARANTINE}")])
        try:
            self._folder.write(f"{base}/{Name.MANIFEST}", manifest, create=True)
        except AlreadyExistsError:
            check_own(self._folder, self._attempt)
            self._folder.write(f"{base}/{Name.MANIFEST}", manifest)

    def _await_part(self, step: int, rank: int) -> _Part:
        name, began_s, asked_s = self._part_file(step, rank), time.monotonic(), time.monotonic()
        while (not self._peers.has_failed(self._failure_key(step, rank))
               and time.monotonic() - began_s < _PARTS_TIMEOUT_S):
            if part := self._folder.find(name, _Part):
                return part
            if time.monotonic() - asked_s > _ASK_EVERY_S:
                check_own(self._folder, self._attempt)  # a later attempt deletes what it takes for debris
                asked_s = time.monotonic()
            time.sleep(_LOOK_EVERY_S)
        raise StoreError(f"rank {rank} did not upload its shard", place=f"{self._folder.url}/{name}",
                         fix="look for that rank's error in the log")

    def _retain(self, step: int) -> None:
        """Delete what the newest checkpoint makes superfluous. It counts already: failing here is no loss."""
        try:
            retain(self._folder, step, self._keep, self._attempt)
        except LdlmError as error:
            print(f"warning: old checkpoints not deleted: {error}", flush=True)

    def withdraw(self) -> None:
        """Delete what this attempt has uploaded in vain. For rank 0, when a later attempt owns the run and no
        rank saves any more: that one may have ended already, and nobody else would."""
        try:
            withdraw(self._folder, self._attempt, self._keep)
        except LdlmError as error:
            print(f"warning: saves that do not count were not deleted: {error}", flush=True)

    # -- restore ------------------------------------------------------------------------------

    def restore_newest(self, read: Callable[[Manifest], _T],
                       say: Callable[[str], None]) -> tuple[int, _T] | None:
        """Read the newest complete checkpoint that every rank can read, whatever number of ranks saved it.

        Args:
            read: Reads this rank's share of one; the last one that it has read is the one that counts.
            say: Told about each checkpoint that is passed over.

        Returns:
            Its step, and what was read. None: no checkpoint yet.

        Raises:
            CheckpointError: None of the committed ones is usable.
            LdlmError: What `read` raised on some rank: it is the same error on every rank.
            StoreError: The store cannot be read.
        """
        before: int | None = None
        looks = _LISTING_LOOKS
        while True:
            found, failure = self._own_newest(read, say, before)
            seen = self._peers.gather(failure or (found[0] if found else None))
            # One rank's failure is everybody's, or the others would report that they lost a peer.
            for other in seen:
                if isinstance(other, LdlmError):
                    raise other
            if len(set(seen)) == 1:
                break
            if None not in seen:
                before = min(step for step in seen if isinstance(step, int)) + 1
            elif not looks:
                raise CheckpointError("ranks do not see the same checkpoints", place=self._folder.url,
                                      fix="see that the store lists its objects consistently, then resume")
            else:
                looks -= 1
                time.sleep(_LISTING_LAGS_S)
        if found:
            self.durable_step = found[0]
            if self._peers.rank == 0:  # the attempt before may have been killed before it had tidied up
                self._thread = threading.Thread(target=self._retain, args=found[:1], name="retention")
                self._thread.start()
        return found

    def _own_newest(self, read: Callable[[Manifest], _T], say: Callable[[str], None],
                    before: int | None) -> tuple[tuple[int, _T] | None, LdlmError | None]:
        """What this rank has read, or why it has read nothing."""
        try:
            listed = self._listing(say) if before is None else None
            found = newest_readable(self._folder, read, say, on_damaged=self._put_aside, before=before,
                                    listed=listed)
        except LdlmError as error:
            return None, error
        if found is None:
            return None, None
        manifest, content = found
        self.spared_bytes = manifest.spared_bytes
        return (manifest.step, content), None

    def _listing(self, say: Callable[[str], None]) -> list[StoredObject]:
        """What is below the run's checkpoints. A listing may lag: the newest that was told to be durable is
        asked for by its name before the run goes back to an older one."""
        told = checkpoint_folder(self._told_step)
        name, newest = told.rpartition("/")[2], self._folder.key(f"{told}/{Name.MANIFEST}")
        for look in range(_LISTING_LOOKS):
            time.sleep(_LISTING_LAGS_S if look else 0)
            listed = self._folder.store.objects(self._folder.key(Name.CHECKPOINTS))
            if not self._told_step or any(found.key >= newest for found in listed
                                          if found.key.endswith("/" + Name.MANIFEST)):
                return listed
            if unlisted := named_objects(self._folder, self._told_step):
                say(f"checkpoint {name} is read by its name: it was told to be durable, and the store does "
                    "not list it yet")
                return [*listed, *unlisted]
        say(f"warning: checkpoint {name} was told to be durable, and the store does not have it: an older "
            "one is taken, if there is one")
        return listed

    def _put_aside(self, manifest: Manifest, error: LdlmError) -> None:
        # Only this rank may have read what is damaged.
        rank = self._peers.rank
        print(f"rank {rank}: checkpoint of step {manifest.step} not used, and put in quarantine: {error}",
              flush=True)
        try:
            quarantine(self._folder, manifest.step, error.problem, self._attempt)
        except LdlmError as unwritten:
            print(f"warning: rank {rank}: quarantine not written: {unwritten}", flush=True)


def _encoded(copied: Sequence[Copied]) -> Iterator[tuple[Stretch, list[memoryview]]]:
    """Stretches as they are stored, in their order, compressed several at a time."""
    pieces = (piece for whole in copied for piece in whole.pieces())
    encoded = look_ahead(lambda piece: encode(piece.raw, piece.stretch.dtype), pieces, threads=_ENCODERS,
                         ahead=2 * _ENCODERS, name="encode")
    return ((piece.stretch, buffers) for piece, buffers in encoded)
