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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from pydantic import BaseModel
from torch import distributed as dist

from trainer.contract import ConfigError, LdlmError, Name, StoreError, checkpoint_folder
from trainer.manifest import CheckpointError, Manifest, StoredFile, newest_verified, retain
from trainer.run_folder import RunFolder


class _Part(BaseModel):
    """What one rank has uploaded for one save."""

    attempt: int
    files: list[StoredFile]


class _Capture(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's hook: `save` keeps a copy on the host instead of writing a file."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Any] = {}

    def create(self, info: CheckpointCommitInfo) -> None:
        self.taken = {}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing goes to the disk."""

    def save(self, state_dict: Any, path: str) -> None:
        self.taken[Path(path).name] = _copy_to_host(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:
        # The files' hashes were checked against the manifest; they hold the run's own optimizer.
        return torch.load(path, map_location=map_location, weights_only=False)

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
    """Saves and restores one DeepSpeed engine. Every rank has one and calls the same methods.

    Args:
        folder: The run.
        attempt: Number of this attempt; part of every file name, so that a torn save of an earlier
            attempt can never be mixed with one of this.
        engine: What `deepspeed.initialize` returned.
        keep: Complete checkpoints to keep.
        data_fingerprint: Of the text; a checkpoint of another text is not continued.
        model: Goes into the manifest.
    """

    def __init__(self, folder: RunFolder, attempt: int, engine: Any, *, keep: int,
                 data_fingerprint: str, model: dict[str, int]) -> None:
        self._folder = folder
        self._attempt = attempt
        self._engine = engine
        self._keep = keep
        self._data_fingerprint = data_fingerprint
        self._model = model
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._failures: dist.Store = dist.distributed_c10d._get_default_store()
        self._capture = engine.checkpoint_engine = _Capture()
        self._thread: threading.Thread | None = None
        self._error: LdlmError | None = None
        self.durable_step = 0

    # -- save ---------------------------------------------------------------------------------

    def save(self, step: int, client_state: dict[str, Any], extra: dict[str, bytes]) -> None:
        """Snapshot now, upload in the background. Waits for the save before it, if one is in flight.

        Args:
            step: Optimizer steps done.
            client_state: Comes back from `restore`; tensors and plain values.
            extra: Further files of this rank (rank 0: the averaged weights).
        """
        self.wait()
        # Only DeepSpeed's recovery script is written there; the shards go to `_Capture`.
        with tempfile.TemporaryDirectory(prefix="ldlm-save-") as scratch:
            self._engine.save_checkpoint(scratch, tag="it", client_state=client_state, save_latest=False)
        shards = {f"a{self._attempt}-{name}": state for name, state in self._capture.taken.items()}
        self._capture.taken = {}
        self._thread = threading.Thread(target=self._upload, args=(step, shards, extra), name="checkpoint")
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

    def _upload(self, step: int, shards: dict[str, Any], extra: dict[str, bytes]) -> None:
        base = checkpoint_folder(step)
        try:
            files = [self._put(base, name, _serialise(state)) for name, state in shards.items()]
            files += [self._put(base, f"a{self._attempt}-{name}", data) for name, data in extra.items()]
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
        self._folder.write_bytes(f"{base}/{name}", data)
        return StoredFile(name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _commit(self, step: int) -> None:
        """Wait for every rank's part list, then make the checkpoint count."""
        base = checkpoint_folder(step)
        parts = [self._await_part(step, rank) for rank in range(self._world_size)]
        manifest = Manifest(step=step, attempt=self._attempt, world_size=self._world_size,
                            files=[file for part in parts for file in part.files],
                            data_fingerprint=self._data_fingerprint, model=self._model)
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
        """Load the newest complete checkpoint that verifies into the engine, on every rank.

        Returns:
            The `client_state` of the save, with `step`; `files` holds rank 0's extra files. None: no
            checkpoint yet.

        Raises:
            CheckpointError: None of the committed ones is usable, or it was made by another number
                of ranks.
            ConfigError: It was trained on another text.
        """
        with tempfile.TemporaryDirectory(prefix="ldlm-restore-") as local:
            found = newest_verified(self._folder, lambda file: True, say)
            agreed: list[Any] = [found[0].step if found else None]
            dist.broadcast_object_list(agreed, src=0)
            if agreed[0] != (found[0].step if found else None):
                raise CheckpointError("ranks do not see the same newest checkpoint", place=self._folder.url,
                                      fix="see that the store lists its objects consistently, then resume")
            if not found:
                return None
            manifest, files = found
            self._require_same_world(manifest)
            self._require_same_text(manifest)
            extra = self._lay_out(Path(local), manifest, files)
            _, client_state = self._engine.load_checkpoint(local, tag="it", load_module_strict=True)
            if client_state is None:
                raise CheckpointError(f"DeepSpeed could not load the checkpoint of step {manifest.step}",
                                      place=f"{self._folder.url}/{checkpoint_folder(manifest.step)}",
                                      fix="resume with the versions that saved it "
                                          "(trainer/requirements.lock)")
            self.durable_step = manifest.step
            return {**client_state, "step": manifest.step, "files": extra}

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

    def _lay_out(self, local: Path, manifest: Manifest, files: dict[str, bytes]) -> dict[str, bytes]:
        """Write the shards where DeepSpeed looks for them; hand the other files back."""
        (local / "it").mkdir()
        prefix, extra = f"a{manifest.attempt}-", {}
        for name, data in files.items():
            if name.endswith(".pt"):
                (local / "it" / name.removeprefix(prefix)).write_bytes(data)
            else:
                extra[name.removeprefix(prefix)] = data
        return extra


def _serialise(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
