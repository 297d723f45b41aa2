"""Checkpoints that exist only when they are whole.

A save copies the state to host memory; a thread of each rank uploads that rank's shards, then a part
list with sizes and SHA-256; rank 0's thread waits for every part list and writes `manifest.json`
LAST. So a machine may vanish at any moment: the newest folder whose manifest parses and whose files
have their sizes is the state of the run, everything else is debris of a save that did not finish.

DeepSpeed writes its shards through `_Capture`; its own `latest` pointer is never used, because it
names a checkpoint before the other ranks have written theirs (seen with 0.19.8).
"""

import hashlib
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from pydantic import BaseModel
from safetensors import torch as safetensors
from torch import distributed as dist

from trainer.average import WeightAverage
from trainer.contract import ConfigError, LdlmError, Name, StoreError, checkpoint_folder
from trainer.manifest import (
    TIME_DENSITY,
    CheckpointError,
    EncoderIdentity,
    Manifest,
    StoredFile,
    averages_file,
    newest_verified,
    retain,
)
from trainer.run_folder import RunFolder

_TAG = "it"  # DeepSpeed's name for a checkpoint: a folder that only it sees


class _Part(BaseModel):
    """What one rank has uploaded for one save."""

    attempt: int
    files: list[StoredFile]


class _Capture(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's hook: `save` keeps a copy on the host instead of writing a file, `load` reads one.

    Attributes:
        taken: What was saved last, by file name.
        given: Files to load from, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Any] = {}
        self.given: dict[str, bytes] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        self.taken = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing goes to the disk."""

    def save(self, state_dict: Any, path: str) -> None:
        self.taken[Path(path).name] = _copy_to_host(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        # The files' hashes were checked against the manifest; they hold the run's own optimizer.
        return torch.load(io.BytesIO(self.given[Path(path).name]), map_location=map_location,
                          weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True


def _copy_to_host(value: Any) -> Any:
    """Deep copy with every tensor in host memory, so that training can go on changing the original."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy_to_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        copied = [_copy_to_host(item) for item in value]
        return copied if isinstance(value, list) else tuple(copied)
    return value


