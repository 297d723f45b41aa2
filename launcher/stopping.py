"""`ldlm stop RUN --now`: ends a run with all that it holds, and waits until nothing of it is left."""

import time
from collections.abc import Sequence

from launcher import console
from launcher.engine import ALIVE, Engine
from launcher.errors import EngineError

PATIENCE_S = 300.0  # SkyPilot notices within half a minute, ending a machine takes up to two (guess)
_POLL_S = 1.0
_NUM_NAMED = 3


def stop_now(engine: Engine, run_id: str, patience_s: float = PATIENCE_S) -> None:
    """End a run at once; what it has not saved is lost.

    Raises:
        EngineError: Nothing of it runs, or something of it does not end.
    """
    held = engine.resources(run_id)
    engine.tear_down(run_id)
    console.talk(f"ending {run_id} at once: {_words(held)}")
    give_up = time.monotonic() + patience_s
    # One whose supervisor was killed stays `unknown`, whatever is ended of it.
    while (left := engine.resources(run_id)) or engine.state(run_id).phase in ALIVE:
        if time.monotonic() > give_up:
            problem = f"{run_id} still holds {_words(left)}" if left else f"{run_id} does not end"
            raise EngineError(problem, place="engine",
                              fix=f"look again: ldlm status {run_id}; machines that stay: ldlm sweep")
        time.sleep(_POLL_S)
    console.answer(f"{run_id} has ended and holds nothing any more; go on from its newest checkpoint: "
                   f"ldlm resume {run_id}")


def _words(held: Sequence[str]) -> str:
    more = f" and {len(held) - _NUM_NAMED} more" if len(held) > _NUM_NAMED else ""
    return (", ".join(held[:_NUM_NAMED]) or "no machine yet") + more
