"""A source is prepared once, by however many machines: claim, do what is missing, commit. No torch.

Machines need not know of each other. `plan.json` is created by the first and compared by the others;
each takes the units that are its share and leaves a record of every one it has finished; whoever finds
all records there writes the manifest, which is the same whoever writes it.
"""

import itertools
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from trainer.claims import check_claim, claim, find_plan, remove_prepared
from trainer.contract import ConfigError, Name
from trainer.file_rows import BINARY, HALF_CHARACTER, NO_KEY, NOT_TEXT, NOT_UTF8
from trainer.prepare_options import ALL, Share
from trainer.prepare_units import Work, prepare_all
from trainer.shard_checks import forget_damaged
from trainer.shards import (
    PARTS,
    PLAN,
    SPLITS,
    Part,
    Preparation,
    PreparedManifest,
    RowCounts,
    find_manifest,
    make_manifest,
    part_key,
    read_record,
    write_record,
    wrong_sizes,
)
from trainer.store import NotFoundError, Store
from trainer.text_files import KINDS
from trainer.text_sources import Source
from trainer.text_tokenizer import TextTokenizer

_REQUESTS_AT_A_TIME = 16
_ROWS_LOOKED_AT = 1_000
_WRONG_KEY = {NO_KEY, NOT_TEXT}
_USUAL_KEYS = ("text", "content", "document", "body")
_FIXES = {
    NOT_UTF8: "convert it: iconv -f latin1 -t utf-8 FILE",
    BINARY: f"these are no texts: name files that are ({KINDS}); UTF-16: iconv -f utf-16 -t utf-8 FILE",
    HALF_CHARACTER: "the JSON was cut within a character: write it anew from the texts, whole",
}


class Watch(Protocol):
    """Told how the work goes on."""

    def begin(self, num_units: int, num_done: int, weights: dict[int, int]) -> None:
        """There are so many units in all, of which ours to do have these weights."""

    def tell(self, unit: int, characters: int, tokens: int) -> None:
        """So much more of a unit is done."""

    def done(self, part: Part) -> None:
        """A unit is finished."""

    def say(self, line: str) -> None:
        """Something is worth a line."""


class Quiet:
    """A Watch that looks away."""

    def begin(self, num_units: int, num_done: int, weights: dict[int, int]) -> None:
        """Nothing."""

    def tell(self, unit: int, characters: int, tokens: int) -> None:
        """Nothing."""

    def done(self, part: Part) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Result(NamedTuple):
    """What a preparation has come to.

    Attributes:
        manifest: None while units of others are missing.
        num_units: In all.
        num_finished: Of all.
        num_made: By this call.
    """

    manifest: PreparedManifest | None
    num_units: int
    num_finished: int
    num_made: int


def prepare(source: Source, tokenizer: TextTokenizer, store: Store, watch: Watch, *,
            heldout_fraction: float, share: Share = ALL, num_processes: int = 1,
            restart: bool = False, verify: bool = False) -> Result:
    """Prepare a share of a source, and commit when nothing is missing.

    What is finished is not made again: a call after a kill continues, one after the end does nothing.

    Args:
        source: The text.
        tokenizer: Gives the ids.
        store: A folder for this text alone.
        watch: Is told how it goes.
        heldout_fraction: Of the documents, by their content.
        share: The part of this machine.
        num_processes: On this machine.
        restart: Delete what is prepared there, once it is certain that this can take its place.
        verify: Read what is finished of the share and compare its hashes, not only its sizes.

    Raises:
        ConfigError: Something else is prepared there, no row is usable, or one split is empty.
        StoreError: Source or store cannot be read or written. What is finished is kept.
    """
    wanted = Preparation(
        source=source.spec, text_key=source.text_key, listing=source.listing, num_units=len(source.units),
        tokenizer=tokenizer.identity, heldout_fraction=heldout_fraction, num_files=dict(source.num_files))
    if restart or find_plan(store) is None:
        # Before the place is claimed: with the right key it is to be free.
        _look_at_rows(source)
    if restart:
        remove_prepared(store)
    preparation = claim(store, wanted)
    manifest = find_manifest(store)  # before the units: one that is committed meanwhile must not be deleted
    finished = _finished_units(store, preparation)
    ours = range(share.index, wanted.num_units, share.count)
    if verify:
        for unit in forget_damaged(store, [finished[unit] for unit in ours if unit in finished], watch.say):
            del finished[unit]
    if manifest and len(finished) == preparation.num_units:
        return Result(manifest, preparation.num_units, len(finished), 0)
    if manifest:
        store.delete([Name.MANIFEST])  # shards are missing: nobody may train until they are there again
    missing = [unit for unit in ours if unit not in finished]
    watch.begin(preparation.num_units, len(finished), {unit: source.units[unit].weight for unit in missing})
    work = Work(source, tokenizer, preparation, store.address)
    prepare_all(work, missing, num_processes, watch.tell, watch.done)
    return _commit(store, preparation, len(missing))


