"""`python -m trainer.pull`, behind `ldlm pull`: brings a run from its store into a folder, verified.

The folder is a store with this run in it. Files of a checkpoint come piece by piece, in parallel; each piece
has a hash, so what was fetched before an interruption is known, and only the rest is fetched. A file has its
name only when it is whole, a checkpoint its manifest last, the run its recipe. Records are small, change
while a run lives, and always come anew.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from trainer.command import carry_out, talk
from trainer.contract import Name, StoreError, checkpoint_folder
from trainer.manifest import CheckpointError, Manifest, Shard, read_rest
from trainer.piece_codec import is_sound, verified
from trainer.piece_reader import AT_A_TIME, fetch
from trainer.pieces import Piece
from trainer.pull_plan import DRAFT, Which, plan_pull
from trainer.run_folder import RunFolder
from trainer.store import DamagedError, NotFoundError, StoredObject, open_store
from trainer.transfers import Progress, size_words

_T = TypeVar("_T")
_R = TypeVar("_R")


class Pulled(NamedTuple):
    """What one call has brought.

    Attributes:
        steps: Of the checkpoints that are there now, newest first.
        num_files: Other files.
        num_bytes: That came through the network, of checkpoints and others.
        kept_bytes: Of checkpoints, that were there already, and sound.
    """

    steps: list[int]
    num_files: int
    num_bytes: int
    kept_bytes: int


class _Missing(NamedTuple):
    """What of a shard is to be fetched."""

    shard: Shard
    pieces: list[Piece]


def pull(source: RunFolder, to: Path, which: Which, say: Callable[[str], None]) -> Pulled:
    """Bring a run into the folder `to`, which becomes a store if it is none.

    Raises:
        CheckpointError: There are checkpoints, and all that were asked for are damaged.
        StoreError: The store cannot be read, or this disk not written.
    """
    plan, run = plan_pull(source, which, say), to / source.run_id
    objects = [item for found in plan.objects.values() for item in found]
    steps, fetched, kept = [], 0, 0
    with _written_to(to), ThreadPoolExecutor(AT_A_TIME) as pool:
        for manifest in plan.checkpoints:
            try:
                came = _pull_checkpoint(source, manifest, run, pool, say)
            except DamagedError as error:
                say(f"checkpoint of step {manifest.step} not pulled: {error}")
                shutil.rmtree(run / checkpoint_folder(manifest.step))
                continue
            steps.append(manifest.step)
            fetched, kept = fetched + came, kept + manifest.num_bytes - came
            if which is Which.NEWEST:
                break
        if plan.checkpoints and not steps:
            raise CheckpointError(f"all {len(plan.checkpoints)} checkpoints are damaged in the store",
                                  place=f"{source.url}/{Name.CHECKPOINTS}",
                                  fix=f"the rest comes with: ldlm pull {source.run_id} --checkpoints none")
        objects.sort(key=lambda item: item.key == source.key(Name.RECIPE))
        _each(pool, lambda item: _pull_object(source, item, to), objects[:-1])
        _pull_object(source, objects[-1], to)
    return Pulled(steps, len(objects), fetched + sum(item.num_bytes for item in objects), kept)


def _pull_object(source: RunFolder, item: StoredObject, to: Path) -> None:
    try:
        _write(to / item.key, source.store.get(item.key))
    except NotFoundError:
        return  # of a run that lives; who deleted it did not want it kept


def _pull_checkpoint(source: RunFolder, manifest: Manifest, run: Path, pool: ThreadPoolExecutor,
                     say: Callable[[str], None]) -> int:
    """Bring one checkpoint. Returns the bytes that were fetched.

    Raises:
        DamagedError: A piece is not what was written, though it was fetched twice.
    """
    base, own = checkpoint_folder(manifest.step), run / checkpoint_folder(manifest.step)
    own.mkdir(parents=True, exist_ok=True)
    missing = [found for shard in manifest.shards if (found := _missing_of(manifest, shard, own, pool))]
    rest = own / manifest.rest.name
    has_rest = rest.is_file() and hashlib.sha256(rest.read_bytes()).hexdigest() == manifest.rest.sha256
    total = sum(piece.num_bytes for found in missing for piece in found.pieces)
    total += 0 if has_rest else manifest.rest.num_bytes
    if not missing and has_rest and (own / Name.MANIFEST).is_file():
        return 0
    (own / Name.MANIFEST).unlink(missing_ok=True)
    try:
        with Progress(f"step {manifest.step}", total, say) as progress:
            for found in missing:
                _fetch(source, base, found, own, pool, progress)
            if not has_rest:
                _write(rest, read_rest(source, manifest))
                progress.add(manifest.rest.num_bytes)
    except NotFoundError as error:
        raise StoreError(f"checkpoint of step {manifest.step} was deleted while it was pulled",
                         place=f"{source.url}/{base}",
                         fix="the same command takes the newest one that there is now") from error
    _write(own / Name.MANIFEST, manifest.model_dump_json(indent=1).encode())
    return total


def _missing_of(manifest: Manifest, shard: Shard, folder: Path, pool: ThreadPoolExecutor) -> _Missing | None:
    """The pieces of a shard that are not in a folder, or not as they were written; None for a whole file."""
    path, draft = folder / shard.name, folder / f"{shard.name}{DRAFT}"
    pieces = [piece for piece in manifest.pieces if piece.file == shard.name]
    if path.is_file() and path.stat().st_size != shard.num_bytes:
        path.unlink()
    here = path if path.is_file() else draft
    if not here.is_file():
        return _Missing(shard, pieces)
    with here.open("rb") as file:
        sound = _each(pool, lambda piece: is_sound(piece, _read(file.fileno(), piece)), pieces)
        missing = [piece for piece, is_sound in zip(pieces, sound, strict=True) if not is_sound]
    if here == path and not missing:
        return None
    if here == path:
        path.replace(draft)
    return _Missing(shard, missing)


def _fetch(source: RunFolder, base: str, found: _Missing, folder: Path, pool: ThreadPoolExecutor,
           progress: Progress) -> None:
    """Bring the missing pieces of a shard into its draft, which then gets its name."""
    draft = folder / f"{found.shard.name}{DRAFT}"
    with open(os.open(draft, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        file.truncate(found.shard.num_bytes)

        def bring(piece: Piece) -> None:
            _write_at(file.fileno(), piece.offset, fetch(source, base, piece, verified))
            progress.add(piece.num_bytes)

        _each(pool, bring, found.pieces)
        os.fsync(file.fileno())
    draft.replace(folder / found.shard.name)


def _each(pool: ThreadPoolExecutor, act: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
    """What comes of each, several at a time. When one has failed, none of them still runs."""
    futures = [pool.submit(act, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)  # they use a file that is about to be closed


def _read(descriptor: int, piece: Piece) -> bytes:
    return os.pread(descriptor, piece.num_bytes, piece.offset)


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], offset + written)


def _write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}{DRAFT}")
    draft.write_bytes(data)
    draft.replace(path)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Say of what a disk raises what is to be done; the store's own errors are none of these."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot be written: {error.strerror or error}", place=str(error.filename or folder),
                         fix="free disk space and see that you may write there, then type the same command: "
                             "what has come stays; or name another folder: --to DIR") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Pull what the command line names. Returns the exit code."""
    options = _parser().parse_args(argv)
    source = RunFolder(open_store(options.store), options.run)

    def answer() -> str:
        pulled = pull(source, options.to, Which(options.checkpoints), talk)
        return _as_json(source, options.to, pulled) if options.json else _answer(source, options.to, pulled)

    return carry_out(answer,
                     interrupted="interrupted: what has come stays; the same command fetches the rest")


def _answer(source: RunFolder, to: Path, pulled: Pulled) -> str:
    steps = [f"the checkpoint of step {step:,}" for step in pulled.steps]
    what = ", ".join([*steps, f"{pulled.num_files} other files"])
    kept = f"; {size_words(pulled.kept_bytes)} were there" if pulled.kept_bytes else ""
    return (f"use it: ldlm status {source.run_id} --store {shlex.quote(str(to))}\n"
            f"pulled {source.run_id} into {to.absolute() / source.run_id}: {what}; "
            f"{size_words(pulled.num_bytes)} came{kept}")


def _as_json(source: RunFolder, to: Path, pulled: Pulled) -> str:
    return json.dumps({"run_id": source.run_id, "to": str(to), **pulled._asdict()}, indent=2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ldlm pull", description="Bring a run into a folder.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--store", required=True, help="address of the store")
    parser.add_argument("--to", required=True, type=Path, metavar="DIR")
    parser.add_argument("--checkpoints", choices=list(Which), required=True)
    parser.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
