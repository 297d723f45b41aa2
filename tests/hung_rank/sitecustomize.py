"""Put on PYTHONPATH by a test: a rank that stands still, as HUNG_RANK says.

`stopped:STEP` stops the last rank (SIGSTOP) before that step, `text:STEP` never gives it the text of that
step, counted in this attempt. `evaluation:SECONDS` makes the evaluation of rank 0 so slow.
"""

import os
import sys

if os.environ.get("RANK") and "trainer.train" in " ".join(sys.orig_argv):
    import signal
    import time

    import numpy as np

    import trainer.batches as batches
    import trainer.evaluate as evaluation

    how, _, value = os.environ["HUNG_RANK"].partition(":")
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    quick_next, quick_make, quick_evaluate = batches.Batches.next, batches.Batches._make, evaluation.evaluate
    taken: list[int] = []

    def stop_and_take(self: batches.Batches) -> np.ndarray:
        """Stop before a step."""
        taken.append(1)
        if len(taken) == int(value):
            os.kill(os.getpid(), signal.SIGSTOP)
        return quick_next(self)

    def wait_and_make(self: batches.Batches, step: int) -> np.ndarray:
        """Wait for ever before the text of a step is there."""
        taken.append(1)
        if len(taken) == int(value):
            time.sleep(10**6)
        return quick_make(self, step)

    def evaluate_slowly(*args: object, **more: object) -> object:
        """Let the others wait."""
        time.sleep(float(value))
        return quick_evaluate(*args, **more)

    if how == "stopped" and is_last:
        batches.Batches.next = stop_and_take
    elif how == "text" and is_last:
        batches.Batches._make = wait_and_make
    elif how == "evaluation" and os.environ["RANK"] == "0":
        evaluation.evaluate = evaluate_slowly
