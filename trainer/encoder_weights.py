"""The weights of a token encoder, read part by part: from a checkpoint in Hugging Face layout, or from
our own mirror of its truncated trunk.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.config import WeightFormat
from trainer.contract import ConfigError
from trainer.encoder_files import CONFIG_FILE
from trainer.encoder_shape import blocks_to_keep
from trainer.trunk import family_of, first_line, load_block, read_config, truncated

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OUTER_FILE = "embeddings.safetensors"
# Of each file, for its fingerprint; all of the small ones.
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 4096
_SAME_MODEL = "put all files of this very model there, weights as .safetensors"


def block_file(index: int) -> str:
    """Name of one block's file in a mirror."""
    return f"block-{index:03d}.safetensors"


class Weights(Protocol):
    """Where a truncated trunk comes from.

    Attributes:
        folder: Holds the tokenizer.
        config: Of the kept blocks.
        format: In which matrices of blocks arrive.
        commit: On the Hub that they come from; None for a folder or a package.
        source: Changes when the weights do that they were made from, however they came here.
    """

    folder: Path
    config: Any
    format: WeightFormat
    commit: str | None

    @property
    def source(self) -> str: ...

    def outer(self) -> dict[str, Tensor]:
        """Tensors outside the blocks by name, on the CPU."""

    def block(self, index: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Parameters of one block by name, on the CPU; quantised ones with their scales."""


class Checkpoint:
    """The first blocks of a checkpoint in Hugging Face layout. Opens only files that hold them."""

    format: WeightFormat = "bf16"

    def __init__(self, folder: Path, layer: int, name: str, commit: str | None = None) -> None:
        """Read config and index, no weights.

        Raises:
            ConfigError: Either is missing or damaged, or there is no such layer.
        """
        self.folder, self.commit = folder, commit
        whole = read_config(folder)
        self.num_blocks: int = whole.num_hidden_layers
        self.config = truncated(whole, blocks_to_keep(layer, self.num_blocks, name))
        self._family = family_of(whole)
        self._files = tensor_files(folder)
        self._prefix = trunk_prefix(self._files, self._family.blocks, self._family.embedding, folder)

    def outer(self) -> dict[str, Tensor]:
        return {key.removeprefix(self._prefix): tensor for key, tensor in self._read(self._outer_keys())}

    def block(self, index: int, dtype: torch.dtype) -> dict[str, Tensor]:
        here, alone = f"{self._prefix}{self._family.blocks}.{index}.", f"{self._family.blocks}.0."
        read = self._read(self._block_keys(index))
        tensors = {alone + key.removeprefix(here): tensor for key, tensor in read}
        try:
            return load_block(self.config, index, tensors, dtype)
        except ConfigError as error:
            raise ConfigError(error.problem, place=str(self.folder), fix=error.fix) from error

    @functools.cached_property
    def source(self) -> str:
        """As in `Weights`: by bytes of the files, which are all here by now."""
        return source_digest(self.folder, [CONFIG_FILE, *self.needed_files()])

    def needed_files(self) -> list[str]:
        """Names of the files in `folder` that hold tensors of the kept part, sorted."""
        keys = self._outer_keys()
        for index in range(self.config.num_hidden_layers):
            keys += self._block_keys(index)
        return sorted({self._files[key] for key in keys})

    def _outer_keys(self) -> list[str]:
        skipped = tuple(f"{self._prefix}{part}." for part in (self._family.blocks, *self._family.after))
        return [key for key in self._files if key.startswith(self._prefix) and not key.startswith(skipped)]

    def _block_keys(self, index: int) -> list[str]:
        path = f"{self._prefix}{self._family.blocks}.{index}."
        return [key for key in self._files if key.startswith(path)]

    def _read(self, keys: Iterable[str]) -> list[tuple[str, Tensor]]:
        by_file: dict[str, list[str]] = {}
        for key in keys:
            by_file.setdefault(self._files[key], []).append(key)
        return [pair for name, held in by_file.items()
                for pair in read_tensors(self.folder / name, held).items()]


class Mirrored:
    """A truncated trunk in the layout of `trainer.mirror`, fetched when its weights are asked for.

    Args:
        folder: On this machine, with config and tokenizer.
        fetch: Brings the rest; the folder with all of it.
    """

    def __init__(self, folder: Path, fetch: Callable[[], Path], weights: WeightFormat, source: str,
                 commit: str | None) -> None:
        self.folder = folder
        self.format = weights
        self.source, self.commit = source, commit
        self.config = read_config(folder)
        self._fetched = functools.cache(fetch)

    def outer(self) -> dict[str, Tensor]:
        return read_tensors(self._fetched() / OUTER_FILE)

    def block(self, index: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return read_tensors(self._fetched() / block_file(index))


def source_digest(folder: Path, names: Iterable[str]) -> str:
    """Changes when one of some files does: by names, sizes, and bytes from all over each file.

    Every byte of tens of gigabytes would take minutes; weights that have been trained on differ
    everywhere.

    Raises:
        ConfigError: One is missing.
    """
    digest = hashlib.sha256()
    for name in names:
        if not (folder / name).is_file():
            raise _missing(folder / name)
        num_bytes = (folder / name).stat().st_size
        digest.update(f"{name} {num_bytes} ".encode())
        with (folder / name).open("rb") as file:
            for part in range(_NUM_SAMPLES):
                file.seek(part * num_bytes // _NUM_SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def tensor_files(folder: Path) -> dict[str, str]:
    """File name of every tensor of a checkpoint.

    Raises:
        ConfigError: Neither index nor single file is there, or it is damaged.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("the index of the weights is damaged", place=str(index),
                              fix=_SAME_MODEL) from error
    with _opened(folder / SINGLE_FILE) as file:
        return dict.fromkeys(file.keys(), SINGLE_FILE)


def trunk_prefix(names: Mapping[str, str], blocks: str, embedding: str, folder: Path) -> str:
    """What stands before the trunk's own names in a checkpoint: `model.language_model.`, say.

    Raises:
        ConfigError: No trunk of this family is in it.
    """
    prefixes = [name.removesuffix(embedding) for name in names if name.endswith(embedding)]
    sizes = {prefix: sum(name.startswith(f"{prefix}{blocks}.") for name in names) for prefix in prefixes
             if not prefix or prefix.endswith(".")}
    best = max(sizes, key=lambda prefix: sizes[prefix], default=None)
    if best is None or not sizes[best]:
        raise ConfigError(f"no tensor {embedding} with blocks {blocks}.0 beside it is among the weights",
                          place=str(folder), fix=_SAME_MODEL)
    return best


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Tensors of one file by name, on the CPU: those asked for, or all.

    Raises:
        ConfigError: The file is missing, damaged, or lacks one.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def _missing(path: Path) -> ConfigError:
    return ConfigError(f"the file {path.name} of the weights is missing", place=str(path.parent),
                       fix=_SAME_MODEL)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"the file {path.name} of the weights is damaged: {first_line(error)}",
                          place=str(path.parent), fix=f"fetch {path.name} again") from error
