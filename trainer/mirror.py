"""Writes the truncated trunk of a token encoder into a store, once: `python -m trainer.mirror`.

Only files that hold wanted tensors are read, one block at a time, and only what was written whole
counts: an interrupted call goes on with the block that it was at.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.config import TokenEncoderConfig
from trainer.contract import LdlmError, Name, StoreError
from trainer.encoder_weights import OUTER_FILE, TOKENIZER_FILES, Checkpoint, block_file
from trainer.manifest import StoredFile
from trainer.mirror_format import MirrorManifest, mirror_key, read_manifest
from trainer.packed_blocks import Layout, pack, packed_layout, parameter_shapes, unpacked
from trainer.store import NotFoundError, Store, open_store
from trainer.transfers import Progress, sha256_of, size_words
from trainer.trunk import empty_trunk, family_of, first_line
from trainer.weight_sources import open_checkpoint

_UNFINISHED = "unfinished.json"
_CONFIG = "config.json"
_INTERRUPTED = 130


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


def write_mirror(config: TokenEncoderConfig, store: Store, say: Callable[[str], None]) -> Written:
    """Write the kept blocks of a model in `config.weights`, unless they are there.

    Args:
        config: Which model, layer and format.
        store: Where to.
        say: Told of progress.

    Raises:
        ConfigError: As `load_token_encoder`.
        StoreError: The store cannot be written, or a download was cut off.
    """
    checkpoint, commit = open_checkpoint(config, say)
    key = mirror_key(config.name, checkpoint.config.num_hidden_layers, config.weights)
    source = _fingerprint(checkpoint, commit)
    manifest = read_manifest(store, key)
    if manifest is not None and manifest.source == source and _is_whole(store, key, manifest):
        return Written(f"{store.url}/{key}", manifest, 0)
    store.delete([f"{key}/{Name.MANIFEST}"])
    done = _resumable(store, key, source)
    num_resumed = len(done)
    layouts = _layouts(checkpoint, config)
    sizes = {block_file(index): layout.num_bytes for index, layout in enumerate(layouts)}
    sizes[OUTER_FILE] = _outer_bytes(checkpoint)
    left = sum(num_bytes for name, num_bytes in sizes.items() if name not in done)
    progress = Progress(f"mirror of {config.name}", left, say)
    with tempfile.TemporaryDirectory(prefix="ldlm-mirror-") as scratch:
        for name, make in _parts(checkpoint, config, layouts):
            if name in done:
                continue
            _make(make, Path(scratch, name))
            done[name] = _upload(store, f"{key}/{name}", Path(scratch, name))
            so_far = _Unfinished(source=source, files=done)
            store.put(f"{key}/{_UNFINISHED}", so_far.model_dump_json().encode())
            Path(scratch, name).unlink()
            progress.add(done[name].num_bytes)
            say(f"{name} is there; {progress.line()}")
    manifest = MirrorManifest(
        name=config.name, revision=config.revision, commit=commit, source=source,
        num_blocks=checkpoint.num_blocks, kept_blocks=len(layouts), weights=config.weights,
        files=[done[name] for name in sorted(done)])
    store.put(f"{key}/{Name.MANIFEST}", manifest.model_dump_json(indent=1).encode())
    store.delete([f"{key}/{_UNFINISHED}"])
    return Written(f"{store.url}/{key}", manifest, len(done) - num_resumed)


def _is_whole(store: Store, key: str, manifest: MirrorManifest) -> bool:
    there = {found.key: found.num_bytes for found in store.objects(key)}
    return all(there.get(f"{key}/{file.name}") == file.num_bytes for file in manifest.files)


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
    yield _CONFIG, lambda path: path.write_text(checkpoint.config.to_json_string(use_diff=False))
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


def _resumable(store: Store, key: str, source: str) -> dict[str, StoredFile]:
    """Files that an interrupted call from the same source has left whole, by name."""
    try:
        unfinished = _Unfinished.model_validate_json(store.get(f"{key}/{_UNFINISHED}"))
    except (NotFoundError, ValidationError):
        return {}
    there = {found.key: found.num_bytes for found in store.objects(key)}
    return {name: file for name, file in unfinished.files.items()
            if unfinished.source == source and there.get(f"{key}/{name}") == file.num_bytes}


def _fingerprint(checkpoint: Checkpoint, commit: str | None) -> str:
    """Changes when the weights do: by the Hub's commit, else by names, sizes and times of the files."""
    files = [(name, (stat := (checkpoint.folder / name).stat()).st_size, stat.st_mtime_ns)
             for name in (_CONFIG, *checkpoint.needed_files())]
    return commit or hashlib.sha256(repr(files).encode()).hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Write the mirror that the command line asks for. Returns the exit code."""
    options = _parser().parse_args(argv)
    began_s = time.monotonic()
    try:
        config = TokenEncoderConfig(name=options.name, revision=options.revision, layer=options.layer,
                                    weights=options.weights)
        written = write_mirror(config, open_store(options.store), lambda line: print(line, file=sys.stderr))
    except KeyboardInterrupt:
        print("interrupted: what is written stays; the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    except LdlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.cli_exit_code
    _answer(written, time.monotonic() - began_s, as_json=options.json)
    return 0


def _answer(written: Written, took_s: float, *, as_json: bool) -> None:
    manifest = written.manifest
    if as_json:
        print(json.dumps({"url": written.url, "num_written": written.num_written, "seconds": round(took_s, 1),
                          "num_bytes": manifest.num_bytes, **manifest.model_dump(exclude={"files"})}))
    elif written.num_written:
        print(f"wrote {written.num_written} of {len(manifest.files)} files, "
              f"{size_words(manifest.num_bytes)} in all, to {written.url} in {took_s:.0f} s")
    else:
        print(f"nothing to do: {written.url} is complete, {size_words(manifest.num_bytes)}")


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
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
