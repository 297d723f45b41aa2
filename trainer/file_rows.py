"""Rows of text, JSON Lines and Parquet files, read by pieces. A bad row is told, not raised. No torch."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from trainer.contract import ConfigError
from trainer.store import READ_AHEAD_BYTES, Store
from trainer.text_files import file_kind

# Longer documents and lines are bad rows: they are held in memory, several times over (guess).
MAX_ROW_BYTES = 64 * 2**20
# Kinds of problems: the first two a user solves with --text-key.
NO_KEY, NOT_TEXT = "no text key", "not text"
NOT_UTF8, HALF_CHARACTER, BINARY = "not UTF-8", "half a character", "binary"
_DAMAGED = "damaged file"
_PARQUET_ROWS = 1024  # at a time
_LEAST_AHEAD_BYTES = 2**18  # a request has its price whatever it brings (guess)
_LAST_BYTES = 64  # asked for at a time near the end of a .zst file (guess: less than a row)
_NUM_KEYS = 20  # of one object, for a message
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a]")  # bytes that no text has, in whatever 8-bit encoding


class Piece(NamedTuple):
    """A part of a file: bytes [start, stop) of text, row groups [start, stop) of Parquet. A row belongs
    to the piece in which it starts. `stop` None: to the end, of a file that is read as a stream."""

    file: str
    start: int = 0
    stop: int | None = None


class Row(NamedTuple):
    """A document, or what is wrong with it.

    Attributes:
        line: Where it starts, counted from 1 at the start of the piece.
        text: None when it is bad.
        problem: Kind, for counting; empty when it is good.
        detail: For people.
        keys: Where the one we look for is missing or holds no text: those that do.
    """

    line: int
    text: str | None
    problem: str = ""
    detail: str = ""
    keys: tuple[str, ...] = ()


def file_rows(store: Store, piece: Piece, text_key: str, lines: dict[str, int]) -> Iterator[Row]:
    """Rows of a piece.

    Args:
        store: Where the file is.
        piece: Which part.
        text_key: Key of an object, or name of a column, that holds the text.
        lines: Set to the number of lines (Parquet: rows) of the piece, when it has been read to its end.

    Raises:
        StoreError: The file cannot be read.
    """
    kind, compression = file_kind(piece.file) or ("text", "")
    # What follows a short piece belongs to others: only the end of its last row is wanted.
    ahead = READ_AHEAD_BYTES if kind == "parquet" or piece.stop is None else min(
        READ_AHEAD_BYTES, max(_LEAST_AHEAD_BYTES, (piece.stop - piece.start) // 2))
    with store.open(piece.file, ahead) as file:
        if kind == "parquet":
            yield from _parquet_rows(file, piece, text_key, lines)
            return
        counted = _Lines(_decompressed(file, compression), piece, ends_at_blank=kind == "text")
        yield from _text_rows(counted) if kind == "text" else _json_rows(counted, text_key)
        lines[piece.file] = counted.number


def row_of(line: int, value: Any) -> Row:
    """The row of a value that should be text."""
    if value is None:
        return Row(line, None, "null")
    if not isinstance(value, str):
        return Row(line, None, NOT_TEXT, f"not text but {type(value).__name__}")
    if not value.strip():
        return Row(line, None, "empty")
    try:
        num_bytes = len(value.encode())
    except UnicodeEncodeError as error:  # JSON can spell half a character
        return Row(line, None, HALF_CHARACTER, f"character {error.start} is half of a surrogate pair")
    return Row(line, value) if num_bytes <= MAX_ROW_BYTES else _too_long(line)


def object_row(line: int, found: Mapping[str, Any], text_key: str) -> Row:
    """The row of an object that should have text under a key."""
    row = row_of(line, found[text_key]) if text_key in found else missing(line, text_key)
    if row.problem not in (NO_KEY, NOT_TEXT):
        return row
    keys = [key for key, value in found.items() if isinstance(value, str)]
    return row._replace(keys=tuple(keys[:_NUM_KEYS]))


def missing(line: int, text_key: str) -> Row:
    """The row of an object without the key."""
    return Row(line, None, NO_KEY, f"no key `{text_key}`")


def parquet_file(file: BinaryIO, name: str) -> Any:
    """A Parquet file, opened. Raises ConfigError when it is none."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(pyarrow.PythonFile(file, mode="r"), page_checksum_verification=True)
    except pyarrow.ArrowException as error:
        raise ConfigError(f"is not a Parquet file: {str(error).splitlines()[0]}", place=name,
                          fix="copy it again, or take it out of the source") from error


class _Lines:
    """Lines of a piece: those that start in it, and for text also the rest of its last document.

    Both rules find the same border from either side of it, and never need the bytes before.

    Attributes:
        number: Lines given so far.
        damage: What was wrong with the compression when it ended early.
    """

    def __init__(self, file: BinaryIO, piece: Piece, ends_at_blank: bool) -> None:
        self.number, self.damage = 0, ""
        self._file, self._stop, self._ends_at_blank = file, piece.stop, ends_at_blank
        self._offset, self._is_empty = 0, False
        if piece.start:
            # A line that starts exactly here is ours; a document is, after the first blank line from here.
            self._offset = piece.start - (0 if ends_at_blank else 1)
            file.seek(self._offset)
            self._read()
            if ends_at_blank:
                self._skip_document()

    def __iter__(self) -> Iterator[bytes | None]:
        """Each line, or None for one that is too long."""
        while not self._is_empty:
            begins = self._offset
            if self._stop is not None and not self._ends_at_blank and begins >= self._stop:
                return
            try:
                line = self._read()
            except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
                self.damage = str(error) or type(error).__name__
                return
            if not line:
                return
            self.number += 1
            yield line if len(line) <= MAX_ROW_BYTES else None
            if self._stop is not None and self._ends_at_blank and begins > self._stop and is_blank(line):
                return

    def _skip_document(self) -> None:
        line, begins = b"-", self._offset
        while line and not is_blank(line):
            begins, line = self._offset, self._read()
        self._is_empty = self._stop is not None and begins > self._stop

    def _read(self) -> bytes:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        self._offset += len(line)
        part = line
        while len(part) > MAX_ROW_BYTES and not part.endswith(b"\n"):
            part = self._file.readline(MAX_ROW_BYTES + 1)
            self._offset += len(part)
        return line


