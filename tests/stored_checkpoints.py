"""Checkpoints as a trainer leaves them, of random numbers: real pieces and hashes, any store, no torch.

    python -m tests.stored_checkpoints ADDRESS RUN STEP [NUM_PIECES]

for tests in the launcher's environment, which has no xxHash.
"""

import hashlib
import sys

import numpy as np

from trainer.contract import Name, checkpoint_folder
from trainer.manifest import Manifest, Shard, StoredFile
from trainer.piece_codec import digest, encode
from trainer.pieces import Piece
from trainer.run_folder import RunFolder
from trainer.store import open_store

PIECE_ELEMENTS = 2**16  # 256 KiB of float32: small enough that a test has many of them


def commit(folder: RunFolder, step: int, num_pieces: int = 4, num_ranks: int = 2) -> Manifest:
    """Store a checkpoint, its manifest last; `num_pieces` of each rank."""
    base, pieces, shards = checkpoint_folder(step), [], []
    numbers = np.random.default_rng(step)
    for rank in range(num_ranks):
        name, data = f"a1-rank-{rank:04d}.bin", b""
        for index in range(num_pieces):
            raw = numbers.standard_normal(PIECE_ELEMENTS, np.float32).view(np.uint8)
            buffers = encode(raw, "float32")
            stored = b"".join(buffers)
            pieces.append(Piece(kind="master", dtype="float32", group=0, count=PIECE_ELEMENTS, file=name,
                                begin=(rank * num_pieces + index) * PIECE_ELEMENTS, offset=len(data),
                                num_bytes=len(stored), packed_bytes=len(buffers[0]), xxh3=digest(stored)))
            data += stored
        folder.write_bytes(f"{base}/{name}", data)
        shards.append(Shard(name=name, num_bytes=len(data)))
    rest = f"small tensors of {step}".encode()
    folder.write_bytes(f"{base}/a1-rest.safetensors", rest)
    manifest = Manifest(
        step=step, attempt=1, world_size=num_ranks, shards=shards, pieces=pieces, groups=[], model={},
        data_fingerprint="x", rest=StoredFile(name="a1-rest.safetensors", num_bytes=len(rest),
                                              sha256=hashlib.sha256(rest).hexdigest()))
    folder.write(f"{base}/{Name.MANIFEST}", manifest)
    return manifest


if __name__ == "__main__":
    address, run_id, *numbers_typed = sys.argv[1:]
    commit(RunFolder(open_store(address), run_id), *map(int, numbers_typed))
