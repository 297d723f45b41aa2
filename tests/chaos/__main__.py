"""The fault campaign: `python -m tests.chaos [--seeds A-B] [--level protocol|ranks|both] [--short]`.

Runs that are killed, torn, damaged and starved at every named point of the protocol have to come to the bits
of the run that nobody interrupts. `--seeds` goes on where it stopped: `.chaos/` keeps what has been seen.
ZeRO 3 has no cases: the config refuses it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Before numpy and torch are imported: a process with threads must not be forked.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
               "DS_ACCELERATOR": "cpu"}

from tests.chaos.case import Level, Result, run_case  # noqa: E402
from tests.chaos.levels import protocol_level, ranks_level  # noqa: E402
from tests.chaos.machine import adopt_orphans  # noqa: E402
from tests.chaos.plan import KINDS, LEVELS, draw_case  # noqa: E402

_SEEDS = {"protocol": (0, 299), "ranks": (0, 59)}
_SHORT = {"protocol": (0, 39), "ranks": (0, 3)}
_LIMIT_S = 20 * 60  # then no case is begun
_KEPT = Path(".chaos")  # of this folder: what was seen, and what failed


def main(argv: Sequence[str]) -> int:
    """Run the seeds that have not been run. Returns 1 when any did not survive."""
    options = _options(argv)
    adopt_orphans()
    levels = LEVELS if options.level == "both" else (options.level,)
    ranges = {level: options.seeds or (_SHORT if options.short else _SEEDS)[level] for level in levels}
    campaign, began = _Campaign(_KEPT), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ldlm-chaos-") as scratch:
        for level, (first, last) in ranges.items():
            seeds = [seed for seed in range(first, last + 1)
                     if not (options.seeds and campaign.has_survived(level, seed))]
            if seeds:  # torch is imported for real ranks alone, and after the toys
                prepared = protocol_level() if level == "protocol" else ranks_level(Path(scratch))
                campaign.run(prepared, level, seeds, began + _LIMIT_S)
    failed = [name for level, (first, last) in ranges.items()
              for name in campaign.table(level, range(first, last + 1))]
    for level, seed in failed:
        print(f"failed: python -m tests.chaos --level {level} --seeds {seed}-{seed}   "
              f"({_KEPT}/{level}-{seed}/output.txt)")
    return int(bool(failed))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    def seeds(text: str) -> tuple[int, int]:
        first, _, last = text.partition("-")
        return int(first), int(last or first)

    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=seeds, help="a range, as 0-299, without those that have survived")
    parser.add_argument("--level", choices=(*LEVELS, "both"), default="both")
    parser.add_argument("--short", action="store_true", help="two of each kind, and four with real ranks")
    return parser.parse_args(argv)


class _Campaign:
    """What has been seen, by level and seed, in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "seen.json"
        folder.mkdir(exist_ok=True)
        self._seen: dict[str, dict[str, dict[str, object]]] = {level: {} for level in LEVELS}
        if self._file.exists():
            self._seen |= json.loads(self._file.read_text())

    def has_survived(self, level: str, seed: int) -> bool:
        """A failed one is tried again."""
        found = self._seen[level].get(str(seed))
        return found is not None and not found["wrong"]

    def run(self, prepared: Level, level: str, seeds: Sequence[int], until_s: float) -> None:
        """Run seeds, and say how it goes, until the monotonic clock says `until_s`."""
        began, failed = time.monotonic(), 0
        for done, seed in enumerate(seeds, 1):
            if time.monotonic() > until_s:
                print(f"{level}: the time is up; this goes on: python -m tests.chaos --level {level} "
                      f"--seeds {seeds[0]}-{seeds[-1]}", flush=True)
                return
            result = run_case(prepared, draw_case(level, seed), self._folder)
            self._note(result)
            failed += bool(result.wrong)
            for line in result.wrong:
                print(f"{level} {seed} ({result.case.kind}): {line}", flush=True)
            left_s = (time.monotonic() - began) / done * (len(seeds) - done)
            if done % 10 == 0 or done == len(seeds):
                print(f"{level}: {done} of {len(seeds)} cases, {failed} failed, {left_s:.0f} s left",
                      flush=True)

    def _note(self, result: Result) -> None:
        self._seen[result.case.level][str(result.case.seed)] = {
            "kind": result.case.kind, "wrong": result.wrong, "struck": result.struck,
            "lost_steps": result.lost_steps, "resume_s": result.resume_s}
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._seen))
        draft.replace(self._file)

    def table(self, level: str, seeds: range) -> list[tuple[str, int]]:
        """Print what was seen of a level. Returns what did not survive."""
        seen = {seed: self._seen[level][str(seed)] for seed in seeds if str(seed) in self._seen[level]}
        print(f"\n{level:<26} {'cases':>6} {'survived':>9} {'faults':>7} {'worst lost steps':>17} "
              f"{'worst resume s':>15}")
        for kind in [*KINDS, "all"]:
            rows = [row for row in seen.values() if kind in (row["kind"], "all")]
            if rows:
                print(f"{kind:<26} {len(rows):>6} {sum(not row['wrong'] for row in rows):>9} "
                      f"{sum(int(str(row['struck'])) for row in rows):>7} "
                      f"{max(int(str(row['lost_steps'])) for row in rows):>17} "
                      f"{max(float(str(row['resume_s'])) for row in rows):>15.2f}")
        return [(level, seed) for seed, row in seen.items() if row["wrong"]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
