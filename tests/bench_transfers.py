"""What a save and a restore move in a second: ours beside bare boto3 and bare obstore, same bytes, same run.

    python -m tests.bench_transfers [--gb 1] [--rounds 3] [--store URL | --gbit 10]

State of the size of a checkpoint, one rank, no torch. "ours" compresses, hashes and uploads, or downloads,
verifies and unpacks; the others move the stored bytes as they are, in parts of the same size with as many
under way. Without a store it is a server of its own (`plain_s3.py`), in a process on this machine: what it
takes of the processor, all three pay. Deletes what it writes.
"""

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from tests.s3_server import KEYS, running_plain_s3
from trainer.commit import Committer, Content
from trainer.contract import checkpoint_folder
from trainer.identity import Identity
from trainer.manifest import Manifest, complete_checkpoints
from trainer.piece_codec import Copied
from trainer.piece_reader import AT_A_TIME, read_pieces
from trainer.pieces import PIECE_ELEMENTS, Stretch
from trainer.retention import Keep
from trainer.run_folder import RunFolder
from trainer.store import open_store

PART = 16 * 2**20  # bytes, as in trainer/store.py and trainer/pieces.py
UPLOADS_AT_A_TIME = 8  # as in trainer/store.py
MIB = 2**20


class Alone:
    """The peers of the only rank."""

    rank, world_size = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """Of all ranks."""
        return [value]

    def tell_failure(self, key: str) -> None:
        """Nobody else waits."""

    def has_failed(self, key: str) -> bool:
        """Nobody else does."""
        return False


def state(gigabytes: float) -> list[Copied]:
    """Float32 weights as training leaves them: small normal numbers, whose exponents compress."""
    chance, copied = np.random.default_rng(0), []
    for number in range(max(1, round(gigabytes * 1e9 / 4 / PIECE_ELEMENTS))):
        values = chance.standard_normal(PIECE_ELEMENTS, np.float32) * np.float32(0.02)
        copied.append(Copied(Stretch("master", "float32", 0, number * PIECE_ELEMENTS, PIECE_ELEMENTS),
                             values.view(np.uint8)))
    return copied


class Ours:
    """The trainer's own save and restore."""

    def __init__(self, url: str, copied: list[Copied]) -> None:
        self.folder, self._copied, self._step = RunFolder(open_store(url), "bench"), copied, 0
        identity = Identity(data_fingerprint="", model={}, precision="fp32", encoder=None)
        self._saves = Committer(self.folder, 1, Alone(), groups=[], keep=Keep(1), identity=identity,
                                before_commit=lambda: None)

    def upload(self) -> None:
        """One save, until it is durable."""
        self._step += 1
        self._saves.begin(self._step, lambda: Content(self._copied, b"rest"), time.monotonic())
        self._saves.wait()
        if error := self._saves.pop_error():
            raise error

    @property
    def manifest(self) -> Manifest:
        """Of the newest."""
        return next(complete_checkpoints(self.folder, print))

    def download(self) -> None:
        """All pieces, verified and unpacked."""
        manifest = self.manifest
        for _ in read_pieces(self.folder, manifest, manifest.pieces):
            pass


def stored(ours: Ours) -> bytes:
    """What lies in the store, as one object."""
    manifest = ours.manifest
    return ours.folder.read_bytes(f"{checkpoint_folder(manifest.step)}/{manifest.shards[0].name}")


def with_boto3(url: str, data: bytes) -> tuple[Callable[[], None], Callable[[], None]]:
    """Upload and download as its users write them."""
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
    # Its checksums of its own are off: bare bytes.
    named = {f"{name}_url" if name == "endpoint" else f"{name}_name": values[0]
             for name, values in query.items()}
    client = boto3.client("s3", config=Config(request_checksum_calculation="when_required"), **named)
    place = parts.netloc, f"{parts.path.strip('/')}/bench/boto3".lstrip("/")
    up, down = (TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=number)
                for number in (UPLOADS_AT_A_TIME, AT_A_TIME))
    return (lambda: client.upload_fileobj(io.BytesIO(data), *place, Config=up),
            lambda: client.download_fileobj(*place, io.BytesIO(), Config=down))


def with_obstore(ours: Ours, data: bytes) -> tuple[Callable[[], None], Callable[[], None]]:
    """Upload and download by its own calls."""
    import obstore

    store, key = ours.folder.store._backend, "bench/obstore"
    ranges = [(start, min(start + PART, len(data))) for start in range(0, len(data), PART)]

    def download() -> None:
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            for _ in pool.map(lambda part: obstore.get_range(store, key, start=part[0], end=part[1]), ranges):
                pass

    return lambda: obstore.put(store, key, data, use_multipart=True, chunk_size=PART,
                               max_concurrency=UPLOADS_AT_A_TIME), download


Ways = dict[str, tuple[Callable[[], None], Callable[[], None]]]
Speeds = dict[str, list[float]]


def measured(pairs: Ways, rounds: int, num_bytes: int) -> Speeds:
    """MiB a second of uploads and downloads, taken in turns."""
    seconds: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for name in sorted(pairs, reverse=bool(number % 2)):
            for way in (0, 1):
                began = time.perf_counter()
                pairs[name][way]()
                seconds.setdefault((name, way), []).append(time.perf_counter() - began)
    return {name: [num_bytes / MIB / statistics.median(seconds[name, way]) for way in (0, 1)]
            for name in pairs}


def show(speeds: Speeds) -> None:
    """The table; shares are of the faster bare client."""
    bare = [max(found[way] for name, found in speeds.items() if name != "ours") for way in (0, 1)]
    print(f"{'':10}{'upload':>10}{'share':>8}{'download':>12}{'share':>8}")
    for name, (up, down) in speeds.items():
        print(f"{name:10}{up:>10.0f}{up / bare[0]:>8.0%}{down:>12.0f}{down / bare[1]:>8.0%}")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench_transfers")
    parser.add_argument("--gb", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", default="")
    parser.add_argument("--gbit", type=float, default=0.0, help="of the own server's line; 0: no limit")
    asked = parser.parse_args()
    with ExitStack() as stack:
        url = asked.store
        if not url:
            os.environ.update(KEYS)
            url = stack.enter_context(running_plain_s3(asked.gbit)).url("bench", "transfers")
        copied = state(asked.gb)
        raw_bytes = sum(len(one.raw) for one in copied)
        ours = Ours(url, copied)
        ours.upload()
        data = stored(ours)
        pairs = {"ours": (ours.upload, ours.download), "obstore": with_obstore(ours, data)}
        if url.startswith("s3:"):
            pairs["boto3"] = with_boto3(url, data)
        speed = measured(pairs, asked.rounds, len(data))
        line = f"{asked.gbit:g} Gbit/s, " if asked.gbit else ""
        print(f"{raw_bytes / 1e9:.2f} GB of numbers, {len(data) / 1e9:.2f} GB stored; MiB of stored bytes a "
              f"second, medians of {asked.rounds};\n{line}{os.cpu_count()} cores, "
              f"Python {sys.version.split()[0]}")
        show(speed)
        ours.folder.store.delete([found.key for found in ours.folder.store.objects("bench")])


if __name__ == "__main__":
    main()
