"""What lies in the folder of a run, by kind. No torch: whoever pulls or deletes a run counts by this."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from trainer.contract import Name
from trainer.run_folder import RunFolder
from trainer.store import StoredObject


class Part(StrEnum):
    """Kinds of objects, as they are shown: what takes the bytes first."""

    CHECKPOINTS = "checkpoints"
    METRICS = "metrics"
    BENCH = "benchmark"
    RECORDS = "records"


_BENCH_FOLDERS = {Name.BENCH.partition("/")[0], Name.EVALUATION.partition("/")[0]}
_METRICS_FOLDERS = {"metrics", "evaluations"}  # of an attempt


class Amount(NamedTuple):
    """So many files, of so many bytes together."""

    num_files: int
    num_bytes: int

    @classmethod
    def of(cls, objects: Iterable[StoredObject]) -> "Amount":
        """Of some objects."""
        sizes = [found.num_bytes for found in objects]
        return cls(len(sizes), sum(sizes))


def part_of(name: str) -> Part:
    """The kind of one object, by its name in the run's folder."""
    first, *others = name.split("/")
    if first == Name.CHECKPOINTS:
        return Part.CHECKPOINTS
    if first in _BENCH_FOLDERS:
        return Part.BENCH
    is_metric = first == Name.ATTEMPTS and len(others) > 2 and others[1] in _METRICS_FOLDERS
    return Part.METRICS if is_metric else Part.RECORDS


def objects_by_part(folder: RunFolder) -> dict[Part, list[StoredObject]]:
    """Every object of a run by its kind; kinds of which there is nothing are empty. Raises StoreError."""
    found: dict[Part, list[StoredObject]] = {part: [] for part in Part}
    for item in folder.store.objects(folder.run_id):
        found[part_of(item.key.removeprefix(f"{folder.run_id}/"))].append(item)
    return found
