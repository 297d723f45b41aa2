"""A stretch of numbers as it lies in a checkpoint: the bytes of exponents compressed, the rest as it is.

Of a float, mantissa bits are noise that no compressor shortens; sign and exponent take about half of their
byte (measured in recipes/LOG.md). So only that byte of each number is compressed, which costs a fraction of
a core's second per GB, and an upload is a fifth smaller. Every piece has a hash of its own: a reader that
wants a part of a checkpoint verifies what it reads. No torch: sampling and the launcher read checkpoints.
"""

from typing import Literal

import numpy as np
import xxhash
import zstandard
from pydantic import BaseModel, ConfigDict

from trainer.store import DamagedError

# What a checkpoint holds of every trained parameter, and in which form.
Kind = Literal["master", "momentum", "variance", "average", "average_delta"]
DType = Literal["float32", "bfloat16"]
ITEM_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2}
PIECE_ELEMENTS = 2**22  # 16 MiB of float32: large enough for a request, small enough to hold several
_LEVEL = 1  # zstd's fastest: higher ones shorten exponents by less than 2 % (measured)


class Piece(BaseModel):
    """Where a stretch of one vector lies, and what proves that it is whole.

    Attributes:
        group: Parameter group of the optimizer, whose parameters lie end to end in one vector.
        begin: First element in that vector, over all ranks.
        count: Elements.
        file: Name in the checkpoint's folder.
        offset: First byte in the file.
        num_bytes: In the file.
        packed_bytes: The first of them: the compressed bytes of exponents.
        xxh3: Of the bytes in the file, 128 bits in hex.
    """

    model_config = ConfigDict(frozen=True)
    kind: Kind
    dtype: DType
    group: int
    begin: int
    count: int
    file: str
    offset: int
    num_bytes: int
    packed_bytes: int
    xxh3: str

    @property
    def end(self) -> int:
        """One past its last element."""
        return self.begin + self.count


def encode(raw: "np.ndarray[tuple[int], np.dtype[np.uint8]]", item_bytes: int) -> list[memoryview]:
    """Numbers as they are stored: the compressed bytes of exponents, then the others.

    Args:
        raw: Their bytes, little-endian.
        item_bytes: Of one number.
    """
    planes = np.ascontiguousarray(raw.reshape(-1, item_bytes).T)
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(planes[-1])
    return [memoryview(packed), memoryview(planes[:-1]).cast("B")]


def digest(*stored: memoryview | bytes) -> str:
    """The hash of stored bytes, which may lie in several buffers."""
    found = xxhash.xxh3_128()
    for part in stored:
        found.update(part)
    return found.hexdigest()


def decode(piece: Piece, data: bytes, place: str) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Bytes of the numbers of a piece, little-endian. Raises DamagedError where they are not what was stored."""
    if len(data) != piece.num_bytes or digest(data) != piece.xxh3:
        raise DamagedError(f"its bytes {piece.offset} to {piece.offset + piece.num_bytes} are not what was "
                           "written (XXH3 differs): the file is corrupt", place=place)
    item_bytes = ITEM_BYTES[piece.dtype]
    planes = np.empty((item_bytes, piece.count), np.uint8)
    plain = np.frombuffer(data, np.uint8, offset=piece.packed_bytes)
    planes[:-1] = plain.reshape(item_bytes - 1, piece.count)
    unpacked = zstandard.ZstdDecompressor().decompress(data[:piece.packed_bytes], max_output_size=piece.count)
    planes[-1] = np.frombuffer(unpacked, np.uint8)
    return np.ascontiguousarray(planes.T).reshape(-1)
