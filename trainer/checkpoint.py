"""What a run goes on from, between the device and `trainer/commit.py`: the copy of a save, and a restore.

The format is our own, not DeepSpeed's: its files bind a run to one number of ranks and its `latest` pointer
names a checkpoint before the other ranks have written theirs (seen with 0.19.8).
"""

import time
from collections.abc import Callable

import torch
from safetensors import torch as safetensors
from torch import Tensor

from trainer.averaged_weights import BUFFER, TIMESTEPS
from trainer.commit import Committer, Content
from trainer.identity import Identity, other_model_error
from trainer.manifest import Manifest, read_rest
from trainer.piece_reader import read_pieces
from trainer.pieces import ITEM_BYTES, Stretch
from trainer.ranks import TorchPeers
from trainer.retention import Keep
from trainer.run_folder import RunFolder, SavePace
from trainer.snapshot import Snapshot
from trainer.train_state import TORCH, TrainState

_REST_BYTES = 16 * 2**20  # of small tensors, and of what is lost between them (guess)


class Checkpointer(Committer):
    """Saves and restores what a run goes on from. Every rank has one and calls the same methods.

    Args:
        folder, attempt, groups, keep, identity, before_commit, told_step, pace: See `Committer`.
        state: This rank's share.
        model: Its buffers are saved too.
        device: Where they lie.
    """

    def __init__(self, folder: RunFolder, attempt: int, state: TrainState, model: torch.nn.Module,
                 groups: list[dict[str, list[int]]], device: torch.device, *, keep: Keep, identity: Identity,
                 before_commit: Callable[[], None], told_step: int = 0, pace: SavePace | None = None) -> None:
        super().__init__(folder, attempt, TorchPeers(), groups=groups, keep=keep, identity=identity,
                         before_commit=before_commit, told_step=told_step, pace=pace)
        self._state = state
        self._model = model
        # To ask the model for its state at each save would take milliseconds.
        self._buffer_names = model.state_dict().keys() - {name for group in groups for name in group}
        sizes = (stretch.count * ITEM_BYTES[stretch.dtype] for stretch in state.stretches(rounded=True))
        self._snapshot = Snapshot(device, sum(sizes) + _REST_BYTES)

    def save(self, step: int, timesteps: dict[str, Tensor]) -> None:
        """Begin to copy, upload in the background. Waits for the save before it, if one is in flight.

        Args:
            step: Optimizer steps done.
            timesteps: State of the timestep sampler; comes back from `restore`.
        """
        self.wait()
        began_s, leads = time.monotonic(), self._peers.rank == 0
        rest = {f"{TIMESTEPS}{name}": tensor for name, tensor in timesteps.items()}
        rest |= {f"{BUFFER}{name}": tensor for name, tensor in self._buffers().items()}
        copied, kept = self._snapshot.take(self._state, rest if leads else {},
                                           rounded=self._state.begin_reading(step))

        def content() -> Content:
            self._snapshot.wait()
            return Content(copied, safetensors.save(kept) if leads else b"")

        self.begin(step, content, began_s)

    def settle(self) -> None:
        """To be called before weights, moments or average may change."""
        self._snapshot.settle()

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
        found = self.restore_newest(self._read, say)
        if found:
            self._state.end_writing()
        return found

    def _buffers(self) -> dict[str, Tensor]:
        return {name: self._model.get_buffer(name) for name in self._buffer_names}

    def _read(self, manifest: Manifest) -> dict[str, Tensor]:
        """Bring one checkpoint into this rank's state and the model's buffers."""
        self._identity.check(Identity.of(manifest), manifest.step)
        self._check_groups(manifest)
        rest = safetensors.load(read_rest(self._folder, manifest))
        own = [stretch for stretch in self._state.stretches(rounded=False) if stretch.kind == "master"]
        wanted = [piece for piece in manifest.pieces if any(map(piece.common, own))]
        # What lies as a distance from the weights comes after them.
        wanted.sort(key=lambda piece: (piece.kind == "average_delta", piece.file, piece.offset))
        self._state.begin_writing(manifest.step)
        for piece, raw in read_pieces(self._folder, manifest, wanted, self._snapshot.host_memory):
            values = torch.from_numpy(raw).view(TORCH[piece.dtype])
            for begin, end in filter(None, map(piece.common, own)):
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
                raise other_model_error(manifest.step, name, there.get(name), here.get(name))
