"""Is there prepared text for a run, and does it suit it: asked before it is paid for, and again on the node.

No torch and no numpy: the launcher looks through here too.
"""

import math
import re
import shlex

from trainer.config import TrainConfig
from trainer.contract import ConfigError
from trainer.shards import PARTS, SPLITS, Preparation, PreparedManifest, Split, find_manifest
from trainer.store import may_exist, open_store

_HELDOUT = "train.data.heldout_fraction (of prepared shards: --heldout)"


def look_up(address: str) -> PreparedManifest | None:
    """The manifest of the prepared text at a store's address, or None; makes no folder.

    Raises:
        ConfigError: It is damaged.
        StoreError: It cannot be read.
    """
    return find_manifest(open_store(address)) if may_exist(address) else None


def not_there(address: str, tokenizer: str) -> ConfigError:
    """What to say where `look_up` finds nothing. Raises StoreError.

    Args:
        tokenizer: Name of the token encoder.
    """
    place = address.partition("?")[0]
    finished = len(open_store(address).objects(PARTS)) if may_exist(address) else 0
    if finished:
        return ConfigError(f"its preparation is not finished: {finished} units are there, but no manifest",
                           place=place, fix="run the same `ldlm data prepare` again, on one machine")
    return ConfigError("there is no prepared text", place=place,
                       fix=how_to_prepare("SOURCE", tokenizer, address))


def how_to_prepare(source: str, tokenizer: str, out: str) -> str:
    """The command that prepares a text."""
    return f"ldlm data prepare {source} --tokenizer {shlex.quote(tokenizer)} --out {shlex.quote(out)}"


def how_to_prepare_for(tokenizer: str, preparation: Preparation, address: str, text: str) -> str:
    """The command that prepares the same documents for another tokenizer, and the option that takes them.

    Args:
        preparation: Of the text that there is.
        address: Of its store.
        text: The same as train.data.source: `shards:NAME` or a URL.
    """
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", tokenizer.rstrip("/").rpartition("/")[2])
    out, source = (f"{place.rstrip('/')}-{model}{mark}{options}"
                   for place, mark, options in (address.partition("?"), text.partition("?")))
    key = "" if preparation.text_key == "text" else f" --text-key {shlex.quote(preparation.text_key)}"
    return (f"{how_to_prepare(shlex.quote(preparation.source), tokenizer, out)}{key} "
            f"--heldout {preparation.heldout_fraction:g}; then add --set "
            f"{shlex.quote(f'train.data.source={source}')}")


def num_sequences(manifest: PreparedManifest, split: Split, length: int) -> int:
    """Sequences of `length` tokens: each shard is cut into them, what is left at its end is dropped."""
    return sum(shard.num_tokens // length for shard in manifest.of(split))


def check_enough(config: TrainConfig, manifest: PreparedManifest) -> None:
    """Refuse a text of less than one step, or with fewer than two held-out sequences. Raises ConfigError."""
    length = config.data.sequence_length
    num_train, num_heldout = (num_sequences(manifest, split, length) for split in SPLITS)
    if num_train >= config.global_batch_size and num_heldout >= 2:
        return
    more = f"raise {_HELDOUT}" if num_train >= config.global_batch_size else "lower train.global_batch_size"
    raise ConfigError(
        f"too little text: {num_train} training and {num_heldout} held-out sequences of "
        f"{length} tokens, but one step needs {config.global_batch_size} and evaluation needs 2",
        place=config.data.source,
        fix=f"prepare more documents, or lower train.data.sequence_length, or {more}")


def check_cache(config: TrainConfig, manifest: PreparedManifest) -> None:
    """Shards in use stay on disk whatever the limit, so it must have room for them. Raises ConfigError."""
    limit_bytes = int(config.data.cache_gib * 2**30)
    largest = sorted((shard.num_bytes for shard in manifest.of("train")), reverse=True)
    needed = sum(largest[:2 * config.data.window_shards])
    if needed > limit_bytes:
        raise ConfigError(f"train.data.cache_gib is {config.data.cache_gib:g}, but two windows of "
                          f"{config.data.window_shards} shards take {needed / 2**30:.2g} GiB",
                          place=config.data.source,
                          fix=f"set train.data.cache_gib to {math.ceil(needed / 2**30)}, or "
                              "train.data.window_shards to "
                              f"{max(1, config.data.window_shards * limit_bytes // (needed + 1))}")
