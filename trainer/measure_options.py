"""Command line of `ldlm evaluate`, for the trainer, and for the launcher that finds the run.

Standard library and the store's URLs only.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trainer.sample_options import add_ways
from trainer.store import store_url

FIELDS_JUDGE = "openai-community/gpt2-large"
RANDOM_WEIGHTS = ""  # where --autoregressive names no model
_EXAMPLES = """examples:
  ldlm evaluate RUN --out quality                     by GPT-2 large, as usual
  ldlm evaluate RUN --judge ./my-judge --out quality  without network
  ldlm evaluate RUN --steps 8,32,128 --temperatures 0.9,1 -n 1024 --out quality
  ldlm evaluate RUN --solver ancestral --grid warped --out quality
  ldlm evaluate RUN --prompt-tokens 16 --out quality     completions too
  ldlm evaluate RUN --autoregressive ./my-gpt --out quality   speed at a quality
"""
_T = TypeVar("_T", int, float)


def read_measure_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed behind `ldlm evaluate`. Ends the program with code 2 when it goes wrong."""
    parser = argparse.ArgumentParser(
        prog="ldlm evaluate", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Measure a run's newest checkpoint on held-out text, and its own text by a judge:\n"
                    "reconstruction, losses, perplexity over entropy, repetition, MAUVE, speed.\n"
                    "Needs `make evaluation-tools` once.",
        epilog=_EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="id of a run, see `ldlm status`")
    parser.add_argument("--store", type=store_url, metavar="URL", help="where its folder is")
    parser.add_argument("--judge", default=FIELDS_JUDGE, metavar="NAME|PATH",
                        help="causal language model of the Hub or in a folder (default GPT-2 large); metrics "
                             "by another one carry its name")
    parser.add_argument("--judge-revision", metavar="COMMIT", help="of the judge on the Hub")
    parser.add_argument("--no-mauve", dest="mauve", action="store_false",
                        help="leave MAUVE out, and mauve-text need not be installed")
    parser.add_argument("--steps", type=_several(int, 1, 10_000), default=[4, 16, 64], metavar="N,...",
                        help="denoiser passes, one sampling each (default 4,16,64)")
    parser.add_argument("--temperatures", type=_several(float, 0.01, 10), default=[1.0], metavar="T,...",
                        help="each with every number of steps (default 1)")
    add_ways(parser)
    parser.add_argument("-n", "--num", type=number(int, 1, 1_000_000), default=256, metavar="N",
                        help="texts of each sampling, and at most so many held-out sequences; as many "
                             "are judged of either as there are of both (default 256)")
    parser.add_argument("--prompt-tokens", type=number(int, 1, 1_000_000), metavar="N",
                        help="also complete held-out texts from their first N tokens; for models trained "
                             "with model.prompt")
    parser.add_argument("--batch", type=number(int, 1, 100_000), default=32, metavar="N",
                        help="sequences at a time (default 32)")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="evaluation.json, evaluation.png, samples.json go there")
    parser.add_argument("--autoregressive", nargs="?", const=RANDOM_WEIGHTS, metavar="NAME|PATH",
                        help="also this causal language model of the Hub or in a folder, its texts judged "
                             "beside ours, token after token, on a GPU under a CUDA graph; without a name "
                             "only the speed of one as large, whose random weights write nothing to judge")
    parser.add_argument("--json", action="store_true", help="print evaluation.json")
    return parser.parse_args(arguments)


def number(kind: type[_T], least: float, most: float) -> Callable[[str], _T]:
    """Reads a number within bounds from a command line."""
    def read(text: str) -> _T:
        try:
            value = kind(text)
        except ValueError:
            value = kind(least - 1)
        if not least <= value <= most:
            what, form = ("whole number", ",") if kind is int else ("number", "g")
            raise argparse.ArgumentTypeError(f"{text!r} is not a {what} from {least:{form}} to {most:{form}}")
        return value

    return read


def _several(kind: type[_T], least: float, most: float) -> Callable[[str], list[_T]]:
    read = number(kind, least, most)
    return lambda text: sorted({read(word) for word in text.split(",")})
