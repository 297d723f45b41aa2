"""Are prepared shards still what was written: all that they hold is read and hashed. No torch."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from trainer.contract import Name
from trainer.shards import Part, part_key
from trainer.store import Store

_FILES_AT_A_TIME = 4  # each with what it has read ahead in memory (guess)


def forget_damaged(store: Store, parts: Sequence[Part], say: Callable[[str], None]) -> set[int]:
    """Read the shards of finished units; those that differ from their hashes count as finished no longer.

    The manifest goes first, then the records: whoever comes next makes these units anew.

    Args:
        store: Where they are.
        parts: Of the units to look at.
        say: Told how much is read, and of each file that is damaged.

    Returns:
        The units that were damaged.

    Raises:
        StoreError: The store cannot be read, or nothing be deleted in it.
    """
    hashes = {key: (part.unit, sha256) for part in parts for shard in part.shards
              for key, sha256 in ((shard.key, shard.sha256), (shard.index_key, shard.index_sha256))}
    say(f"reading {len(hashes):,} files to compare their SHA-256")
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        found = dict(zip(hashes, pool.map(lambda key: _sha256(store, key), hashes), strict=True))
    damaged = {key: unit for key, (unit, sha256) in hashes.items() if found[key] != sha256}
    for key in damaged:
        say(f"{key}: damaged (SHA-256 differs), its unit is made anew")
    units = set(damaged.values())
    if units:
        store.delete([Name.MANIFEST, *map(part_key, sorted(units))])
    return units


def _sha256(store: Store, key: str) -> str:
    with store.open(key) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
