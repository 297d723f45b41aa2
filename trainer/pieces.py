"""Where the numbers of a checkpoint lie: in pieces, each with its hash. `piece_codec.py` makes them."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

# What a checkpoint holds of every trained parameter, and in which form.
Kind = Literal["master", "momentum", "variance", "average", "average_delta"]
# `float24`: float32 whose last eight bits of mantissa are zero; they are not stored.
DType = Literal["float32", "float24", "bfloat16"]
ITEM_BYTES: dict[DType, int] = {"float32": 4, "float24": 4, "bfloat16": 2}  # in memory
ZERO_BYTES: dict[DType, int] = {"float32": 0, "float24": 1, "bfloat16": 0}  # of these, the lowest ones
# In the store, before exponents are compressed.
STORED_BYTES: dict[DType, int] = {dtype: ITEM_BYTES[dtype] - ZERO_BYTES[dtype] for dtype in ITEM_BYTES}
PIECE_ELEMENTS = 2**22  # 16 MiB of float32: large enough for a request, small enough to hold several


class Stretch(NamedTuple):
    """Part of one vector.

    Attributes:
        group: Parameter group.
        begin: First element in the group's vector, over all ranks.
        count: Elements.
    """

    kind: Kind
    dtype: DType
    group: int
    begin: int
    count: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs


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
    def spared_bytes(self) -> int:
        """By which compression has made it shorter."""
        return self.count * STORED_BYTES[self.dtype] - self.num_bytes

    @property
    def end(self) -> int:
        """One past its last element."""
        return self.begin + self.count

    def common(self, stretch: Stretch) -> tuple[int, int] | None:
        """The elements of a group that lie in both: the first, and one past the last."""
        begin, end = max(self.begin, stretch.begin), min(self.end, stretch.begin + stretch.count)
        return (begin, end) if self.group == stretch.group and begin < end else None
