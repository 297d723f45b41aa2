"""A stretch of numbers as it lies in a checkpoint: the bytes of exponents compressed, the rest as it is.

Of a float, mantissa bits are noise that no compressor shortens; sign and exponent take about 3 bits of their
byte (measured in recipes/LOG.md). So only that byte of each number is compressed, and an upload is a quarter
smaller. Every piece has a hash: a reader that wants a part of a checkpoint verifies what it reads. No torch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xxhash
import zstandard

from trainer.pieces import ITEM_BYTES, PIECE_ELEMENTS, ZERO_BYTES, DType, Piece, Stretch
from trainer.store import DamagedError

Raw = np.ndarray[tuple[int], np.dtype[np.uint8]]  # bytes of numbers, little-endian
_LEVEL = 1  # zstd's fastest


class Copied(NamedTuple):
    """One stretch in host memory: its bytes."""

    stretch: Stretch
    raw: Raw

    def pieces(self) -> Iterator["Copied"]:
        """The same in stretches as they are stored."""
        item_bytes = ITEM_BYTES[self.stretch.dtype]
        for first in range(0, self.stretch.count, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, self.stretch.count - first)
            raw = self.raw[first * item_bytes:(first + count) * item_bytes]
            yield Copied(self.stretch._replace(begin=self.stretch.begin + first, count=count), raw)


def raw_bytes(piece: Piece) -> int:
    """That its numbers take in memory."""
    return piece.count * ITEM_BYTES[piece.dtype]


def encode(raw: Raw, dtype: DType) -> list[memoryview]:
    """Numbers as they are stored: the compressed bytes of exponents, then the others.

    Args:
        raw: Their bytes, little-endian.
        dtype: Of them; what it says is zero is not looked at.
    """
    planes = np.ascontiguousarray(raw.reshape(-1, ITEM_BYTES[dtype]).T[ZERO_BYTES[dtype]:])
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(planes[-1])
    return [memoryview(packed), memoryview(planes[:-1]).cast("B")]


def digest(*stored: memoryview | bytes) -> str:
    """The hash of stored bytes, which may lie in several buffers."""
    found = xxhash.xxh3_128()
    for part in stored:
        found.update(part)
    return found.hexdigest()


def is_sound(piece: Piece, data: memoryview) -> bool:
    """True for the bytes that were stored of a piece."""
    return len(data) == piece.num_bytes and digest(data) == piece.xxh3


def verified(piece: Piece, data: memoryview, place: str) -> memoryview:
    """The bytes of a piece. Raises DamagedError where what was read is not what was stored."""
    if not is_sound(piece, data):
        raise DamagedError(f"its bytes {piece.offset} to {piece.offset + piece.num_bytes} are not what was "
                           "written (XXH3 differs): the file is corrupt", place=place)
    return data


def decode(piece: Piece, data: memoryview, place: str, memory: Raw) -> Raw:
    """Bytes of the numbers of a piece: the first of `memory`. Raises as `verified`."""
    verified(piece, data, place)
    planes = np.frombuffer(data, np.uint8, offset=piece.packed_bytes).reshape(-1, piece.count)
    packed = zstandard.ZstdDecompressor().decompress(data[:piece.packed_bytes], max_output_size=piece.count)
    raw = memory[:raw_bytes(piece)]
    numbers, zeros = raw.reshape(piece.count, -1), ZERO_BYTES[piece.dtype]
    # Plane by plane: numpy takes five times as long to transpose them all (measured).
    numbers[:, :zeros] = 0
    numbers[:, -1] = np.frombuffer(packed, np.uint8)
    for index, plane in enumerate(planes, start=zeros):
        numbers[:, index] = plane
    return raw
