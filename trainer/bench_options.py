"""Command line of `ldlm bench-here`, which is `python -m trainer.bench generate`. No torch."""

import argparse
import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from trainer.bench_cases import SWEEPS
from trainer.measure_options import number
from trainer.profiles import PROFILES

_MODES = ("fp32", "bf16", "fp8", "fp4")
_MOST_TEXTS = 65_535  # programs along the second axis of a CUDA grid: a kernel has one for each text
_EXAMPLES = """examples:
  ldlm bench-here --preset seed-35b-a3b --steps 10 --steps 4
  ldlm bench-here --preset seed-27b --sweep batch --plot batch.png --out b.json
  ldlm bench-here --preset smoke --against earlier.json
"""


def read_bench_options(arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed behind `generate`. Ends the program with code 2 when it goes wrong."""
    parser = argparse.ArgumentParser(
        prog="ldlm bench-here", formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False, epilog=_EXAMPLES,
        description="Time generation, of random weights of a profile or of an export: the float32\n"
                    "reference and the fast path in one run, checked against each other first, beside\n"
                    "what the device can do.")
    _add_cases(parser)
    parser.add_argument("--generations", type=number(int, 1, 9_999), default=50, metavar="N",
                        help="timed generations of each path and case, after 3 to warm up (default 50)")
    parser.add_argument("--case-seconds", type=number(float, 0.01, 1e6), default=math.inf, metavar="S",
                        help="of timing each path of a case: fewer generations where they take longer")
    parser.add_argument("--parts", action="store_true", help="also where the time of the fast path goes: "
                                                             "denoiser, attention, decoders, head")
    parser.add_argument("--autoregressive", action="store_true",
                        help="also a transformer of as many parameters, one token after the other")
    parser.add_argument("--first-text", action="store_true", help="also how long a new process takes to its "
                                                                  "first text, by part")
    parser.add_argument("--no-compile", action="store_true",
                        help="the fast path without torch.compile: slower, but no minutes for each size")
    parser.add_argument("--seed", type=number(int, 0, 2**31 - 1), default=0,
                        help="of random weights, and of the inputs that are checked")
    parser.add_argument("--expect", metavar="GPU", help="says so where the device is another: RTX5090")
    parser.add_argument("--project", choices=["rtx5090"], help="also a projection by bandwidth, called that")
    parser.add_argument("--price", type=_price, metavar="USD", help="an hour of this machine: dollars per "
                                                                    "million tokens")
    parser.add_argument("--git-sha", metavar="SHA", help="commit of this code, where it lies in no checkout")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of everything")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG: speed and share of the limit "
                                                                  "over what was varied")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier --out: exit code 1 where a "
                                                                     "case is slower than noise explains")
    options = parser.parse_args(arguments)
    if not options.preset and not options.exports:
        parser.error("name what to benchmark: --preset NAME, or --from PATH")
    return options


def _add_cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", action="append", default=[], choices=sorted(PROFILES), metavar="NAME",
                        help=f"profile, several times for several: {', '.join(PROFILES)}")
    parser.add_argument("--from", action="append", default=[], type=Path, metavar="PATH", dest="exports",
                        help="a trained model: a folder that `ldlm export` has made")
    parser.add_argument("--steps", action="append", type=number(int, 1, 10_000), metavar="N",
                        help="denoiser passes (default 10); every combination of what is given is timed")
    parser.add_argument("--length", action="append", type=number(int, 2, 999_999), metavar="N",
                        help="tokens of a text (default: the profile's)")
    parser.add_argument("--batch", action="append", type=number(int, 1, _MOST_TEXTS), metavar="N",
                        help="texts at once (default 1)")
    parser.add_argument("--dtype", action="append", choices=_MODES, help="of the fast path's weights "
                        "(default bf16 on a GPU, else fp32); the reference is float32 always")
    parser.add_argument("--sweep", action="append", choices=sorted(SWEEPS), default=[], metavar="AXIS",
                        help="steps, length or batch: all standard values of it, the others at their first")


def _price(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(-1)
    if not value.is_finite() or not 0 < value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of dollars above 0")
    return value


