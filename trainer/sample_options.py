"""Command lines of `ldlm sample` and `ldlm export`, for the trainer, and for the launcher that finds the run.

Standard library and the store's URLs only.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.store import store_url

# Options that stand for settings of `train.sampling`: of all sampling, and also of `ldlm sample`.
WAYS = {"solver": "solver", "grid": "grid", "guidance": "self_conditioning_guidance",
        "prompt_guidance": "prompt_guidance"}
SETTINGS = {"steps": "steps", "temperature": "temperature", **WAYS}
_SAMPLE_EXAMPLES = """examples:
  ldlm sample RUN -n 8 --steps 32
  ldlm sample RUN --solver ancestral --steps 128 --seed 1 --json
  ldlm sample --from exports/RUN --prompt "in the beginning" --prompt-guidance 2
  ldlm sample RUN --prompt "in the beginning" --suffix "and it was so"
"""
_EXPORT_EXAMPLES = """examples:
  ldlm export RUN --out exports/RUN
  ldlm export RUN --push-to-hub me/my-model      (the token of the Hub: HF_TOKEN)
"""


def read_sample_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed behind `ldlm sample`. Ends the program with code 2 when it goes wrong."""
    parser = _parser("sample", "Generate text, unselected, from the newest checkpoint of a run or from\n"
                     "an export. What is left out is as in the run's recipe.", _SAMPLE_EXAMPLES)
    _add_run(parser, "RUN", nargs="?")
    parser.add_argument("--from", dest="export", type=_path, metavar="PATH", help="an export, not a run")
    parser.add_argument("--trust-compiled", action="store_true", help="run the machine code that lies in the "
                        "export (made by --with-compiled, on such a device): only if you know who made it")
    parser.add_argument("-n", "--num", type=positive, metavar="N", help="texts")
    parser.add_argument("--seed", type=_seed, default=0, help="text i depends on it and i alone (default 0)")
    add_sampling(parser)
    parser.add_argument("--prompt", type=_not_empty, metavar="TEXT", help="what every text begins with; for "
                        "models trained with model.prompt")
    parser.add_argument("--suffix", type=_not_blank, metavar="TEXT", help="what every text ends with: what "
                        "stands between --prompt and it is filled in by replacing latents, for any model "
                        "with as many latents as tokens; one with model.prompt reads --prompt as well")
    parser.add_argument("--json", action="store_true", help="for programs")
    return _checked(parser, parser.parse_args(arguments))


def read_export_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed behind `ldlm export`. Ends the program with code 2 when it goes wrong."""
    parser = _parser("export", "Write what generation needs of a run's newest checkpoint into a folder,\n"
                     "whole or not at all, with a model card and the recipe.", _EXPORT_EXAMPLES)
    _add_run(parser, "RUN")
    parser.add_argument("--out", type=_path, metavar="PATH", help="the folder, which must be empty or "
                        "not there yet (default: RUN-step-N here)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the weights "
                        "(default bf16)")
    parser.add_argument("--with-encoder", action="store_true", help="the latent encoder too, for "
                        "`ldlm sample --suffix`")
    parser.add_argument("--with-compiled", action="store_true", help="also the kernels of a first text on "
                        "this machine's GPU, for `ldlm sample --trust-compiled`")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="then upload it as this model")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args(arguments)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options that stand for settings of `train.sampling`: those of SETTINGS."""
    parser.add_argument("--steps", type=positive, metavar="N", help="denoiser passes")
    parser.add_argument("--temperature", type=_up_to(10.0, above=0.0), metavar="T",
                        help="factor of the noise at the start")
    add_ways(parser)


def add_ways(parser: argparse.ArgumentParser) -> None:
    """Those of WAYS."""
    parser.add_argument("--solver", choices=("ddim", "ancestral", "sde"))
    parser.add_argument("--grid", choices=("uniform", "warped"), help="of the times")
    parser.add_argument("--guidance", type=_up_to(100.0), metavar="W",
                        help="weight of the denoiser's earlier estimate")
    parser.add_argument("--prompt-guidance", type=_up_to(100.0), metavar="W", help="weight of the prompt: 0 "
                        "forgets it, above 1 follows it more than in training")


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"ldlm {name}", description=description, epilog=examples,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)


def _add_run(parser: argparse.ArgumentParser, metavar: str, nargs: str | None = None) -> None:
    parser.add_argument("run", metavar=metavar, nargs=nargs, help="id of a run, see `ldlm status`")
    parser.add_argument("--store", type=_store, metavar="URL", help="where its folder is")


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    if (options.run is None) == (options.export is None):
        parser.error("name either a RUN or an export by --from PATH")
    if options.trust_compiled and options.export is None:
        parser.error("--trust-compiled is for an export: name one by --from PATH")
    if options.prompt_guidance is not None and options.prompt is None:
        parser.error("--prompt-guidance weighs a prompt: add --prompt TEXT, or leave it out")
    return options


def _path(text: str) -> Path:
    return Path(_not_empty(text)).expanduser()


def _store(text: str) -> str:
    return store_url(_not_empty(text))


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty (is a shell variable not set?)")
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is blank")
    return text


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _up_to(most: float, above: float | None = None) -> Callable[[str], float]:
    least = f"above {above:g}" if above is not None else "from 0"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not (0 <= value <= most) or value == above:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {least} to {most:g}")
        return value

    return read
