"""Writes the truncated trunk of a token encoder into a store, once: `python -m trainer.mirror`.

Only files that hold wanted tensors are read, one block at a time, and only what was written whole
counts: an interrupted call goes on with the block that it was at.
"""

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.command import carry_out, talk
from trainer.config import TokenEncoderConfig
from trainer.contract import LdlmError, Name, StoreError
from trainer.encoder_files import CONFIG_FILE, TOKENIZER_FILES
from trainer.encoder_weights import OUTER_FILE, Checkpoint, block_file
from trainer.local_cache import sha256_of
from trainer.manifest import StoredFile
from trainer.mirror_format import NEWEST, MirrorManifest, mirror_key, read_manifest
from trainer.packed_blocks import Layout, pack, packed_layout, parameter_shapes, unpacked
from trainer.store import NotFoundError, Store, open_store
from trainer.token_encoder import check_fit, open_tokenizer
from trainer.transfers import Progress, size_words
from trainer.trunk import empty_trunk, family_of, first_line
from trainer.weight_sources import open_checkpoint

_UNFINISHED = "unfinished.json"
_READ_BYTES = 16 * 2**20


class _Unfinished(BaseModel):
    """What has been written so far, and from what."""

    model_config = ConfigDict(frozen=True)
    source: str
    files: dict[str, StoredFile] = {}


@dataclass(frozen=True)
class Written:
    """What one call did.

    Attributes:
        url: Of the mirror.
        manifest: Its files.
        num_written: Files that this call wrote.
    """

    url: str
    manifest: MirrorManifest
    num_written: int


def write_mirror(config: TokenEncoderConfig, store: Store, say: Callable[[str], None], *,
                 verify: bool = False) -> Written:
    """Write the kept blocks of a model in `config.weights`, as far as they are not there.

    Args:
        config: Which model, layer and format.
        store: Where to.
        say: Told of progress.
        verify: Read what is there and compare its hashes, not only its sizes.

    Raises:
        ConfigError: As `load_token_encoder`.
        StoreError: The store cannot be read or written, or a download was cut off.
    """
    checkpoint = open_checkpoint(config, say)
    check_fit(open_tokenizer(checkpoint.folder), checkpoint.config.vocab_size, config.name)
    layouts = _layouts(checkpoint, config)
    key = mirror_key(config.name, len(layouts), config.weights, checkpoint.commit)
    earlier = read_manifest(store, key)
    there = _there(store, key, checkpoint.source, earlier)
    done = {file.name: file for file in there
            if not verify or _is_sound(store, f"{key}/{file.name}", file, say)}
    num_there, asked = len(done), {config.revision or NEWEST: datetime.now(UTC)}
    parts = list(_parts(checkpoint, config, layouts))
    if earlier is not None and earlier.source == checkpoint.source:
        asked = earlier.asked | asked
    if len(done) < len(parts):
        _keep_so_far(store, key, checkpoint.source, done)
        store.delete([f"{key}/{Name.MANIFEST}"])
        _write(_Job(checkpoint, store, key, parts, _sizes(checkpoint, layouts)), config.name, done, say)
    manifest = MirrorManifest(
        name=config.name, asked=asked, commit=checkpoint.commit, source=checkpoint.source,
        num_blocks=checkpoint.num_blocks, kept_blocks=len(layouts), weights=config.weights,
        files=[done[name] for name in sorted(done)])
    store.put(f"{key}/{Name.MANIFEST}", manifest.model_dump_json(indent=1).encode())
    store.delete([f"{key}/{_UNFINISHED}"])
    return Written(f"{store.url}/{key}", manifest, len(done) - num_there)


class _Job(NamedTuple):
    """What is to be written where.

    Attributes:
        sizes: Of large files by name.
    """

    checkpoint: Checkpoint
    store: Store
    key: str
    parts: list[tuple[str, Callable[[Path], object]]]
    sizes: dict[str, int]


def _write(job: _Job, name_of_model: str, done: dict[str, StoredFile], say: Callable[[str], None]) -> None:
    """Write the parts that are not done yet, and add them to those that are."""
    left = sum(num_bytes for name, num_bytes in job.sizes.items() if name not in done)
    with (tempfile.TemporaryDirectory(prefix="ldlm-mirror-") as scratch,
          Progress(name_of_model, left, say) as progress):
        for name, make in job.parts:
            if name in done:
                continue
            path = Path(scratch, name)
            _make(make, path)
            done[name] = _upload(job.store, f"{job.key}/{name}", path)
            _keep_so_far(job.store, job.key, job.checkpoint.source, done)
            path.unlink()
            progress.add(job.sizes.get(name, 0))
            progress.finished(name)


def _keep_so_far(store: Store, key: str, source: str, done: dict[str, StoredFile]) -> None:
    store.put(f"{key}/{_UNFINISHED}", _Unfinished(source=source, files=done).model_dump_json().encode())


def _there(store: Store, key: str, source: str, earlier: MirrorManifest | None) -> list[StoredFile]:
    """Files of a mirror, or of an interrupted call, from the same source that have their sizes."""
    known: Sequence[StoredFile] = ()
    if earlier is not None:
        known = earlier.files if earlier.source == source else ()
    else:
        with contextlib.suppress(NotFoundError, ValidationError):
            unfinished = _Unfinished.model_validate_json(store.get(f"{key}/{_UNFINISHED}"))
            known = [*unfinished.files.values()] if unfinished.source == source else ()
    sizes = {found.key: found.num_bytes for found in store.objects(key)}
    return [file for file in known if sizes.get(f"{key}/{file.name}") == file.num_bytes]


