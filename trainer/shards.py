"""Prepared text: token shards, records of finished units, and the manifest that makes them count. No torch.

    plan.json             what is prepared here; whoever comes first writes it, the others compare
    train/00000.bin       little-endian uint32 ids of unit 0, each document closed by end of text
    train/00000.idx       little-endian uint64: where its documents start, in tokens
    heldout/00000.bin     the same for documents that no training shard holds
    parts/00000.json      unit 0 is finished: its shards are there, and these are their hashes
    manifest.json         all units are finished. Without it there is nothing to train on

Every file is a function of plan.json and the source alone, so it does not matter who writes it, how
often, or how many work at once. No numpy either: the launcher reads manifests through this file.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.contract import SHARDS, ConfigError, Name
from trainer.store import NotFoundError, Store, sub_address

_OURS = re.compile(r"(train|heldout)/\d{5,}(-\d+)?\.(bin|idx)|parts/\d{5,}\.json|plan\.json|manifest\.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
PLAN = "plan.json"
PARTS = "parts"
START_BYTES = 8  # of one entry of an index
NUM_EXAMPLES = 20

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TokenizerIdentity(_Record):
    """What prepared shards say of the tokenizer that made them.

    Attributes:
        name: As the user named it, for messages.
        digest: SHA-256 of its vocabulary and of the ids it gives to a fixed text. Not of its files:
            their form changes with the version of the library that writes them.
        vocab_size: Ids there are, added ones included.
        end_of_text_id: Closes each document.
    """

    name: str
    digest: str
    vocab_size: int
    end_of_text_id: int

    def __str__(self) -> str:
        return f"{self.name} ({self.vocab_size:,} ids, {self.digest[:8]})"


class Shard(_Record):
    """One token file, its size and its index. `name` is relative to the prepared text: `train/00000`."""

    name: str
    split: Split
    num_tokens: int
    num_documents: int
    num_bytes: int
    sha256: str
    index_sha256: str

    @property
    def key(self) -> str:
        """Of the token file."""
        return f"{self.name}.bin"

    @property
    def index_key(self) -> str:
        """Of the file that says where documents start."""
        return f"{self.name}.idx"

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by key."""
        return {self.key: self.num_bytes, self.index_key: self.num_documents * START_BYTES}


class BadRow(_Record):
    """A row that gave no document: where, and what was wrong."""

    file: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.problem}"


class RowCounts(_Record):
    """What became of the rows of a source."""

    num_rows: int = 0
    num_documents: int = 0
    bad: dict[str, int] = {}
    examples: tuple[BadRow, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def num_bad(self) -> int:
        """Rows that gave no document."""
        return sum(self.bad.values())


class Preparation(_Record):
    """What decides every byte of the result, save the content of the source.

    Attributes:
        source: As first written by a user, for people.
        listing: SHA-256 of names, sizes and versions of the files, and of how they are cut into units.
        num_files: Files that were taken, by the ending of their names, for people.
    """

    format: Literal[2] = 2
    source: str
    text_key: str
    listing: str
    num_units: int
    tokenizer: TokenizerIdentity
    heldout_fraction: float
    num_files: dict[str, int] = {}

    @property
    def digest(self) -> str:
        """Names this preparation in the records of its parts."""
        return hashlib.sha256(self.model_dump_json(exclude={"source", "num_files"}).encode()).hexdigest()


class Part(_Record):
    """One finished unit.

    Attributes:
        preparation: Digest of the Preparation it belongs to.
        source_sha256: Of the documents in order: what the source said when it was read.
        lines: Lines (rows) of each piece of a file in the unit: (file, count).
        rows: Lines of examples count from the start of their piece.
    """

    preparation: str
    unit: int
    shards: tuple[Shard, ...]
    source_sha256: str
    lines: tuple[tuple[str, int], ...]
    rows: RowCounts


class PreparedManifest(_Record):
    """The commit of a prepared text."""

    preparation: Preparation
    source_sha256: str
    shards: tuple[Shard, ...]
    rows: RowCounts

    def of(self, split: Split) -> list[Shard]:
        """Shards of a split, in order of the source."""
        return [shard for shard in self.shards if shard.split == split]

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split, ends of text included."""
        return sum(shard.num_tokens for shard in self.of(split))


_R = TypeVar("_R", bound=_Record)


def is_ours(key: str) -> bool:
    """Whether a key has the form of those that a preparation writes. No other is ever deleted."""
    return _OURS.fullmatch(key) is not None


def part_key(unit: int) -> str:
    """Where the record of a finished unit lies."""
    return f"{PARTS}/{unit:05d}.json"


def write_record(store: Store, key: str, record: BaseModel, *, create: bool = False) -> None:
    """Write a record as JSON. Raises AlreadyExistsError with `create`, StoreError."""
    store.put(key, record.model_dump_json(indent=1).encode() + b"\n", create=create)


def read_record(store: Store, key: str, kind: type[_R]) -> _R:
    """Read a record.

    Raises:
        NotFoundError: There is none.
        ConfigError: It is damaged, or of another version of this program.
    """
    try:
        return kind.model_validate_json(store.get(key))
    except ValidationError as error:
        wrong = error.errors()[0]
        what = ".".join(map(str, wrong["loc"])) or "it"
        raise ConfigError(f"is damaged, or of another version of ldlm: {what}: {wrong['msg']}",
                          place=f"{store.url}/{key}",
                          fix="prepare the text anew: the same `ldlm data prepare` with --restart") from error


def prepared_address(store: str, source: str, place: str) -> str:
    """Where `shards:NAME` lies: `data/NAME` of the store at an address, as an address of its own.

    Raises:
        ConfigError: At `place`: it is no such name.
    """
    name = source.removeprefix(SHARDS)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{source!r} names no prepared text", place=place,
                          fix="write shards:NAME; NAME is a folder below <store>/data")
    return sub_address(store, f"data/{name}")


def find_manifest(store: Store) -> PreparedManifest | None:
    """The manifest of a prepared text, or None. Raises ConfigError when it is damaged."""
    try:
        return read_record(store, Name.MANIFEST, PreparedManifest)
    except NotFoundError:
        return None


def wrong_sizes(shards: Iterable[Shard], sizes: dict[str, int]) -> list[str]:
    """Keys of files that are missing or have another size. `sizes`: bytes by key."""
    return [key for shard in shards for key, size in shard.sizes.items() if sizes.get(key) != size]


def make_manifest(preparation: Preparation, parts: Sequence[Part]) -> PreparedManifest:
    """The manifest of all parts, given in order of their units."""
    digest = hashlib.sha256("".join(part.source_sha256 for part in parts).encode())
    bad: Counter[str] = Counter()
    examples: list[BadRow] = []
    first_lines: Counter[str] = Counter()
    for part in parts:
        bad.update(part.rows.bad)
        # In a part, a line is counted from the start of a piece: only now it is known where that is.
        examples += [found.model_copy(update={"line": found.line + first_lines[found.file]})
                     for found in part.rows.examples]
        first_lines.update(dict(part.lines))
    rows = RowCounts(
        num_rows=sum(part.rows.num_rows for part in parts),
        num_documents=sum(part.rows.num_documents for part in parts),
        bad=dict(sorted(bad.items())), examples=tuple(examples[:NUM_EXAMPLES]),
        keys=tuple(sorted({key for part in parts for key in part.rows.keys})))
    return PreparedManifest(preparation=preparation, source_sha256=digest.hexdigest(), rows=rows,
                            shards=tuple(shard for part in parts for shard in part.shards))
