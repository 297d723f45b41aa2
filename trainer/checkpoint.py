"""Checkpoints that exist only when they are whole.

A save copies the state to host memory; a thread of each rank compresses and uploads that rank's shard, then
a part list with sizes and hashes; rank 0's thread waits for every part list and writes `manifest.json`
LAST. So a machine may vanish at any moment: the newest folder whose manifest parses and whose files
have their sizes is the state of the run, everything else is debris of a save that did not finish.

The format is our own, not DeepSpeed's: its files bind a run to one number of ranks and its `latest` pointer
names a checkpoint before the other ranks have written theirs (seen with 0.19.8).
"""

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from pydantic import BaseModel
from safetensors import torch as safetensors
from torch import Tensor
from torch import distributed as dist

from trainer.averaged_weights import BUFFER, TIMESTEPS
from trainer.contract import ConfigError, LdlmError, Name, StoreError, checkpoint_folder
from trainer.manifest import (
    CheckpointError,
    EncoderIdentity,
    Manifest,
    Shard,
    StoredFile,
    newest_readable,
    quarantine,
    read_rest,
)
from trainer.piece_codec import digest, encode
from trainer.piece_reader import read_pieces
from trainer.pieces import ITEM_BYTES, Piece
from trainer.retention import retain
from trainer.run_folder import RunFolder
from trainer.snapshot import Copied, Snapshot
from trainer.train_state import TORCH, Stretch, TrainState

_ENCODERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # threads: each compresses 0.7 GB/s (measured)
_REST = "rest.safetensors"
_REST_BYTES = 16 * 2**20  # of small tensors, and of what is lost between them (guess)


class _Part(BaseModel):
    """What one rank has uploaded for one save."""

    attempt: int
    shard: Shard
    pieces: list[Piece]


class MeasuredSave(NamedTuple):
    """One save of all ranks: bytes in the store, and the time from its beginning until it was durable."""

    num_bytes: int
    seconds: float


