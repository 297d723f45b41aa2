"""Is this machine worth the download of torch? `python -m trainer.first_look`, in a rented node's set-up.

Exit code 1 where it is not what the plan pays for. Set-up then ends at once, and well: `trainer.node` finds
the same, and counts it in the run's record. What only the installed torch can tell is found there too.
"""

import os
import sys

from trainer.contract import LdlmError
from trainer.machine import check_hardware
from trainer.own_offer import own_envs


def main() -> int:
    """Look at this machine. Returns the exit code."""
    try:
        check_hardware(os.environ | own_envs(os.environ))
    except LdlmError as error:
        print(f"not installed here: torch; {error.problem}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
