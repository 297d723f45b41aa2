"""`python -m trainer.prepare`, behind `ldlm data prepare`: text -> token shards in an object store. No torch.

Exit codes: those of the `ldlm` command.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from trainer.claims import check_name
from trainer.contract import SHARDS, ConfigError, Env, LdlmError, StoreError
from trainer.prepare_options import read_options
from trainer.preparing import (
    Result,
    bad_kinds,
    check_splits,
    prepare,
)
from trainer.shards import Part, PreparedManifest, prepared_address
from trainer.store import Store, open_store, store_url
from trainer.text_files import check_apart
from trainer.text_sources import Source, open_source
from trainer.text_tokenizer import TextTokenizer, text_tokenizer

_OPTIONS = {"train.token_encoder.name": "--tokenizer", "token_encoder.name": "--tokenizer",
            "train.token_encoder.revision": "--revision", "token_encoder.revision": "--revision",
            "--store": "--out"}
_INTERRUPTED = 130
_LINE_EVERY_S = 15.0  # where no terminal can redraw a bar
_EXAMPLES_SHOWN = 5


def main(argv: list[str] | None = None) -> int:
    """Prepare what the command line says. Returns the exit code."""
    options = read_options(argv)
    progress = Progress()
    try:
        _prepare(options, progress)
        return 0
    except KeyboardInterrupt:
        progress.close()
        print(f"interrupted; units finished and kept: {progress.num_finished} of {progress.num_units}; "
              "the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    except LdlmError as error:
        progress.close()
        print(f"error: {_as_typed(str(error))}", file=sys.stderr)
        return error.cli_exit_code


def _prepare(options: Namespace, progress: "Progress") -> None:
    if options.nodes:
        raise ConfigError("this program is one node", place="--nodes", fix="start them by: ldlm data prepare")
    began = time.monotonic()
    store = _open_out(options.out)
    check_apart(options.source, store.address)
    if not options.restart:
        check_name(store, options.tokenizer)
    source = open_source(options.source, options.text_key)
    _say_files(source)
    tokenizer = _load_tokenizer(options.tokenizer, options.revision)
    result = prepare(source, tokenizer, store, progress, heldout_fraction=options.heldout,
                     share=options.shard, num_processes=options.processes or len(os.sched_getaffinity(0)),
                     restart=options.restart)
    progress.close()
    if result.manifest:
        try:
            check_splits(result.manifest, store.url)
        except ConfigError:
            for line in _row_lines(result.manifest):
                _talk(line)
            raise
    _answer(result, store, time.monotonic() - began, progress, options.json)


def _as_typed(message: str) -> str:
    """What other commands and recipes call by other names, by the options of this one."""
    for name, option in _OPTIONS.items():
        message = message.replace(name, option)
    return message


class Progress:
    """How it goes, on stderr: a bar on a terminal, a line now and then elsewhere.

    Attributes:
        num_units: In all, of every machine; 0 before they are counted.
        num_finished: Of all, as far as this machine knows.
        num_tokens: Made by this call.
    """

    def __init__(self) -> None:
        self.num_units = self.num_finished = self.num_tokens = 0
        self._weights: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._done_weight = 0
        self._began = self._last_line_s = time.monotonic()
        self._bar: Any = None  # tqdm has no types

    def begin(self, num_units: int, num_done: int, weights: dict[int, int]) -> None:
        """See `trainer.preparing.Watch`."""
        self.num_units, self.num_finished, self._weights = num_units, num_done, weights
        self._began = self._last_line_s = time.monotonic()
        _talk(f"{_count(num_units, 'unit')}, {num_done} finished, {len(weights)} to do here")
        if sys.stderr.isatty() and weights:
            from tqdm import tqdm

            self._bar = tqdm(total=sum(weights.values()), file=sys.stderr, smoothing=0.1,
                             bar_format="{percentage:3.0f}% |{bar}| {remaining} left{postfix}")

    def tell(self, unit: int, characters: int, tokens: int) -> None:
        """See `trainer.preparing.Watch`."""
        self.num_tokens += tokens
        self._told[unit] = min(self._weights.get(unit, 0), self._told.get(unit, 0) + characters)
        self._show()

    def done(self, part: Part) -> None:
        """See `trainer.preparing.Watch`."""
        self.num_finished += 1
        self._told.pop(part.unit, None)
        self._done_weight += self._weights.get(part.unit, 0)
        self._show()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self) -> None:
        now = time.monotonic()
        at = self._done_weight + sum(self._told.values())
        rate = self.num_tokens / max(now - self._began, 1e-9)
        words = (f"{self.num_finished}/{_count(self.num_units, 'unit')}, {_number(self.num_tokens)} tokens, "
                 f"{_number(rate)}/s")
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(at - self._bar.n)
        elif now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            share = at / max(1, sum(self._weights.values()))
            left = (now - self._began) * (1 - share) / share if share else 0
            _talk(f"{share:4.0%}, {words}, {_duration(left)} left")


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


def _say_files(source: Source) -> None:
    if source.num_files:
        kinds = ", ".join(f"{count} {ending or 'of no ending'}" for ending, count in source.num_files.items())
        _talk(f"taken: {_count(sum(source.num_files.values()), 'file')} ({kinds})")
    if source.ignored:
        shown = ", ".join(source.ignored[:_EXAMPLES_SHOWN])
        more = ", …" if len(source.ignored) > _EXAMPLES_SHOWN else ""
        _talk(f"passed over, by their names: {_count(len(source.ignored), 'file')} ({shown}{more})")


def _answer(result: Result, store: Store, seconds: float, progress: Progress, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_summary(result, store, seconds, progress), indent=1))
    elif result.manifest is None:
        print(f"{store.url}: this share is finished, and whoever finishes last commits; units there: "
              f"{result.num_finished} of {result.num_units}")
    else:
        _show_manifest(result.manifest)
        print(f"{store.url}: " + (f"prepared in {_duration(seconds)}" if result.num_made
                                  else "was prepared already, nothing was done"))


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
    print(f"  training   {_number(train)} tokens in {_count(len(manifest.of('train')), 'shard')}\n"
          f"  held out   {_number(heldout)} tokens")
    for line in _row_lines(manifest):
        print(line)


def _row_lines(manifest: PreparedManifest) -> Iterator[str]:
    """What became of the rows."""
    rows = manifest.rows
    yield f"  documents  {rows.num_documents:,} of {_count(rows.num_rows, 'row')}"
    if rows.num_bad:
        yield f"  bad rows   {rows.num_bad:,} of {rows.num_rows:,} ({bad_kinds(rows)})"
        yield from (f"             {example}" for example in rows.examples[:_EXAMPLES_SHOWN])


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
