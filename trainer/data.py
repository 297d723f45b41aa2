"""The text of a run: prepared shards -> sequences of token ids. No torch.

Shapes: N sequences, L tokens of a sequence.
"""

import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trainer.batches import Layout, coming_shards
from trainer.claims import find_plan
from trainer.config import TrainConfig
from trainer.contract import ConfigError, StoreError
from trainer.local_cache import MORE_ROOM, LocalDiskError, disk_errors, one_at_a_time
from trainer.preparing import Quiet, bad_rows, prepare
from trainer.shard_cache import ShardCache, is_whole_shard
from trainer.shards import (
    SHARDS,
    Preparation,
    PreparedManifest,
    Shard,
    TokenizerIdentity,
    find_manifest,
    prepared_address,
)
from trainer.store import Store, local_store_url, open_store
from trainer.text_checks import check_cache, check_enough, how_to_prepare_for, look_up, not_there
from trainer.text_sources import digest, open_source
from trainer.text_tokenizer import TextTokenizer, text_tokenizer

_LOCK = "lock"
_MOST_OF_ONE_TOKEN = 0.9  # of any text that is one; the most common token of prose is 5 % (guess)


class Corpus:
    """Sequences of L tokens: each shard is cut into them, what is left at its end is dropped.

    Attributes:
        layout: How many sequences each training shard holds.
        heldout_NL: uint32, at most `evaluate_sequences` of documents that no training shard holds.
        num_dropped_tokens: Of the training shards, too few for a sequence.
        fingerprint: Names tokens, length and order: equal fingerprints and seeds give equal batches.
    """

    def __init__(self, manifest: PreparedManifest, config: TrainConfig, shards: ShardCache,
                 cache: Path) -> None:
        self._shards, self._cache, self._seed = shards, cache, config.seed
        self._length = config.data.sequence_length
        self._train: list[Shard] = manifest.of("train")
        self.layout = Layout(tuple(self._rows_of(shard) for shard in self._train), config.data.window_shards)
        self.num_dropped_tokens = sum(shard.num_tokens % self._length for shard in self._train)
        self.heldout_NL = self._read_heldout(manifest.of("heldout"), config.evaluate_sequences)
        parts = [[shard.sha256 for shard in manifest.shards], self._length, self.layout.window_shards]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def num_sequences(self) -> int:
        """N of the training part."""
        return self.layout.num_sequences

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Training sequences by number: uint32 (n, L).

        Raises:
            StoreError: A shard cannot be fetched.
            DamagedShardError: It is not what its manifest says.
        """
        shards = np.searchsorted(self.layout.first, indices, side="right") - 1
        rows_NL = np.empty((len(indices), self._length), dtype=np.uint32)
        for shard in np.unique(shards):
            here = shards == shard
            rows_NL[here] = self._blocks(self._train[shard])[indices[here] - self.layout.first[shard]]
        return rows_NL

    def expect(self, shards: Sequence[int]) -> None:
        """Fetch these training shards ahead, let go of all others."""
        self._shards.expect(self._train[shard] for shard in shards)

    def sample(self, num_rows: int) -> np.ndarray:
        """Sequences spread evenly over the shards that training begins with, which are drawn at random:
        uint32 (n, L), n at most `num_rows`. Raises as `rows`."""
        shards = coming_shards(self.layout, self._seed, 0)
        numbers = np.concatenate([np.arange(self.layout.first[shard], self.layout.first[shard + 1])
                                  for shard in shards])
        chosen = np.linspace(0, len(numbers) - 1, min(num_rows, len(numbers))).round().astype(np.int64)
        return self.rows(numbers[chosen])

    @functools.cached_property
    def seen_ids(self) -> np.ndarray:
        """Ids that occur in the training sequences, sorted, int64. Reads them all, once per machine.

        Raises:
            LocalDiskError: They cannot be kept on this machine.
        """
        kept = _read_seen(self._cache, self.fingerprint)
        if kept is None:
            kept = np.unique(np.concatenate([np.unique(self._blocks(shard)) for shard in self._train]))
            kept = kept.astype(np.int64)
            _keep_seen(self._cache, self.fingerprint, kept)
        return kept

    def _rows_of(self, shard: Shard) -> int:
        return shard.num_tokens // self._length

    def _blocks(self, shard: Shard) -> np.ndarray:
        num_rows = self._rows_of(shard)
        return self._shards.tokens(shard)[:num_rows * self._length].reshape(num_rows, self._length)

    def _read_heldout(self, shards: Sequence[Shard], num_rows: int) -> np.ndarray:
        found = np.empty((0, self._length), dtype=np.uint32)
        for shard in shards:
            if len(found) < num_rows and self._rows_of(shard):
                found = np.concatenate([found, self._blocks(shard)[:num_rows - len(found)]])
        return found


def open_corpus(config: TrainConfig, tokenizer: Any, store: Store | None, cache: Path,
                say: Callable[[str], None] = print) -> Corpus:
    """Find the text of a run, check that it fits, and make it ready to be read.

    Any number of processes may call this at once.

    Args:
        config: `data` says what to read.
        tokenizer: The Hugging Face tokenizer of the token encoder.
        store: Of the run, for `shards:NAME`.
        cache: Folder of this machine, made when missing.
        say: Told of bad rows, by the one process that finds them.

    Raises:
        ConfigError: There is no such text, it is of another tokenizer, damaged, or too little.
        StoreError: It cannot be read.
    """
    text = text_tokenizer(tokenizer, config.token_encoder.name)
    address = _prepared(config, text, store, cache, say)
    manifest = look_up(address)
    if manifest is None:
        raise not_there(address, config.token_encoder.name)
    prepared = open_store(address)
    _check_tokenizer(manifest.preparation, text.identity, prepared, config.data.source)
    check_enough(config, manifest)
    check_cache(config, manifest)
    shards = ShardCache(prepared, cache / "shards", int(config.data.cache_gib * 2**30))
    corpus = Corpus(manifest, config, shards, cache)
    _check_varied(corpus.heldout_NL, tokenizer, config)
    return corpus


def _check_varied(rows_NL: np.ndarray, tokenizer: Any, config: TrainConfig) -> None:
    """Refuse a text that its tokenizer does not know: a model of one token learns nothing, perfectly."""
    token_ids, counts = np.unique(rows_NL, return_counts=True)
    share = counts.max() / counts.sum()
    if share > _MOST_OF_ONE_TOKEN:
        word = tokenizer.convert_ids_to_tokens(int(token_ids[counts.argmax()]))
        raise ConfigError(f"{share:.0%} of the held-out tokens are {word!r}: the tokenizer does not know "
                          "this text", place=config.data.source,
                          fix=f"train on text that the tokenizer of {config.token_encoder.name} can read, or "
                              "set train.token_encoder.name to an encoder that knows this one")


def _prepared(config: TrainConfig, text: TextTokenizer, store: Store | None, cache: Path,
              say: Callable[[str], None]) -> str:
    """The address of the shards; a text that has none is prepared first."""
    source = config.data.source
    if source.startswith(SHARDS):
        if store is None:
            raise ConfigError(f"{source} is looked for in the store, but there is none", place="data.source",
                              fix="set store in the recipe, or name the URL of the shards")
        return prepared_address(store.address, source, "data.source")
    if source.startswith("hf://"):
        raise ConfigError(f"{source} is a dataset, not prepared shards", place="data.source",
                          fix=f"ldlm data prepare {source} --tokenizer {config.token_encoder.name} "
                              "--out URL; then set data.source to that URL")
    return source if "://" in source else _prepare_here(config, text, cache, say).address


def _prepare_here(config: TrainConfig, text: TextTokenizer, cache: Path, say: Callable[[str], None]) -> Store:
    """The shards of a text that is small enough to be prepared on each machine, when it is needed."""
    source, heldout = open_source(config.data.source), config.data.heldout_fraction
    key = digest(source.listing, text.identity.digest, text.identity.end_of_text_id, heldout)
    folder = cache / "texts" / key[:16]
    with one_at_a_time(folder / _LOCK), _own_disk(folder):  # the other ranks of this machine wait here
        store = open_store(local_store_url(folder))
        _clear_unreadable(store)
        result = prepare(source, text, store, Quiet(), heldout_fraction=heldout)
        if result.num_made and result.manifest and result.manifest.rows.num_bad:
            say(f"{config.data.source}: {bad_rows(result.manifest.rows)}")
    return store


def _clear_unreadable(store: Store) -> None:
    """Remove what a torn disk or another version of ldlm has left in a cache: it is made anew."""
    try:
        find_plan(store)
        manifest = find_manifest(store)
    except ConfigError:
        store.delete(found.key for found in store.objects() if found.key != _LOCK)
        return
    folder = store.local_folder
    for shard in manifest.shards if manifest and folder else ():
        if not is_whole_shard(folder / shard.key, shard):
            (folder / shard.key).unlink(missing_ok=True)


@contextmanager
def _own_disk(folder: Path) -> Iterator[None]:
    """Name the cache's disk, not the store of the run, where the cache cannot be written."""
    try:
        yield
    except StoreError as error:
        if not (error.place or "").startswith(local_store_url(folder)):
            raise
        raise LocalDiskError(error.problem, place=error.place, fix=MORE_ROOM) from error


