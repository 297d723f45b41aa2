"""Is this machine worth the download of torch? `python -m trainer.first_look`, in a rented node's set-up.

Exit code 1 where it is not what the plan pays for, or a limit of the run is reached. Set-up then ends at
once, and well: `trainer.node` finds the same, and counts it in the run's record. What only the installed
torch can tell is found there too. It leaves word of how long the set-up may take by these limits.
"""

import os
import sys
from datetime import UTC, datetime

from trainer.contract import Env, LdlmError
from trainer.machine import check_hardware
from trainer.own_bill import set_up_left_s
from trainer.own_offer import own_envs
from trainer.run_folder import RunFolder
from trainer.set_up import TIME_LEFT
from trainer.store import open_store


def main() -> int:
    """Look at this machine and at the limits of its run. Returns the exit code."""
    try:
        environ = os.environ | own_envs(os.environ)
        check_hardware(environ)
    except LdlmError as error:
        print(f"not installed here: torch; {error.problem}", flush=True)
        return 1
    left_s = _left_s(environ)
    if left_s is not None and left_s <= 0:
        print("not installed here: torch; a limit of the run is reached", flush=True)
        return 1
    if left_s is not None:
        TIME_LEFT.expanduser().write_text(str(left_s))
    return 0


def _left_s(environ: dict[str, str]) -> float | None:
    """See `set_up_left_s`. None at home, and where the store does not say: the node waits for it, and looks
    again."""
    if "SKYPILOT_MANAGED_JOB_ID" not in environ:
        return None
    try:
        return set_up_left_s(RunFolder(open_store(environ[Env.STORE]), environ[Env.RUN_ID]),
                             datetime.now(UTC), environ)
    except LdlmError as error:
        print(f"warning: the limits of the run cannot be looked at now: {error.problem}", flush=True)
        return None


if __name__ == "__main__":
    sys.exit(main())
