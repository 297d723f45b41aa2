"""Metric rows of a run as one series, although several attempts have written them. No torch.

An attempt that resumes trains the steps after its checkpoint again, so the record holds some steps twice.
Each is told here once: as the attempt has it that trained it last.
"""

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from trainer.contract import Name
from trainer.run_folder import RunFolder

Row = Mapping[str, float]

_CHUNK = re.compile(rf"{Name.ATTEMPTS}/(\d+)/metrics/\d+\.jsonl")
_READERS = 8  # a run of a day leaves thousands of small objects (guess)


class _Chunk(NamedTuple):
    attempt: int
    rows: list[dict[str, float]]


class RowReader:
    """Reads the rows of one run; a second look reads only what is new.

    Args:
        folder: The run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._chunks: dict[str, _Chunk] = {}

    def rows(self) -> dict[int, Row]:
        """Rows by step, in order of steps; all that an attempt logged at a step is one row.

        Raises:
            StoreError: The record cannot be read.
        """
        root = f"{self._folder.run_id}/"
        found = (item.key.removeprefix(root) for item in self._folder.store.objects(root + Name.ATTEMPTS))
        new = [name for name in found if _CHUNK.fullmatch(name) and name not in self._chunks]
        with ThreadPoolExecutor(_READERS) as readers:
            self._chunks.update(zip(new, readers.map(self._read, new), strict=True))
        in_order = sorted(self._chunks.items(), key=lambda item: (item[1].attempt, item[0]))
        return kept_rows((chunk.attempt, row) for _, chunk in in_order for row in chunk.rows)

    def _read(self, name: str) -> _Chunk:
        lines = self._folder.read_bytes(name).splitlines()
        return _Chunk(int(name.split("/")[1]), [json.loads(line) for line in lines])


def kept_rows(rows: Iterable[tuple[int, Row]]) -> dict[int, Row]:
    """Merge rows that stand in the order in which they were written (pure).

    Args:
        rows: Each with the number of its attempt.

    Returns:
        By step, rising. An attempt takes the place of what earlier ones have left after its first row. At
        that row both count: a resumed attempt may add scores to the step that it resumed from.
    """
    kept: dict[int, Row] = {}
    newest = 0
    for attempt, row in rows:
        step = int(row["step"])
        if attempt != newest:
            newest, kept = attempt, {known: value for known, value in kept.items() if known <= step}
        kept[step] = {**kept.get(step, {}), **row}
    return dict(sorted(kept.items()))