def _check_tokenizer(preparation: Preparation, wanted: TokenizerIdentity, prepared: Store, text: str) -> None:
    found, again = preparation.tokenizer, how_to_prepare_for(wanted.name, preparation, prepared.address, text)
    if found.digest != wanted.digest:
        raise ConfigError(f"the shards are of tokenizer {found}, but the token encoder's is {wanted}",
                          place=prepared.url,
                          fix=f"{again}; or set train.token_encoder.name to {found.name}")
    if found.end_of_text_id != wanted.end_of_text_id:
        raise ConfigError(f"documents of the shards end in id {found.end_of_text_id}, but the end of text "
                          f"of {wanted.name} is {wanted.end_of_text_id}", place=prepared.url, fix=again)


def _read_seen(cache: Path, fingerprint: str) -> np.ndarray | None:
    """Ids that `_keep_seen` has kept, if they are still what was written."""
    for path in cache.glob(f"{fingerprint}-seen-*.npy"):
        data = path.read_bytes()
        if path.name == _seen_name(fingerprint, data):
            return np.load(io.BytesIO(data))  # type: ignore[no-any-return]
    return None


def _keep_seen(cache: Path, fingerprint: str, token_ids: np.ndarray) -> None:
    written = io.BytesIO()
    np.save(written, token_ids)
    data = written.getvalue()
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        # Under its name only when whole: another rank may look at any time.
        with tempfile.NamedTemporaryFile(dir=cache, prefix=fingerprint, suffix=".part", delete=False) as file:
            file.write(data)
        os.replace(file.name, cache / _seen_name(fingerprint, data))


def _seen_name(fingerprint: str, data: bytes) -> str:
    return f"{fingerprint}-seen-{hashlib.sha256(data).hexdigest()[:16]}.npy"