class Checkpointer:
    """Saves and restores what a run goes on from. Every rank has one and calls the same methods.

    Args:
        folder: The run.
        attempt: Number of this attempt; file names carry it, so that attempts never overwrite each other.
        state: This rank's share.
        model: Its buffers are saved too.
        groups: Name and shape of the parameters of each group, see `Manifest`.
        device: Where they lie.
        keep: Complete checkpoints to keep.
        identity: What a manifest says about text, encoder, model and precision; a restore needs the same.
        before_commit: Called by rank 0 before a checkpoint counts, in the background; what it raises
            makes the save fail.

    Attributes:
        durable_step: Newest step whose manifest this process knows to be committed (rank 0 only).
        measured: What the newest durable save has shown (rank 0 only); None: there was none yet.
    """

    def __init__(self, folder: RunFolder, attempt: int, state: TrainState, model: torch.nn.Module,
                 groups: list[dict[str, list[int]]], device: torch.device, *, keep: int, identity: "Identity",
                 before_commit: Callable[[], None]) -> None:
        self._folder = folder
        self._attempt = attempt
        self._state = state
        self._model = model
        self._groups = groups
        # To ask the model for its state at each save would take milliseconds.
        self._buffer_names = model.state_dict().keys() - {name for group in groups for name in group}
        self._keep = keep
        self._identity = identity
        self._before_commit = before_commit
        sizes = (stretch.count * ITEM_BYTES[stretch.dtype] for stretch in state.stretches(rounded=True))
        self._snapshot = Snapshot(device, sum(sizes) + _REST_BYTES)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._failures: dist.Store = dist.distributed_c10d._get_default_store()
        self._thread: threading.Thread | None = None
        self._error: LdlmError | None = None
        self._began_s = 0.0
        self.durable_step = 0
        self.measured: MeasuredSave | None = None

    @property
    def upload_bytes_per_s(self) -> float | None:
        """Of all ranks together, as the newest save has shown (rank 0 only); None: there was none yet."""
        return self.measured and self.measured.num_bytes / self.measured.seconds

    # -- save ---------------------------------------------------------------------------------

    def save(self, step: int, timesteps: dict[str, Tensor]) -> None:
        """Begin to copy, upload in the background. Waits for the save before it, if one is in flight.

        Args:
            step: Optimizer steps done.
            timesteps: State of the timestep sampler; comes back from `restore`.
        """
        self.wait()
        self._began_s = time.monotonic()
        rest = {f"{TIMESTEPS}{name}": tensor for name, tensor in timesteps.items()}
        rest |= {f"{BUFFER}{name}": tensor for name, tensor in self._buffers().items()}
        copied, kept = self._snapshot.take(self._state, rest if self._rank == 0 else {},
                                           rounded=self._state.begin_reading(step))
        self._thread = threading.Thread(target=self._upload, args=(step, copied, kept), name="checkpoint")
        self._thread.start()

    def settle(self) -> None:
        """To be called before weights, moments or average may change."""
        self._snapshot.settle()

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

    def _buffers(self) -> dict[str, Tensor]:
        return {name: self._model.get_buffer(name) for name in self._buffer_names}

    def _upload(self, step: int, copied: list[Copied], rest: dict[str, Tensor]) -> None:
        base = checkpoint_folder(step)
        try:
            self._snapshot.wait()
            part = self._put_shard(base, copied)
            if self._rank == 0:
                self._commit(step, self._put_rest(base, rest), part)
            else:
                self._folder.write(f"{base}/part-{self._rank:04d}.json", part)
        except Exception as error:  # whatever it is, training must hear that this save does not count
            known = isinstance(error, LdlmError)
            self._error = error if known else LdlmError(f"{type(error).__name__}: {error}")
            self._failures.set(self._failure_key(step, self._rank), "failed")
            return
        if self._rank == 0:
            self._retain(step)

    def _failure_key(self, step: int, rank: int) -> str:
        return f"ldlm/{self._attempt}/save-{step}/rank-{rank}"

    def _put_shard(self, base: str, copied: list[Copied]) -> _Part:
        """Compress and upload piece by piece: host memory holds a few of them twice."""
        name, pieces = f"a{self._attempt}-rank-{self._rank:04d}.bin", []

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
        return _Part(attempt=self._attempt, shard=shard, pieces=pieces)

    def _put_rest(self, base: str, rest: dict[str, Tensor]) -> StoredFile:
        data, name = safetensors.save(rest), f"a{self._attempt}-{_REST}"
        self._folder.write_bytes(f"{base}/{name}", data)
        return StoredFile(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _commit(self, step: int, rest: StoredFile, own: _Part) -> None:
        """Wait for every rank's part list, then make the checkpoint count."""
        parts = [own, *(self._await_part(step, rank) for rank in range(1, self._world_size))]
        manifest = Manifest(step=step, attempt=self._attempt, world_size=self._world_size,
                            shards=[part.shard for part in parts],
                            pieces=[piece for part in parts for piece in part.pieces], rest=rest,
                            groups=self._groups, **self._identity.model_dump())
        self._before_commit()
        self._folder.write(f"{checkpoint_folder(step)}/{Name.MANIFEST}", manifest)
        self.measured = MeasuredSave(sum(part.shard.num_bytes for part in parts) + rest.num_bytes,
                                     time.monotonic() - self._began_s)
        self.durable_step = step

    def _await_part(self, step: int, rank: int, timeout_s: float = 1800) -> _Part:
        name = f"{checkpoint_folder(step)}/part-{rank:04d}.json"
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up and not self._failures.check([self._failure_key(step, rank)]):
            part = self._folder.find(name, _Part)
            if part and part.attempt == self._attempt:
                return part
            time.sleep(0.1)
        raise StoreError(f"rank {rank} did not upload its shard", place=f"{self._folder.url}/{name}",
                         fix="look for that rank's error in the log")

    def _retain(self, step: int) -> None:
        """Delete what the newest checkpoint makes superfluous. It counts already: failing here is no loss."""
        try:
            retain(self._folder, step, self._keep)
        except LdlmError as error:
            print(f"warning: old checkpoints not deleted: {error}", flush=True)

    # -- restore ------------------------------------------------------------------------------

    def restore(self, say: Callable[[str], None]) -> tuple[int, dict[str, Tensor]] | None:
        """Load the newest complete checkpoint that every rank can read, whatever number of ranks saved it.

        Returns:
            Its step, and what `save` was given. None: no checkpoint yet.

        Raises:
            CheckpointError: None of the committed ones is usable.
            ConfigError: It is of another model or precision, or was trained on another text or with another
                token encoder.
            StoreError: The store cannot be read.
        """
        before: int | None = None
        while True:
            found, failure = self._own_newest(say, before)
            seen: list[int | LdlmError | None] = [None] * self._world_size
            dist.all_gather_object(seen, failure or (found[0] if found else None))
            # One rank's failure is everybody's, or the others would report that they lost a peer.
            for other in seen:
                if isinstance(other, LdlmError):
                    raise other
            if len(set(seen)) == 1:
                break
            if None in seen:
                raise CheckpointError("ranks do not see the same checkpoints", place=self._folder.url,
                                      fix="see that the store lists its objects consistently, then resume")
            before = min(step for step in seen if isinstance(step, int)) + 1
        if found:
            self._state.end_writing()
            self.durable_step = found[0]
        return found

    def _own_newest(self, say: Callable[[str], None], before: int | None) -> tuple[
            tuple[int, dict[str, Tensor]] | None, LdlmError | None]:
        """What this rank has read, or why it has read nothing."""
        try:
            found = newest_readable(self._folder, self._read, say, on_damaged=self._put_aside, before=before)
        except LdlmError as error:
            return None, error
        return (found[0].step, found[1]) if found else None, None

    def _put_aside(self, manifest: Manifest, error: LdlmError) -> None:
        # Only this rank may have read what is damaged.
        print(f"rank {self._rank}: checkpoint of step {manifest.step} not used, and put in quarantine: "
              f"{error}", flush=True)
        try:
            quarantine(self._folder, manifest.step, error.problem, self._attempt)
        except LdlmError as unwritten:
            print(f"warning: rank {self._rank}: quarantine not written: {unwritten}", flush=True)

    def _read(self, manifest: Manifest) -> dict[str, Tensor]:
        """Bring one checkpoint into this rank's state and the model's buffers."""
        self._identity.check(Identity.of(manifest), manifest.step)
        self._check_groups(manifest)
        rest = safetensors.load(read_rest(self._folder, manifest))
        own = [stretch for stretch in self._state.stretches(rounded=False) if stretch.kind == "master"]
        wanted = [piece for piece in manifest.pieces if any(_common(piece, stretch) for stretch in own)]
        # What lies as a distance from the weights comes after them.
        wanted.sort(key=lambda piece: (piece.kind == "average_delta", piece.file, piece.offset))
        self._state.begin_writing(manifest.step)
        for piece, raw in read_pieces(self._folder, manifest, wanted):
            values = torch.from_numpy(raw).view(TORCH[piece.dtype])
            for begin, end in filter(None, (_common(piece, stretch) for stretch in own)):
                self._state.write(Stretch(piece.kind, piece.dtype, piece.group, begin, end - begin),
                                  values[begin - piece.begin:end - piece.begin])
        for name, buffer in self._buffers().items():
            buffer.copy_(rest[f"{BUFFER}{name}"])
        return {name.removeprefix(TIMESTEPS): tensor for name, tensor in rest.items()
                if name.startswith(TIMESTEPS)}

    def _check_groups(self, manifest: Manifest) -> None:
        here, there = [{name: shape for group in groups for name, shape in group.items()}
                       for groups in (self._groups, manifest.groups)]
        for name in sorted({*here, *there}):
            if there.get(name) != here.get(name):
                raise _other_model(manifest.step, name, there.get(name), here.get(name))


class Identity(BaseModel):
    """What has to be the same in all attempts of a run; fields of `Manifest`."""

    data_fingerprint: str
    model: dict[str, int]
    precision: str
    encoder: EncoderIdentity | None

    @classmethod
    def of(cls, manifest: Manifest) -> "Identity":
        """Of the attempt that saved a checkpoint."""
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})

    def check(self, began: "Identity", step: int) -> None:
        """Refuse to go on from the steps so far where something is another. Raises ConfigError."""
        if began.data_fingerprint != self.data_fingerprint:
            raise ConfigError(
                f"the text is not the one that the {step} steps so far were trained on", place="data.source",
                fix="bring that text back (`python-docs` changes with Python's version), or launch a new run")
        if began.encoder is not None and self.encoder is not None and began.encoder.key != self.encoder.key:
            raise ConfigError(
                f"the token encoder is not the one that the {step} steps so far were trained with: "
                f"{began.encoder} then, {self.encoder} now", place="token_encoder",
                fix="bring that encoder back, or launch a new run")
        pairs = [("precision", began.precision, self.precision),
                 *((name, began.model.get(name), self.model.get(name)) for name in self.model)]
        for name, there, here in pairs:
            if there != here:
                raise _other_model(step, name, there, here)


