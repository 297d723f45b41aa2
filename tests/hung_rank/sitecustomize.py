"""Put on PYTHONPATH by a test: a rank that stands still, as HUNG_RANK says.

`stopped:STEP` stops the last rank (SIGSTOP) before that step, `text:STEP` never gives it the text of that
step, counted in this attempt; `away:FILE` lets its store not give any while there is such a file.
`samples:SECONDS` and `save:SECONDS` let rank 0 alone take so long over the samples of its first evaluation,
or over its first save.
"""

import os
import sys

if os.environ.get("RANK") and "trainer.rank" in " ".join(sys.orig_argv):
    import signal
    import time

    import numpy as np

    import trainer.batches as batches
    import trainer.checkpoint as checkpoint
    import trainer.evaluate as evaluation
    from trainer.contract import StoreError

    how, _, value = os.environ["HUNG_RANK"].partition(":")
    is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    quick_next, quick_make = batches.Batches.next, batches.Batches._make
    quick_wait, quick_write = checkpoint.Checkpointer.wait, evaluation.write_samples
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

    def make_or_not(self: batches.Batches, step: int) -> np.ndarray:
        """As when a store cannot be reached."""
        if os.path.exists(value):
            raise StoreError("cannot be reached", place="text.bin")
        return quick_make(self, step)

    def write_slowly(*args: object) -> object:
        """Let the others wait for samples."""
        taken.append(1)
        time.sleep(float(value) if len(taken) == 1 else 0)
        return quick_write(*args)

    def save_slowly(self: checkpoint.Checkpointer, timeout_s: float | None = None) -> None:
        """Let the others wait for a save."""
        taken.append(1)
        time.sleep(float(value) if len(taken) == 1 else 0)
        quick_wait(self, timeout_s)

    if how == "stopped" and is_last:
        batches.Batches.next = stop_and_take
    elif how == "text" and is_last:
        batches.Batches._make = wait_and_make
    elif how == "away" and is_last:
        batches.Batches._make, batches._RETRY_S = make_or_not, 0.1
    elif how == "samples" and os.environ["RANK"] == "0":
        evaluation.write_samples = write_slowly
    elif how == "save" and os.environ["RANK"] == "0":
        checkpoint.Checkpointer.wait = save_slowly
