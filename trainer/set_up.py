"""A node's set-up: `python3 -m trainer.set_up [--gpu]` makes the trainer's environment, in an hour at most.

While it goes on, SkyPilot says that the job runs, and a machine that is set up counts as used: nothing else
would end a download that trickles, or a disk that does not answer. So this process kills what takes too long,
on the machine itself. Under SkyPilot it then ends well and leaves a note: `trainer.node` finds the machine to
be a wrong one by it, counts it and asks for another, as for all that are wrong.

Standard library and Python 3.8 only, as it runs before anything is installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from trainer.relay import relayed

# CUDA and torch are about 4 GB: six minutes at the slowest line that a machine of Vast may have, twenty with
# what unpacking takes on a slow disk (guess). At the limit a machine has cost an hour.
LIMIT_S = 3600.0
# The node's own program, without torch, is made in any case: it alone can end a run at its limit. A minute
# where it was measured (guess).
_NODE_S = 600.0
LATE_NOTE = Path("~/.ldlm_set_up_late")
TIME_LEFT = Path("~/.ldlm_time_left")  # seconds that the run's limits leave, by `trainer.first_look`
_PYTHON = Path(".venv-train/bin/python")
_STAMP = Path(".venv-train/ldlm-installed.json")  # of trainer.environment: with it, the node's program starts


def limit_s(environ: Mapping[str, str], now: datetime) -> float:
    """Seconds that set-up may take: an hour, and no longer than what is left of the run's limits.

    What earlier attempts have used up of them is not known before the store can be read, see `TIME_LEFT`.

    Args:
        environ: The task's: its deadline, its cap, its hours and its price.
        now: UTC.
    """
    limits = [LIMIT_S]
    # By their names: `trainer.contract` needs a newer Python than set-up begins with.
    deadline, cap = environ.get("LDLM_DEADLINE"), environ.get("LDLM_MAX_COST_USD")
    price = float(environ.get("LDLM_PRICE_USD_PER_HOUR") or 0)
    if deadline:
        limits.append((datetime.fromisoformat(deadline) - now).total_seconds())
    if cap and price:
        limits.append(float(cap) / price * 3600)
    if hours := environ.get("LDLM_MAX_HOURS"):
        limits.append(float(hours) * 3600)
    return max(0.0, min(limits))


class _Steps:
    """The commands of one set-up, which share its time and print into one descriptor."""

    def __init__(self, seconds: float, output: int) -> None:
        self._ends_at, self._output = time.monotonic() + seconds, output

    def shorten(self, seconds: float) -> None:
        """Let the steps that are left take no longer than so many seconds."""
        self._ends_at = min(self._ends_at, time.monotonic() + seconds)

    def run(self, command: Sequence[str], at_least_s: float = 0.0) -> int:
        """Exit code of a command. Raises subprocess.TimeoutExpired once the time is over and it is killed."""
        process = subprocess.Popen(command, start_new_session=True, stdout=self._output, stderr=self._output)
        try:
            return process.wait(max(at_least_s, self._ends_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            # With all that it has started. Nobody waits for its end: on a dead disk there is none.
            os.killpg(process.pid, signal.SIGKILL)
            raise


def set_up(steps: _Steps, options: Sequence[str]) -> int:
    """Make the environment, unless this machine is a wrong one. Returns the exit code."""
    environment = [sys.executable, "-m", "trainer.environment"]
    if code := steps.run([*environment, "--node"], _NODE_S):
        return code
    if steps.run([str(_PYTHON), "-m", "trainer.first_look"]):
        return 0  # the node will say so, and count it
    if (left := TIME_LEFT.expanduser()).exists():
        steps.shorten(float(left.read_text()))
    return steps.run([*environment, *options])


def main(options: Sequence[str], environ: Mapping[str, str]) -> int:
    """Set this node up within its time. Returns the exit code."""
    note = LATE_NOTE.expanduser()
    for before in (note, TIME_LEFT.expanduser()):
        if before.exists():
            before.unlink()
    seconds = limit_s(environ, datetime.now(timezone.utc))  # noqa: UP017  Python 3.8
    try:
        with relayed() as output:
            return set_up(_Steps(seconds, output), options)
    except subprocess.TimeoutExpired as late:
        problem = f"set-up did not end within {seconds / 60:.0f} minutes: it was at `{' '.join(late.cmd)}`"
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if "SKYPILOT_MANAGED_JOB_ID" not in environ or not _STAMP.exists():
        return 1  # nobody rents another machine, or there is nothing that could ask for one
    note.write_text(problem)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
