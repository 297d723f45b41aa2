"""The averaged weights of a run's newest checkpoint, for sampling: no optimizer, no DeepSpeed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.manifest import TIME_DENSITY, CheckpointError, Manifest, newest_readable, read_rest
from trainer.piece_reader import read_pieces
from trainer.run_folder import RunFolder

BUFFER, TIMESTEPS = "buffer/", "timesteps/"  # before the names of small tensors in a checkpoint


def load_averaged_weights(folder: RunFolder, say: Callable[[str], None]) -> tuple[Manifest, dict[str, Any]]:
    """Averaged weights by name, with the model's buffers and `TIME_DENSITY`.

    Args:
        say: Told about each checkpoint that is passed over.

    Raises:
        CheckpointError: The run has none yet, or all are damaged.
        StoreError: The store cannot be read.
    """
    found = newest_readable(folder, lambda manifest: _weights(folder, manifest), say)
    if not found:
        raise CheckpointError("this run has no complete checkpoint yet", place=folder.url,
                              fix="wait for the first one (`ldlm status` shows the durable step); if `ldlm "
                                  "rm` has deleted them, launch a new run")
    return found


def _weights(folder: RunFolder, manifest: Manifest) -> dict[str, Any]:
    from safetensors.torch import load

    rest = load(read_rest(folder, manifest))
    weights: dict[str, Any] = {name.removeprefix(BUFFER): tensor for name, tensor in rest.items()
                               if name.startswith(BUFFER)}
    weights[TIME_DENSITY] = rest[f"{TIMESTEPS}probabilities"]
    for names, vector in zip(manifest.groups, _averages(folder, manifest), strict=True):
        begin = 0
        for name, shape in names.items():
            count = int(np.prod(shape))
            weights[name] = vector[begin:begin + count].reshape(shape).clone()
            begin += count
    return weights


def _averages(folder: RunFolder, manifest: Manifest) -> list[Any]:
    """The averaged vector of each group: stored itself, or as its distance from the weights."""
    import torch

    vectors = [torch.zeros(sum(int(np.prod(shape)) for shape in group.values())) for group in manifest.groups]
    pieces = [piece for piece in manifest.pieces if piece.kind in ("master", "average", "average_delta")]
    if any(piece.kind == "average" for piece in pieces):
        pieces = [piece for piece in pieces if piece.kind == "average"]
    for piece, raw in read_pieces(folder, manifest, pieces):
        own = vectors[piece.group][piece.begin:piece.end]
        own += torch.from_numpy(raw).view(getattr(torch, piece.dtype)).float()
    return vectors
