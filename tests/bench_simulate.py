"""Window-runs a second of `ldlm simulate`, on one core: `python -m tests.bench_simulate [FILE.jsonl.gz]`.

Without a file, windows that are made up. Processor seconds, not those of the clock: others may be at work.
Not counted: reading, our policy's table (once per setting), and the clairvoyant, which is told beside.
"""

import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_threads] = "1"  # before numpy is imported

from launcher.clairvoyant import clairvoyant_usd  # noqa: E402
from launcher.policy import Setting  # noqa: E402
from launcher.simulate import replay  # noqa: E402
from launcher.simulate_command import POLICIES  # noqa: E402
from launcher.traces import one_by_one, read_traces, stack  # noqa: E402
from tests import synthetic_traces as made  # noqa: E402

GOAL = 10_000


def main(path: str | None = None) -> None:
    """Print a line per policy, and one of all together."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(path) if path else made.write(Path(folder) / "made.gz", made.rows(1650))
        traces, _ = read_traces(file)
    setting = Setting(20, 26, 0.2, 0.97, 3.06)
    windows, _ = stack(one_by_one(traces), setting)
    tables = [(each, replace(setting, tick_h=each.tick_s / 3600)) for each in windows]
    total_s, num = 0.0, sum(each.num_windows for each in windows)
    for policy in POLICIES:
        for _, ticking in tables:
            policy.begin(ticking, 1, 1)
        seconds = timed(lambda policy=policy: [replay(policy, ticking, each) for each, ticking in tables])
        total_s += seconds
        show(policy.name, num / seconds)
    show("all policies", num * len(POLICIES) / total_s)
    seconds = timed(lambda: [clairvoyant_usd(ticking, each) for each, ticking in tables])
    print(f"{'clairvoyant':18}{num / seconds:10,.0f} windows/s")


def show(name: str, rate: float) -> None:
    """A line."""
    print(f"{name:18}{rate:10,.0f} window-runs/s  {rate / GOAL:5.2f} of {GOAL:,}")


def timed(work) -> float:
    """Processor seconds, the least of three."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
