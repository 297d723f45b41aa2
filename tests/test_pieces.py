"""Numbers come back from a checkpoint to the bit, in fewer bytes, or it is said that they do not."""

from pathlib import Path

import numpy as np
import pytest
from stored_checkpoints import commit

torch = pytest.importorskip("torch")

from trainer.piece_codec import Raw, decode, digest, encode, raw_bytes  # noqa: E402
from trainer.piece_reader import AT_A_TIME, read_pieces  # noqa: E402
from trainer.pieces import DType, Piece  # noqa: E402
from trainer.run_folder import RunFolder  # noqa: E402
from trainer.store import DamagedError, open_store  # noqa: E402

STRANGE = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -3e38, 1.0]


def decoded(piece: Piece, data: bytes) -> bytes:
    return decode(piece, memoryview(data), "here", np.full(raw_bytes(piece) + 5, 255, np.uint8)).tobytes()


def stored(values: "torch.Tensor", dtype: DType) -> tuple[Piece, bytes]:
    buffers = encode(values.view(torch.uint8).numpy(), dtype)
    data = b"".join(buffers)
    return Piece(kind="master", dtype=dtype, group=0, begin=0, count=len(values), file="f", offset=0,
                 num_bytes=len(data), packed_bytes=len(buffers[0]), xxh3=digest(*buffers)), data


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 8, 100_001])
def test_every_number_comes_back_to_the_bit(dtype: DType, count: int) -> None:
    values = torch.cat([torch.tensor(STRANGE), 0.02 * torch.randn(count)])[:count].to(getattr(torch, dtype))
    piece, data = stored(values, dtype)
    assert decoded(piece, data) == values.view(torch.uint8).numpy().tobytes()


def test_a_number_of_24_bits_comes_back_to_the_bit_and_takes_a_byte_less(count: int = 2**20) -> None:
    values = torch.rand(count) ** 8
    values = (values.view(torch.int32) & -256).view(torch.float32)
    piece, data = stored(values, "float24")
    assert decoded(piece, data) == values.view(torch.uint8).numpy().tobytes()
    assert len(data) < len(stored(values, "float32")[1]) - 0.99 * count


def test_weights_take_three_and_a_half_bytes_and_moments_one_and_a_half() -> None:
    weights = 0.02 * torch.randn(2**20)
    for values, dtype, most in ((weights, "float32", 3.5), ((weights * 1e-3).bfloat16(), "bfloat16", 1.5)):
        assert len(stored(values, dtype)[1]) / len(values) < most


@pytest.mark.parametrize("where", [0, 5, -1])
def test_a_byte_that_has_changed_is_found(where: int) -> None:
    piece, data = stored(torch.randn(1000), "float32")
    changed = bytearray(data)
    changed[where] ^= 1
    with pytest.raises(DamagedError, match="not what was written"):
        decoded(piece, bytes(changed))
    with pytest.raises(DamagedError, match="not what was written"):
        decoded(piece, data[:-1])


def test_the_hash_is_the_one_of_the_reference() -> None:
    # XXH3_128bits of nothing and of the two bytes "ab", from xxHash's own command line (xxhsum -H2).
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"
    assert digest(b"a", b"b") == digest(np.frombuffer(b"ab", np.uint8).tobytes())


def test_many_pieces_come_in_order_from_little_memory(tmp_path: Path) -> None:
    run, taken = RunFolder(open_store(str(tmp_path)), "run"), []
    manifest = commit(run, step=1, num_pieces=50, num_ranks=1)

    def memory(num_bytes: int) -> Raw:
        taken.append(num_bytes)
        return np.empty(num_bytes, np.uint8)

    pieces = manifest.pieces[::-1]
    found = [(piece, digest(raw.tobytes())) for piece, raw in read_pieces(run, manifest, pieces, memory)]
    alone = [digest(next(read_pieces(run, manifest, [piece]))[1].tobytes()) for piece in pieces]
    assert found == list(zip(pieces, alone, strict=True)) and len(set(alone)) == 50
    assert len(taken) <= AT_A_TIME
