"""Looks at the machines at Vast now and then: SkyPilot looks only while it has some there.

One thread of the main process of SkyPilot's server, started by our plugin. So it is known within minutes that
a machine which was given back is still there, or that one is gone about which nobody has asked.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from launcher import rental_log

_LOOK_S = 300.0
_log = logging.getLogger("sky.ldlm")  # into the server's own


def start(ask: Callable[[], object]) -> None:
    """Watch from now on, until this process ends.

    Args:
        ask: Asks Vast for its list, and learns from it.
    """
    threading.Thread(target=_watch, args=(ask,), name="ldlm-rental-watch", daemon=True).start()


def _watch(ask: Callable[[], object]) -> None:
    while True:
        time.sleep(_LOOK_S)
        try:
            look(ask, datetime.now(UTC))
        except Exception:  # Vast does not answer, say: the next look is due
            _log.exception("ldlm's look at machines of Vast failed")


def look(ask: Callable[[], object], now: datetime) -> None:
    """Ask where the answer may tell something new."""
    if not all(rental.is_settled(now) for rental in rental_log.read().values()):
        ask()
