"""How fast the command line answers: `make bench`. Medians, beside what Python alone takes."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_RUNS = 15
LDLM = str(Path(sys.executable).with_name("ldlm"))
COMMANDS: list[tuple[str, list[str], float | None]] = [  # name, command, target in seconds
    ("python -c pass", [sys.executable, "-c", "pass"], None),
    ("ldlm --help", [LDLM, "--help"], 0.2),
    ("ldlm plan smoke", [LDLM, "plan", "smoke"], 1.0),
]


def seconds_of_runs(command: list[str]) -> list[float]:
    """Wall seconds of each run, after one that fills the caches. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LDLM_HOME": home}
        times = []
        for _ in range(NUM_RUNS + 1):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            times.append(time.perf_counter() - start)
    return times[1:]


def main() -> int:
    """Print one line per command. Exit code 1 if a command fails; a missed target is no failure."""
    print(f"{NUM_RUNS} runs each; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{'command':<18} {'median':>8} {'fastest':>8} {'slowest':>8}   target (idle machine)")
    for name, command, target_s in COMMANDS:
        try:
            times = seconds_of_runs(command)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}\n{getattr(error, 'stderr', '')}", file=sys.stderr)
            return 1
        median = statistics.median(times)
        verdict = "" if target_s is None else f"{target_s:.1f} s: {'met' if median < target_s else 'MISSED'}"
        print(f"{name:<18} {median:>6.3f} s {min(times):>6.3f} s {max(times):>6.3f} s   {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
