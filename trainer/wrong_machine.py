"""A node says that its machine is the wrong one where who rents it hears it: at Vast, in the machine's label.

The run's record says so too, but who rents has no keys of its store. What speaks is the switch that
`launcher/vast_onstart.py` leaves on the machine, which has the key that is good for this machine alone.
No torch.
"""

import time
from pathlib import Path

from trainer.contract import VAST_SWITCH, WRONG_MACHINE

_PATIENCE_S = 30.0  # the switch looks every five seconds, Vast answers in one (guess)


def say_wrong(home: Path, patience_s: float = _PATIENCE_S) -> bool:
    """Have the machine say it, and wait until it has: once this node has ended, the machine is given back.

    Elsewhere than at Vast nothing can, and nothing is done. Returns True once it is said.
    """
    if not (home / VAST_SWITCH).exists():
        return False
    note = home / WRONG_MACHINE
    note.touch()
    give_up = time.monotonic() + patience_s
    while note.exists():
        if time.monotonic() >= give_up:
            print("warning: this machine could not say that it is the wrong one, and may be rented again for "
                  "this run", flush=True)
            return False
        time.sleep(0.2)
    return True
