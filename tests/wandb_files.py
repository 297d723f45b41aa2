"""Reads what W&B's SDK writes on the disk: LevelDB's log format, protobuf records in it.

Source of the format: LevelDB's doc/log_format.md; the SDK puts 7 bytes of its own in front.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _HEADER = 32 * 1024, 7
_FIRST, _FULL, _LAST = 2, 1, 4


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of history below a folder, in the order in which they were logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted(folder.rglob("run-*.wandb")):
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({"/".join(item.nested_key) or item.key: json.loads(item.value_json)
                             for item in record.history.item})
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    at, whole = _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:  # the end of a block, too short for a header
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        piece, at = data[at + _HEADER:at + _HEADER + length], at + _HEADER + length
        whole = piece if kind in (_FULL, _FIRST) else whole + piece
        if kind in (_FULL, _LAST):
            yield whole