class Checkpointer:
    """Saves and restores one DeepSpeed engine and its average. Every rank has one and calls the same methods.

    Args:
        folder: The run.
        attempt: Number of this attempt; file names carry it, so that attempts never overwrite each other.
        engine: The DeepSpeed engine.
        average: The running average of its weights.
        keep: Complete checkpoints to keep.
        data_fingerprint: Of the text that is trained on.
        encoder: The token encoder of this attempt.
        model: What a manifest says about the model, see `Manifest`.
        before_commit: Called by rank 0 before a checkpoint counts, in the background; what it raises
            makes the save fail.

    Attributes:
        durable_step: Newest step whose manifest this process knows to be committed (rank 0 only).
    """

    def __init__(self, folder: RunFolder, attempt: int, engine: Any, average: WeightAverage, *, keep: int,
                 data_fingerprint: str, encoder: EncoderIdentity, model: dict[str, int],
                 before_commit: Callable[[], None]) -> None:
        self._folder = folder
        self._attempt = attempt
        self._engine = engine
        self._average = average
        self._keep = keep
        self._data_fingerprint = data_fingerprint
        self._encoder = encoder
        self._model = model
        self._before_commit = before_commit
        self._shapes = {name: list(weight.shape) for name, weight in engine.module.named_parameters()}
        self._engine_kind = f"{engine.get_data_types()[0]}, ZeRO stage {engine.zero_optimization_stage()}"
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._failures: dist.Store = dist.distributed_c10d._get_default_store()
        self._capture = engine.checkpoint_engine = _Capture()
        self._thread: threading.Thread | None = None
        self._error: LdlmError | None = None
        self.durable_step = 0

    # -- save ---------------------------------------------------------------------------------

    def save(self, step: int, client_state: dict[str, Any]) -> None:
        """Snapshot now, upload in the background. Waits for the save before it, if one is in flight.

        Args:
            step: Optimizer steps done.
            client_state: Comes back from `restore`; tensors and plain values. `timesteps` is the state of
                the timestep sampler: sampling needs its density.

        Raises:
            StoreError: There is no room for temporary files.
        """
        self.wait()
        # Only DeepSpeed's recovery script is written there; the shards go to `_Capture`.
        with _scratch_folder("ldlm-save-") as scratch:
            self._engine.save_checkpoint(scratch, tag=_TAG, client_state=client_state, save_latest=False)
        shards, self._capture.taken = self._capture.taken, {}
        averages = self._average.state_dict()
        if self._rank == 0:
            buffers = {name: value for name, value in self._engine.module.state_dict().items()
                       if name not in self._shapes}
            averages |= _copy_to_host({**buffers, TIME_DENSITY: client_state["timesteps"]["probabilities"]})
        self._thread = threading.Thread(target=self._upload, args=(step, shards, averages), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when no save is in flight."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def pop_error(self) -> LdlmError | None:
        """Why the last finished save failed on this rank, once; None if it did not."""
        error, self._error = self._error, None
        return error

    def _upload(self, step: int, shards: dict[str, Any], averages: dict[str, torch.Tensor]) -> None:
        base = checkpoint_folder(step)
        try:
            files = [self._put(base, name, data) for name, data in serialised(shards)]
            files.append(self._put(base, averages_file(self._rank), safetensors.save(averages)))
            part = _Part(attempt=self._attempt, files=files)
            self._folder.write(f"{base}/part-{self._rank:04d}.json", part)
            if self._rank == 0:
                self._commit(step)
        except Exception as error:  # whatever it is, training must hear that this save does not count
            known = isinstance(error, LdlmError)
            self._error = error if known else LdlmError(f"{type(error).__name__}: {error}")
            self._failures.set(self._failure_key(step, self._rank), "failed")
            return
        if self._rank == 0:
            self._retain(step)

    def _failure_key(self, step: int, rank: int) -> str:
        return f"ldlm/{self._attempt}/save-{step}/rank-{rank}"

    def _put(self, base: str, name: str, data: bytes) -> StoredFile:
        name = f"a{self._attempt}-{name}"
        self._folder.write_bytes(f"{base}/{name}", data)
        return StoredFile(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _commit(self, step: int) -> None:
        """Wait for every rank's part list, then make the checkpoint count."""
        base = checkpoint_folder(step)
        parts = [self._await_part(step, rank) for rank in range(self._world_size)]
        manifest = Manifest(step=step, attempt=self._attempt, world_size=self._world_size,
                            files=[file for part in parts for file in part.files],
                            data_fingerprint=self._data_fingerprint, model=self._model,
                            shapes=self._shapes, engine=self._engine_kind, encoder=self._encoder)
        self._before_commit()
        self._folder.write(f"{base}/{Name.MANIFEST}", manifest)
        self.durable_step = step

    def _await_part(self, step: int, rank: int, timeout_s: float = 1800) -> _Part:
        name = f"{checkpoint_folder(step)}/part-{rank:04d}.json"
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up and not self._failures.check([self._failure_key(step, rank)]):
            part = self._folder.find(name, _Part)
            if part and part.attempt == self._attempt:
                return part
            time.sleep(0.1)
        raise StoreError(f"rank {rank} did not upload its shards", place=f"{self._folder.url}/{name}",
                         fix="look for that rank's error in the log")

    def _retain(self, step: int) -> None:
        """Delete what the newest checkpoint makes superfluous. It counts already: failing here is no loss."""
        try:
            retain(self._folder, step, self._keep)
        except LdlmError as error:
            print(f"warning: old checkpoints not deleted: {error}", flush=True)

    # -- restore ------------------------------------------------------------------------------

    def restore(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """Load the newest complete checkpoint that verifies into engine and average, on every rank.

        A rank reads the model's states, its own share of the optimizer's and its own averages.

        Returns:
            The `client_state` of the save, with `step`. None: no checkpoint yet.

        Raises:
            CheckpointError: None of the committed ones is usable, or it was made by another number
                of ranks.
            ConfigError: It is of another model, precision or ZeRO stage, or was trained on another text or
                with another token encoder.
            StoreError: The store cannot be read, or there is no room for temporary files.
        """
        found = self._agreed_newest(say)
        if not found:
            return None
        manifest, stored = found
        self._require_same_world(manifest)
        self._require_same_text(manifest)
        self._require_same_encoder(manifest)
        self._require_same_model(manifest)
        files = {name.removeprefix(f"a{manifest.attempt}-"): data for name, data in stored.items()}
        self._average.load_state_dict(safetensors.load(files.pop(averages_file(self._rank))))
        client_state = self._load_into_engine(files)
        if client_state is None:
            raise CheckpointError(f"DeepSpeed could not load the checkpoint of step {manifest.step}",
                                  place=f"{self._folder.url}/{checkpoint_folder(manifest.step)}",
                                  fix="resume with the versions that saved it (trainer/requirements.lock)")
        self.durable_step = manifest.step
        return {**client_state, "step": manifest.step}

    def _agreed_newest(self, say: Callable[[str], None]) -> tuple[Manifest, dict[str, bytes]] | None:
        """The newest checkpoint of which every rank can verify what it needs."""
        before: int | None = None
        while True:
            found, failure = self._own_newest(say, before)
            seen: list[int | LdlmError | None] = [None] * self._world_size
            dist.all_gather_object(seen, failure or (found[0].step if found else None))
            # One rank's failure is everybody's, or the others would report that they lost a peer.
            for other in seen:
                if isinstance(other, LdlmError):
                    raise other
            if len(set(seen)) == 1:
                return found
            if None in seen:
                raise CheckpointError("ranks do not see the same checkpoints", place=self._folder.url,
                                      fix="see that the store lists its objects consistently, then resume")
            before = min(step for step in seen if isinstance(step, int)) + 1

    def _own_newest(self, say: Callable[[str], None], before: int | None) -> tuple[
            tuple[Manifest, dict[str, bytes]] | None, LdlmError | None]:
        """What this rank finds, or why it finds nothing."""
        try:
            return newest_verified(self._folder, self._is_own, say, say_damaged=self._say_damaged,
                                   before=before), None
        except LdlmError as error:
            return None, error

    def _say_damaged(self, text: str) -> None:
        # Only this rank reads the file.
        print(f"rank {self._rank}: {text}", flush=True)

    def _is_own(self, file: StoredFile) -> bool:
        is_share = "optim_states" in file.name or "averages-" in file.name
        own = (f"zero_pp_rank_{self._rank}_", averages_file(self._rank))
        return not is_share or any(name in file.name for name in own)

    def _load_into_engine(self, files: dict[str, bytes]) -> dict[str, Any] | None:
        self._capture.given = files
        # DeepSpeed looks for files of these names, and has their content read by `_Capture`.
        with _scratch_folder("ldlm-restore-") as scratch:
            (Path(scratch) / _TAG).mkdir()
            for name in files:
                (Path(scratch) / _TAG / name).touch()
            _, client_state = self._engine.load_checkpoint(scratch, tag=_TAG, load_module_strict=True)
        self._capture.given = {}
        return client_state  # type: ignore[no-any-return]

    def _require_same_world(self, manifest: Manifest) -> None:
        if manifest.world_size != self._world_size:
            raise CheckpointError(
                f"the checkpoint of step {manifest.step} was saved by {manifest.world_size} ranks, "
                f"this attempt has {self._world_size}", place=self._folder.url,
                fix=f"resume on hardware with {manifest.world_size} GPUs or ranks")

    def _require_same_text(self, manifest: Manifest) -> None:
        if manifest.data_fingerprint != self._data_fingerprint:
            raise ConfigError(
                f"the text is not the one that the {manifest.step} steps so far were trained on",
                place="data.source",
                fix="bring that text back (`python-docs` changes with Python's version), or launch a new run")

    def _require_same_encoder(self, manifest: Manifest) -> None:
        began = manifest.encoder
        if began is not None and began.key != self._encoder.key:
            raise ConfigError(
                f"the token encoder is not the one that the {manifest.step} steps so far were trained with: "
                f"{began} then, {self._encoder} now", place="token_encoder",
                fix="bring that encoder back, or launch a new run")

    def _require_same_model(self, manifest: Manifest) -> None:
        names = sorted({*manifest.shapes, *self._shapes})
        pairs = [("the engine", manifest.engine, self._engine_kind),
                 *((name, manifest.model.get(name), self._model.get(name)) for name in self._model),
                 *((name, manifest.shapes.get(name), self._shapes.get(name)) for name in names)]
        for name, there, here in pairs:
            if there != here:
                raise ConfigError(
                    f"the checkpoint of step {manifest.step} is of another model: {name} is {there} there "
                    f"and {here} here", place="train", fix="resume with the recipe that the run began with, "
                    "or launch a new run")


@contextmanager
def _scratch_folder(prefix: str) -> Iterator[str]:
    """A temporary folder for what DeepSpeed insists to write. Raises StoreError when the disk is full."""
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield folder
    except OSError as error:
        raise StoreError(f"no temporary files can be written: {error.strerror or error}",
                         place=tempfile.gettempdir(),
                         fix="free disk space there, or set TMPDIR to a folder on another disk") from error


def serialised(states: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Each state as bytes, with its name. It is taken out first: host memory holds one of them twice."""
    for name in list(states):
        buffer = io.BytesIO()
        torch.save(states.pop(name), buffer)
        yield name, buffer.getvalue()  # the buffer's own memory, no copy