def is_blank(line: bytes) -> bool:
    """White space only: ends a document of a text file."""
    return line.isspace()


def _text_rows(lines: _Lines) -> Iterator[Row]:
    held: list[bytes] = []
    size = begins = 0
    for line in lines:
        if line is None or not is_blank(line):
            begins = begins or lines.number
            size += MAX_ROW_BYTES + 1 if line is None else len(line)
            if line is not None and size <= MAX_ROW_BYTES:
                held.append(line)
        elif begins:
            yield _document(begins, held, size)
            held, size, begins = [], 0, 0
    if begins:
        yield _document(begins, held, size)
    yield from _damage(lines)


def _document(line: int, held: list[bytes], size: int) -> Row:
    if size > MAX_ROW_BYTES:
        return _too_long(line)
    row = _decoded(line, b"".join(held))
    return row if row.text is None else row_of(line, row.text.replace("\r\n", "\n").strip())


def _json_rows(lines: _Lines, text_key: str) -> Iterator[Row]:
    for line in lines:
        if line is None:
            yield _too_long(lines.number)
        elif not is_blank(line):
            row = _decoded(lines.number, line)
            yield row if row.text is None else _json_row(row.line, row.text, text_key)
    yield from _damage(lines)


def _json_row(line: int, text: str, text_key: str) -> Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Row(line, None, "not JSON", f"not JSON: {error}")
    if not isinstance(found, dict):
        return Row(line, None, "not an object", f"not an object but {type(found).__name__}")
    return object_row(line, found, text_key)


def _parquet_rows(file: BinaryIO, piece: Piece, text_key: str, lines: dict[str, int]) -> Iterator[Row]:
    import pyarrow

    opened = parquet_file(file, piece.file)
    groups = range(piece.start, opened.num_row_groups if piece.stop is None else piece.stop)
    lines[piece.file] = sum(opened.metadata.row_group(group).num_rows for group in groups)
    keys = _text_columns(opened.schema_arrow)
    if text_key not in opened.schema_arrow.names:
        yield from (missing(line + 1, text_key)._replace(keys=keys) for line in range(lines[piece.file]))
        return
    line = 0
    for group in groups:
        last = line + opened.metadata.row_group(group).num_rows
        try:
            for batch in opened.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[text_key]):
                for value in _values(batch.column(0)):
                    line += 1
                    row = _decoded_value(line, value)
                    yield row._replace(keys=keys) if row.problem == NOT_TEXT else row
        except (pyarrow.ArrowException, OSError) as error:
            told = f"damaged to the end of its row group: {str(error).splitlines()[0]}"
            yield from (Row(number, None, _DAMAGED, told) for number in range(line + 1, last + 1))
        line = last


def _text_columns(schema: Any) -> tuple[str, ...]:
    """Names of the columns that may hold text."""
    from pyarrow import types

    kinds = {field.name: field.type.value_type if types.is_dictionary(field.type) else field.type
             for field in schema}
    found = [name for name, kind in kinds.items()
             if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)]
    return tuple(found[:_NUM_KEYS])


def _values(column: Any) -> Iterator[Any]:
    """Python values of a column; text as bytes, because one bad value would spoil them all."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        column = column.cast(pyarrow.large_binary())
    yield from column.to_pylist()


def _decoded_value(line: int, value: Any) -> Row:
    if not isinstance(value, bytes):
        return row_of(line, value)
    row = _decoded(line, value)
    return row if row.text is None else row_of(line, row.text)


def _decoded(line: int, content: bytes) -> Row:
    try:
        return Row(line, content.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        kind = BINARY if _CONTROL.search(content) else NOT_UTF8
        return Row(line, None, kind, f"not UTF-8: byte {error.start} is {content[error.start]:#04x}")


def _too_long(line: int) -> Row:
    return Row(line, None, "too long", f"longer than {MAX_ROW_BYTES // 2**20} MiB")


def _damage(lines: _Lines) -> Iterator[Row]:
    if lines.damage:
        yield Row(lines.number + 1, None, _DAMAGED, f"damaged from here: {lines.damage}")


def _decompressed(file: BinaryIO, compression: str) -> BinaryIO:
    if compression == "gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]  # it is read like any file
    if compression == "zst":
        return io.BufferedReader(_ZstdReader(file))
    return file


class _ZstdReader(io.RawIOBase):
    """What a .zst file holds, of one that breaks off too: to within `_LAST_BYTES` of what can be decoded."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow

        self._file, self._end = file, file.seek(0, io.SEEK_END)
        file.seek(0)
        self._decoded = pyarrow.CompressedInputStream(file, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Where it meets the end too early, Arrow drops all that the same call has decoded.
        wanted = len(buffer) if self._file.tell() < self._end else min(len(buffer), _LAST_BYTES)
        data = self._decoded.read(wanted)
        buffer[:len(data)] = data
        return len(data)
