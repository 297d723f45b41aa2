"""Where text comes from: `python-docs`, files here or in a cloud, Hugging Face datasets. No torch.

A source is cut into units by a rule that looks at nothing but the source, so whoever prepares which
unit, and how many do it at once, makes no difference.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from trainer.contract import ConfigError
from trainer.file_rows import Piece, Row, file_rows, parquet_file, row_of
from trainer.python_docs import python_docs, python_docs_digest
from trainer.store import Store, local_store_url, open_store
from trainer.text_files import HUB, PYTHON_DOCS, file_ending, file_kind, file_sizes, find_files, text_bytes

# Units are many, so that every worker gets its part and a kill costs little; and not too many or too
# small, since each becomes objects in a store and a shard of training (guess, all three).
_NUM_UNITS = 256
_SMALLEST_UNIT, _LARGEST_UNIT = 4 * 2**20, 64 * 2**20
_HASHED_BYTES = 64 * 2**20  # larger local files are told by size and time
_REQUESTS_AT_A_TIME = 16


class Unit(NamedTuple):
    """What one process prepares at a time.

    Attributes:
        pieces: Of files, each file at most once.
        weight: Bytes of text, about; 0 when it is not known.
    """

    pieces: tuple[Piece, ...]
    weight: int


class Source(Protocol):
    """Text that can be read unit by unit, in any process: it can be pickled.

    Attributes:
        spec: As the user wrote it.
        text_key: Key or column that holds the text.
        listing: SHA-256 of what there is and how it is cut.
        ignored: Files that were left out because of their names.
        num_files: Files that were taken, by the ending of their names.
    """

    spec: str
    text_key: str
    listing: str
    units: Sequence[Unit]
    ignored: Sequence[str]
    num_files: Mapping[str, int]

    def rows(self, piece: Piece, lines: dict[str, int]) -> Iterator[Row]:
        """Rows of a piece; see `file_rows`."""


def open_source(spec: str, text_key: str = "text", unit_bytes: int | None = None) -> Source:
    """Find what there is of a source and cut it into units. Reads no text, save to hash small files.

    Args:
        spec: `python-docs`; a file, a folder or a glob (`**` crosses folders); s3://, gs:// or az://
            of the same; `hf://owner/name[@revision][/config][:split]` or `hf:///folder[:split]`.
        text_key: Key of an object, or name of a column, that holds the text.
        unit_bytes: Of a unit, about; None: by the size of the whole source.

    Raises:
        ConfigError: There is nothing of that name, or nothing that can be read.
        StoreError: A cloud does not answer.
    """
    if spec == PYTHON_DOCS:
        return PythonDocs(spec, text_key, python_docs_digest())
    if spec.startswith(HUB):
        from trainer.hf_source import open_hf_source

        return open_hf_source(spec, text_key)
    found = find_files(spec)
    store = open_store(found.address)
    sizes = file_sizes(store, found.names)
    weights = text_bytes(sizes)
    size = unit_bytes or min(max(sum(weights.values()) // _NUM_UNITS, _SMALLEST_UNIT), _LARGEST_UNIT)
    units = _pack(_weighed_pieces(store, weights, size), size)
    listing = digest(sorted(sizes.items()), _versions(store, sizes), units)
    endings = dict(sorted(Counter(map(file_ending, found.names)).items()))
    return FileSource(spec, text_key, listing, units, tuple(found.ignored), endings, found.address)


def uncut_files(source: Source) -> int:
    """How many files are a unit each, whatever their size: streams of datasets, and compressed files."""
    return sum(len(unit.pieces) == 1 and unit.pieces[0].stop is None
               and (not unit.weight or unit.weight > _LARGEST_UNIT) for unit in source.units)


def digest(*parts: object) -> str:
    """SHA-256 of JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def folder_listing(folder: Path) -> str:
    """SHA-256 of names, sizes and versions of all files of a local folder.

    Raises:
        ConfigError: There is none.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder", place=str(folder), fix="name one that holds a dataset")
    store = open_store(local_store_url(folder))
    sizes = {found.key: found.num_bytes for found in store.objects()}
    return digest(sizes, _versions(store, sizes))


@dataclass
class PythonDocs:
    """The prose that every Python carries: one unit."""

    spec: str
    text_key: str
    listing: str
    units: Sequence[Unit] = (Unit((Piece(PYTHON_DOCS),), 2_200_000),)
    ignored: Sequence[str] = ()
    num_files: Mapping[str, int] = field(default_factory=dict)

    def rows(self, piece: Piece, lines: dict[str, int]) -> Iterator[Row]:
        """The documents."""
        for number, document in enumerate(python_docs(), start=1):
            lines[piece.file] = number
            yield row_of(number, document)


@dataclass
class FileSource:
    """Files of one store."""

    spec: str
    text_key: str
    listing: str
    units: Sequence[Unit]
    ignored: Sequence[str]
    num_files: Mapping[str, int]
    address: str

    def rows(self, piece: Piece, lines: dict[str, int]) -> Iterator[Row]:
        """Rows of a part of one file."""
        return file_rows(open_store(self.address), piece, self.text_key, lines)


def _weighed_pieces(store: Store, weights: dict[str, int], unit_bytes: int) -> Iterator[tuple[Piece, int]]:
    """Pieces of all files in order of their names, none much larger than a unit where it can be cut."""
    parquet = [name for name in sorted(weights) if (file_kind(name) or ("",))[0] == "parquet"]
    with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
        groups = dict(zip(parquet, pool.map(lambda name: _group_sizes(store, name), parquet), strict=True))
    for name in sorted(weights):
        if name in groups:
            yield from ((Piece(name, group, group + 1), size) for group, size in enumerate(groups[name]))
        elif (file_kind(name) or ("text", ""))[1]:
            yield Piece(name), weights[name]
        else:
            edges = [*range(0, weights[name], unit_bytes), weights[name]]
            yield from ((Piece(name, start, stop), stop - start)
                        for start, stop in zip(edges, edges[1:], strict=False))


def _group_sizes(store: Store, name: str) -> list[int]:
    """Of all columns: another text key must not cut the source otherwise."""
    with store.open(name) as file:
        metadata = parquet_file(file, f"{store.url}/{name}").metadata
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]


def _pack(pieces: Iterator[tuple[Piece, int]], unit_bytes: int) -> tuple[Unit, ...]:
    """Consecutive pieces become one unit until it is large enough."""
    units: list[Unit] = []
    held: list[Piece] = []
    weight = 0
    for piece, size in pieces:
        if held and held[-1].file == piece.file:
            held[-1] = held[-1]._replace(stop=piece.stop)
        else:
            held.append(piece)
        weight += size
        if weight >= unit_bytes:
            units.append(Unit(tuple(held), weight))
            held, weight = [], 0
    return (*units, Unit(tuple(held), weight)) if held else tuple(units)


def _versions(store: Store, sizes: dict[str, int]) -> dict[str, str]:
    """What changes when a file changes, in order of names. Of small files here: their content."""
    local = store.local_folder is not None
    versions = store.versions() if not local or max(sizes.values(), default=0) > _HASHED_BYTES else {}
    return {name: hashlib.sha256(store.get(name)).hexdigest() if local and size <= _HASHED_BYTES
            else versions[name] for name, size in sorted(sizes.items())}
