"""Reads pieces of a checkpoint: many at a time, each verified, in the order in which they are wanted."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from trainer.contract import checkpoint_folder
from trainer.look_ahead import look_ahead
from trainer.manifest import Manifest
from trainer.piece_codec import Raw, decode, raw_bytes
from trainer.pieces import Piece
from trainer.run_folder import RunFolder
from trainer.store import DamagedError

AT_A_TIME = 16  # guess: fills tens of Gbit/s, for 256 MiB of memory
_T = TypeVar("_T")


def _memory(num_bytes: int) -> Raw:
    return np.empty(num_bytes, np.uint8)


def read_pieces(folder: RunFolder, manifest: Manifest, pieces: Sequence[Piece],
                take_memory: Callable[[int], Raw] = _memory) -> Iterator[tuple[Piece, Raw]]:
    """Each piece with the bytes of its numbers, which hold until the next is asked for. Raises as `fetch`.

    Args:
        take_memory: For so many bytes; it is used again for other pieces, since to take some for each would
            cost more than to decode them.
    """
    base, largest = checkpoint_folder(manifest.step), max(map(raw_bytes, pieces), default=0)
    spare: deque[Raw] = deque()

    def read(piece: Piece) -> tuple[Raw, Raw]:
        try:
            memory = spare.pop()
        except IndexError:
            memory = take_memory(largest)
        return fetch(folder, base, piece, partial(decode, memory=memory)), memory

    for piece, (raw, memory) in look_ahead(read, pieces, threads=AT_A_TIME, ahead=AT_A_TIME, name="restore"):
        yield piece, raw
        spare.append(memory)


def fetch(folder: RunFolder, base: str, piece: Piece, take: Callable[[Piece, memoryview, str], _T]) -> _T:
    """What `take` makes of a piece, its stored bytes and their place.

    Args:
        base: Folder of the checkpoint.
        take: Verifies the bytes.

    Raises:
        DamagedError: It is not what was written, though it was fetched twice.
        NotFoundError: Its file is gone.
        StoreError: The store cannot be read now.
    """
    try:
        return _fetch_once(folder, base, piece, take)
    except DamagedError:  # what the network did is mended by this, what the store holds is not
        return _fetch_once(folder, base, piece, take)


def _fetch_once(folder: RunFolder, base: str, piece: Piece,
                take: Callable[[Piece, memoryview, str], _T]) -> _T:
    name = f"{base}/{piece.file}"
    data = folder.store.get_range(folder.key(name), piece.offset, piece.offset + piece.num_bytes)
    return take(piece, data, f"{folder.url}/{name}")