def _is_sound(store: Store, key: str, file: StoredFile, say: Callable[[str], None]) -> bool:
    with store.open(key, _READ_BYTES) as stored:
        is_sound = hashlib.file_digest(stored, "sha256").hexdigest() == file.sha256
    say(f"{file.name}: {'as it was written' if is_sound else 'damaged (SHA-256 differs), written again'}")
    return is_sound


def _sizes(checkpoint: Checkpoint, layouts: list[Layout]) -> dict[str, int]:
    sizes = {block_file(index): layout.num_bytes for index, layout in enumerate(layouts)}
    return sizes | {OUTER_FILE: _outer_bytes(checkpoint)}


def _layouts(checkpoint: Checkpoint, config: TokenEncoderConfig) -> list[Layout]:
    blocks = family_of(checkpoint.config).block_list(empty_trunk(checkpoint.config))
    return [packed_layout(parameter_shapes(block), config.weights) for block in blocks]


def _outer_bytes(checkpoint: Checkpoint) -> int:
    family = family_of(checkpoint.config)
    elsewhere = tuple(f"{path}." for path in (family.blocks, *family.after))
    return sum(2 * parameter.numel() for name, parameter in empty_trunk(checkpoint.config).named_parameters()
               if not name.startswith(elsewhere))


def _parts(checkpoint: Checkpoint, config: TokenEncoderConfig,
           layouts: list[Layout]) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Names of the mirror's files, each with what writes it. Small ones first: they show mistakes."""
    yield CONFIG_FILE, lambda path: path.write_text(checkpoint.config.to_json_string(use_diff=False))
    for name in TOKENIZER_FILES:
        if (checkpoint.folder / name).is_file():
            yield name, lambda path, name=name: shutil.copyfile(checkpoint.folder / name, path)
    yield OUTER_FILE, lambda path: save_file(
        {name: tensor.to(torch.bfloat16) for name, tensor in checkpoint.outer().items()}, path)
    for index, layout in enumerate(layouts):
        yield block_file(index), lambda path, index=index, layout=layout: _save_block(
            checkpoint, index, layout, path)


def _make(make: Callable[[Path], object], path: Path) -> None:
    try:
        make(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path.name} cannot be written: {first_line(error)}", place=str(path.parent),
                         fix="free disk space there, or set TMPDIR to a folder on a larger disk") from error


def _save_block(checkpoint: Checkpoint, index: int, layout: Layout, path: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = pack(checkpoint.block(index, torch.bfloat16), layout, device).cpu()
    save_file({name: tensor.clone() for name, tensor in unpacked(packed, layout).items()}, path)


def _upload(store: Store, key: str, path: Path) -> StoredFile:
    file = StoredFile(name=path.name, num_bytes=path.stat().st_size, sha256=sha256_of(path))
    store.put(key, path)
    return file


def main(argv: list[str] | None = None) -> int:
    """Write the mirror that the command line asks for. Returns the exit code."""
    options = _parser().parse_args(argv)
    config = TokenEncoderConfig(name=options.name, revision=options.revision, layer=options.layer,
                                weights=options.weights)

    def answer() -> str:
        began_s = time.monotonic()
        written = write_mirror(config, open_store(options.store), talk, verify=options.verify)
        compared = "SHA-256" if options.verify else "sizes"
        return _answer(written, time.monotonic() - began_s, compared, as_json=options.json)

    return carry_out(answer, words=_in_own_words,
                     interrupted="interrupted: what is written stays; the same command goes on from there")


def _in_own_words(error: LdlmError) -> str:
    """What a recipe sets is an option here: `--set train.token_encoder.layer=-3` is `--layer -3`."""
    typed = re.sub(r"--set train\.token_encoder\.(\w+)=", r"--\1 ", str(error))
    return re.sub(r"\b(?:train\.)?token_encoder\.(name|revision|layer|weights)\b", r"--\1", typed)


def _answer(written: Written, took_s: float, compared: str, *, as_json: bool) -> str:
    manifest = written.manifest
    if as_json:
        return json.dumps({"url": written.url, "num_written": written.num_written,
                           "seconds": round(took_s, 1), "num_bytes": manifest.num_bytes,
                           "compared": compared, **manifest.model_dump(mode="json", exclude={"files"})})
    if written.num_written:
        return (f"wrote {written.num_written} of {len(manifest.files)} files, "
                f"{size_words(manifest.num_bytes)} in all, to {written.url} in {took_s:.0f} s")
    more = "" if compared == "SHA-256" else "; --verify reads it all"
    return (f"nothing to do: {written.url} is complete, {size_words(manifest.num_bytes)} "
            f"({compared} compared{more})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldlm weights mirror",
        description="Write the part of a frozen language model that training needs into a store, once; an "
                    "interrupted call goes on where it was.")
    parser.add_argument("--name", required=True, help="as token_encoder.name: owner/name on the Hub")
    parser.add_argument("--revision", help="commit or tag on the Hub; the newest by default")
    parser.add_argument("--layer", type=int, default=-3, help="as token_encoder.layer")
    parser.add_argument("--weights", choices=("bf16", "fp8", "nf4"), default="bf16")
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--verify", action="store_true",
                        help="read what is there and compare hashes; what is damaged is written again")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
