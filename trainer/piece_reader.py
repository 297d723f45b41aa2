"""Reads pieces of a checkpoint: many at a time, each verified, in the order in which they are wanted."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from trainer.contract import checkpoint_folder
from trainer.manifest import Manifest
from trainer.piece_codec import Raw, decode
from trainer.pieces import Piece
from trainer.run_folder import RunFolder
from trainer.store import DamagedError

_AT_A_TIME = 16  # guess: fills tens of Gbit/s, for 256 MiB of memory


def read_pieces(folder: RunFolder, manifest: Manifest,
                pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Raw]]:
    """Each piece with the bytes of its numbers.

    Raises:
        DamagedError: One is not what was written, though it was fetched twice.
        NotFoundError: Its file is gone.
        StoreError: The store cannot be read now.
    """
    base = checkpoint_folder(manifest.step)
    wanted = iter(pieces)
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="restore") as pool:
        under_way: deque[tuple[Piece, Future[Raw]]] = deque()
        try:
            for piece in islice(wanted, _AT_A_TIME):
                under_way.append((piece, pool.submit(_fetch, folder, base, piece)))
            while under_way:
                piece, fetched = under_way.popleft()
                yield piece, fetched.result()
                for following in islice(wanted, 1):
                    under_way.append((following, pool.submit(_fetch, folder, base, following)))
        finally:
            pool.shutdown(cancel_futures=True)


def _fetch(folder: RunFolder, base: str, piece: Piece) -> Raw:
    try:
        return _fetch_once(folder, base, piece)
    except DamagedError:  # what the network did is mended by this, what the store holds is not
        return _fetch_once(folder, base, piece)


def _fetch_once(folder: RunFolder, base: str, piece: Piece) -> Raw:
    name = f"{base}/{piece.file}"
    data = folder.store.get_range(folder.key(name), piece.offset, piece.offset + piece.num_bytes)
    return decode(piece, data, f"{folder.url}/{name}")