def _commit(store: Store, preparation: Preparation, num_made: int) -> Result:
    """Write the manifest, if no unit is missing; without one document the place is left as it was found."""
    finished = _finished_units(store, preparation)
    if len(finished) < preparation.num_units:
        return Result(None, preparation.num_units, len(finished), num_made)
    manifest = make_manifest(preparation, [finished[unit] for unit in range(preparation.num_units)])
    check_claim(store, preparation)
    if not manifest.rows.num_documents:
        store.delete([*map(part_key, finished), PLAN])  # and there are no shards
        raise _no_documents(manifest.rows, preparation)
    write_record(store, Name.MANIFEST, manifest)
    return Result(manifest, preparation.num_units, len(finished), num_made)


def _finished_units(store: Store, preparation: Preparation) -> dict[int, Part]:
    """Records of units that are finished: the record is whole, and its shards have their sizes."""
    keys = {found.key for found in store.objects(PARTS)}
    units = [unit for unit in range(preparation.num_units) if part_key(unit) in keys]
    sizes = {found.key: found.num_bytes for split in SPLITS for found in store.objects(split)}
    with ThreadPoolExecutor(_REQUESTS_AT_A_TIME) as pool:
        parts = list(pool.map(lambda unit: _read_part(store, unit), units))
    return {part.unit: part for part in parts
            if part and part.preparation == preparation.digest and not wrong_sizes(part.shards, sizes)}


def _read_part(store: Store, unit: int) -> Part | None:
    try:
        return read_record(store, part_key(unit), Part)
    except (ConfigError, NotFoundError):
        return None  # it is made anew


def _look_at_rows(source: Source) -> None:
    """A wrong key should be told before hours are spent on it.

    Always at the first rows of all, whatever is ours to do: every machine must come to the same end.
    """
    keys: set[str] = set()
    kinds: set[str] = set()
    pieces = source.units[0].pieces if source.units else ()
    rows = itertools.chain.from_iterable(source.rows(piece, {}) for piece in pieces)
    for number, row in enumerate(rows, start=1):
        keys.update(row.keys)
        kinds.add(row.problem)
        if row.problem not in _WRONG_KEY:
            return
        if number >= _ROWS_LOOKED_AT:  # fewer may be one odd file before the others
            raise _wrong_key(source.spec, source.text_key, kinds, keys, f"none of the first {number:,} rows")


def check_splits(manifest: PreparedManifest, place: str) -> None:
    """Refuse a split without a document. Raises ConfigError."""
    rows, fraction = manifest.rows, manifest.preparation.heldout_fraction
    for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
        if not manifest.of(split):
            raise ConfigError(
                f"the {split} split is empty: with --heldout {fraction:g} every document went to {other} "
                f"({rows.num_documents:,} in all)", place=place,
                fix="give more documents, or prepare it anew with --restart and a "
                    f"{'larger' if split == 'heldout' else 'smaller'} --heldout")


def bad_rows(rows: RowCounts) -> str:
    """How many rows are bad, and which kinds, in words."""
    return (f"{rows.num_bad:,} of {rows.num_rows:,} rows are bad ({bad_kinds(rows)}); "
            f"the first is {rows.examples[0]}")


def bad_kinds(rows: RowCounts) -> str:
    """How many bad rows of each kind, in words."""
    return ", ".join(f"{kind}: {count:,}" for kind, count in rows.bad.items())


def _no_documents(rows: RowCounts, preparation: Preparation) -> ConfigError:
    if rows.bad and set(rows.bad) <= _WRONG_KEY:
        return _wrong_key(preparation.source, preparation.text_key, set(rows.bad), set(rows.keys), "no row")
    if not rows.num_rows:
        return ConfigError("the source holds no text", place=preparation.source,
                           fix="name a file with text in it")
    usual = max(rows.bad, key=lambda kind: rows.bad[kind])
    return ConfigError(f"no row is usable: {bad_rows(rows)}", place=preparation.source,
                       fix=_FIXES.get(usual, f"check that the files are what their names say: {KINDS}"))


def _wrong_key(spec: str, text_key: str, kinds: set[str], keys: set[str], which: str) -> ConfigError:
    what = f"{which} has {'the key' if kinds == {NO_KEY} else 'text under the key'} `{text_key}`"
    if not keys:
        return ConfigError(f"{what}, nor does any other", place=spec,
                           fix="name a source whose rows hold text under a key")
    likely = next((key for key in _USUAL_KEYS if key in keys), min(keys))
    return ConfigError(f"{what}; keys with text are {', '.join(sorted(keys))}", place=spec,
                       fix=f"name the one that is meant, such as --text-key {shlex.quote(likely)}")
