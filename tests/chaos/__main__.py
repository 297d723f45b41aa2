"""The fault campaign: `python -m tests.chaos [--seeds A-B] [--level protocol|ranks|both] [--short]`.

Runs that are killed, torn, damaged and starved at every named point of the protocol have to come to the bits
of the run that nobody interrupts. `--seeds` goes on where it stopped: `.chaos/` keeps what has been seen of
this state of the code. ZeRO 3 has no cases: the config refuses it.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before numpy and torch are imported: a process with threads must not be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
               "DS_ACCELERATOR": "cpu"}

from tests.chaos.case import Level, run_case  # noqa: E402
from tests.chaos.levels import protocol_level, ranks_level  # noqa: E402
from tests.chaos.machine import adopt_orphans  # noqa: E402
from tests.chaos.plan import LEVELS, draw_case, kinds_of  # noqa: E402
from tests.chaos.seen import Seen, code_digest  # noqa: E402

_SEEDS = {"protocol": range(300), "ranks": range(60)}
# One of each kind; a retention, a stopped rank and a snapshot, to be compared with one uninterrupted run.
_SHORT = {"protocol": range(len(kinds_of("protocol"))), "ranks": (5, 12, 42)}
_LIMIT_S, _SHORT_LIMIT_S = 20 * 60, 4 * 60  # then no case is begun
_KEPT = Path(".chaos")  # of this folder: what was seen, and what failed


def main(argv: Sequence[str]) -> int:
    """Run the seeds that have not been run. Returns 1 when any did not survive, or was not run."""
    options = _options(argv)
    until_s = time.monotonic() + (_SHORT_LIMIT_S if options.short else _LIMIT_S)
    adopt_orphans()
    _KEPT.mkdir(exist_ok=True)
    seen = Seen(_KEPT / "seen.json", code_digest(Path(__file__).parents[2]))
    asked: dict[str, Sequence[int]] = {
        level: options.seeds or (_SHORT if options.short else _SEEDS)[level]
        for level in (LEVELS if options.level == "both" else (options.level,))}
    with tempfile.TemporaryDirectory(prefix="ldlm-chaos-") as scratch:
        for level, seeds in asked.items():
            due = [seed for seed in seeds if not (options.seeds and seen.has_survived(level, seed))]
            if due:  # torch is imported for real ranks alone, and after the toys
                prepared = protocol_level() if level == "protocol" else ranks_level(Path(scratch))
                _run(prepared, level, due, seen, until_s)
    return max(_tell(seen, level, seeds) for level, seeds in asked.items())


def _run(prepared: Level, level: str, seeds: Sequence[int], seen: Seen, until_s: float) -> None:
    """Run seeds, and say how it goes, until the monotonic clock says `until_s`."""
    began, num_failed = time.monotonic(), 0
    for done, seed in enumerate(seeds, 1):
        if time.monotonic() > until_s:
            return
        result = run_case(prepared, draw_case(level, seed), _KEPT)
        seen.note(result)
        num_failed += bool(result.wrong)
        for line in result.wrong:
            print(f"{level} {seed} ({result.case.kind}): {line}", flush=True)
        left_s = (time.monotonic() - began) / done * (len(seeds) - done)
        if done % 10 == 0 or done == len(seeds):
            print(f"{level}: {done} of {len(seeds)} cases, {num_failed} failed, {left_s:.0f} s left",
                  flush=True)


def _tell(seen: Seen, level: str, seeds: Sequence[int]) -> int:
    """Print what was seen of them. Returns 1 where that is not that all have survived."""
    again = f"python -m tests.chaos --level {level} --seeds"
    failed, missing = seen.failed(level, seeds), seen.not_run(level, seeds)
    print(f"\n{seen.table(level, seeds)}")
    for seed in failed:
        print(f"failed: {again} {seed}-{seed}   ({_KEPT}/{level}-{seed}/output.txt)")
    if missing:
        print(f"not run, since the time is up: {len(missing)} of {len(seeds)}; this goes on: "
              f"{again} {missing[0]}-{missing[-1]}")
    return int(bool(failed or missing))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    def seeds(text: str) -> range:
        first, _, last = text.partition("-")
        return range(int(first), int(last or first) + 1)

    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=seeds, help="as 0-299, without what this code has survived")
    parser.add_argument("--level", choices=(*LEVELS, "both"), default="both")
    parser.add_argument("--short", action="store_true", help="one of each kind, and three with real ranks")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
