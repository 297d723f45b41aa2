"""What `ldlm data prepare` does with its command line, and what it says. No torch."""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from trainer.claims import check_name
from trainer.contract import SHARDS, ConfigError, Env, LdlmError, StoreError
from trainer.interrupts import INTERRUPTED, NOT_BEGUN, ends_at_once
from trainer.prepare_options import read_options
from trainer.prepare_progress import Progress, count, duration, fold, number, talk
from trainer.preparing import Result, bad_kinds, check_splits, prepare
from trainer.shards import PreparedManifest, prepared_address
from trainer.store import Store, open_store, store_url
from trainer.text_files import check_apart
from trainer.text_sources import Source, open_source, uncut_files
from trainer.text_tokenizer import TextTokenizer, text_tokenizer

_OPTIONS = {"train.token_encoder.name": "--tokenizer", "token_encoder.name": "--tokenizer",
            "train.token_encoder.revision": "--revision", "token_encoder.revision": "--revision",
            "--store": "--out"}
_EXAMPLES_SHOWN = 5
_ROWS_INDENT = 13  # columns before what is said of rows


def prepare_as_typed(arguments: list[str] | None) -> int:
    """Prepare what the command line says. Returns the exit code."""
    options = read_options(arguments)
    progress = Progress()
    try:
        _prepare(options, progress)
        return 0
    except KeyboardInterrupt:
        progress.close()
        talk(f"interrupted; kept: {progress.num_finished} of {count(progress.num_units, 'unit')}; the same "
             "command goes on from there" if progress.num_units else NOT_BEGUN)
        return INTERRUPTED
    except LdlmError as error:
        progress.close()
        print(f"error: {_as_typed(str(error))}", file=sys.stderr)
        return error.cli_exit_code


def _prepare(options: Namespace, progress: Progress) -> None:
    if options.nodes:
        raise ConfigError("this program is one node", place="--nodes", fix="start them by: ldlm data prepare")
    began = time.monotonic()
    num_processes = options.processes or len(os.sched_getaffinity(0))
    with ends_at_once(NOT_BEGUN):  # it imports much, and waits for the Hub
        store = _open_out(options.out)
        check_apart(options.source, store.address)
        if not options.restart:
            check_name(store, options.tokenizer)
        source = open_source(options.source, options.text_key)
        _say_files(source, num_processes)
        tokenizer = _load_tokenizer(options.tokenizer, options.revision)
    result = prepare(source, tokenizer, store, progress, heldout_fraction=options.heldout,
                     share=options.shard, num_processes=num_processes, restart=options.restart,
                     verify=options.verify)
    progress.close()
    if result.manifest:
        try:
            check_splits(result.manifest, store.url)
        except ConfigError:
            for line in _row_lines(result.manifest):
                print(fold(line, _ROWS_INDENT), file=sys.stderr)
            raise
    _answer(result, store, time.monotonic() - began, progress, options)


def _as_typed(message: str) -> str:
    """What other commands and recipes call by other names, by the options of this one."""
    for name, option in _OPTIONS.items():
        message = message.replace(name, option)
    return message


def _open_out(out: str) -> Store:
    if not out.startswith(SHARDS):
        try:
            return open_store(out)
        except StoreError as error:
            place = "--out" if error.place == "store" else f"--out {error.place}"
            raise StoreError(error.problem, place=place, fix=error.fix) from error
    url = os.environ.get(Env.STORE)
    if not url:
        raise ConfigError(f"{out} lies in the store, but which one is not said", place="--out",
                          fix=f"set {Env.STORE} to its URL, or give --out a URL")
    return open_store(prepared_address(store_url(url), out, "--out"))


def _load_tokenizer(name: str, revision: str | None) -> TextTokenizer:
    # Both take seconds to import; workers never need them.
    from trainer.config import TokenEncoderConfig
    from trainer.token_encoder import load_tokenizer

    return text_tokenizer(load_tokenizer(TokenEncoderConfig(name=name, revision=revision)), name)


def _say_files(source: Source, num_processes: int) -> None:
    if source.num_files:
        kinds = ", ".join(f"{num} {ending or 'of no ending'}" for ending, num in source.num_files.items())
        talk(f"taken: {count(sum(source.num_files.values()), 'file')} ({kinds})")
    if source.ignored:
        shown = ", ".join(source.ignored[:_EXAMPLES_SHOWN])
        more = ", …" if len(source.ignored) > _EXAMPLES_SHOWN else ""
        talk(f"passed over, by their names: {count(len(source.ignored), 'file')} ({shown}{more})")
    uncut, num_idle = uncut_files(source), num_processes - len(source.units)
    if uncut:
        idle = f"; {num_idle} of {num_processes} processes will have nothing to do" if num_idle > 0 else ""
        talk(f"{count(uncut, 'large file')} cannot be cut: each is read by one process from its start, also "
             f"after an interruption{idle}")


def _answer(result: Result, store: Store, seconds: float, progress: Progress,
            options: Namespace) -> None:
    if options.json:
        print(json.dumps(_summary(result, store, seconds, progress), indent=1))
    elif result.manifest is None:
        print(f"{store.url}:")
        print(fold(f"  this share is finished; units there: {result.num_finished} of {result.num_units}; "
                   "whoever finishes last commits"))
    else:
        _show_manifest(result.manifest)
        compared = "SHA-256 compared" if options.verify else "sizes compared; --verify reads it all"
        print(f"{store.url}:\n  " + (f"prepared in {duration(seconds)}" if result.num_made else
                                     f"was prepared already, nothing was done ({compared})"))


def _summary(result: Result, store: Store, seconds: float, progress: Progress) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "url": store.url, "complete": result.manifest is not None, "num_units": result.num_units,
        "num_finished_units": result.num_finished, "num_units_made": result.num_made,
        "seconds": round(seconds, 1), "num_tokens_made": progress.num_tokens}
    if result.manifest:
        rows = result.manifest.rows.model_dump(mode="json")
        summary |= {"num_shards": len(result.manifest.shards), "rows": rows,
                    "num_train_tokens": result.manifest.num_tokens("train"),
                    "num_heldout_tokens": result.manifest.num_tokens("heldout"),
                    "tokenizer": result.manifest.preparation.tokenizer.model_dump()}
    return summary


def _show_manifest(manifest: PreparedManifest) -> None:
    train, heldout = manifest.num_tokens("train"), manifest.num_tokens("heldout")
    print(f"  training   {number(train)} tokens in {count(len(manifest.of('train')), 'shard')}\n"
          f"  held out   {number(heldout)} tokens")
    for line in _row_lines(manifest):
        print(fold(line, _ROWS_INDENT))


def _row_lines(manifest: PreparedManifest) -> Iterator[str]:
    """What became of the rows."""
    rows = manifest.rows
    yield f"  documents  {rows.num_documents:,} of {count(rows.num_rows, 'row')}"
    if rows.num_bad:
        yield f"  bad rows   {rows.num_bad:,} of {rows.num_rows:,} ({bad_kinds(rows)})"
        yield from (f"{' ' * _ROWS_INDENT}{example}" for example in rows.examples[:_EXAMPLES_SHOWN])