def _other_model(step: int, name: str, there: object, here: object) -> ConfigError:
    return ConfigError(
        f"the checkpoint of step {step} is of another model: {name} is {there} there and {here} here",
        place="train", fix="resume with the recipe that the run began with, or launch a new run")


def _common(piece: Piece, stretch: Stretch) -> tuple[int, int] | None:
    """The elements that lie in both."""
    begin, end = max(piece.begin, stretch.begin), min(piece.end, stretch.begin + stretch.count)
    return (begin, end) if piece.group == stretch.group and begin < end else None


def _encoded(copied: Sequence[Copied]) -> Iterator[tuple[Stretch, list[memoryview]]]:
    """Stretches as they are stored, in their order, compressed several at a time."""
    following = (piece for whole in copied for piece in whole.pieces())
    with ThreadPoolExecutor(_ENCODERS, thread_name_prefix="encode") as pool:
        under_way: deque[tuple[Stretch, Future[list[memoryview]]]] = deque()

        def begin(count: int) -> None:
            for stretch, raw in islice(following, count):
                under_way.append((stretch, pool.submit(encode, raw, stretch.dtype)))

        begin(2 * _ENCODERS)
        while under_way:
            stretch, encoded = under_way.popleft()
            yield stretch, encoded.result()
            begin(1)
