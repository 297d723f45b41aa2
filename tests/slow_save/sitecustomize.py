"""Put on PYTHONPATH by a test: every shard takes some seconds more to write, two or `TEST_SAVE_S`, and none
is written before the file `TEST_SAVE_GATE` is there."""

import os
import sys

if os.environ.get("RANK") and "trainer.rank" in " ".join(sys.orig_argv):
    import time
    from collections.abc import Iterable

    import trainer.store as store

    quick_stream = store.Store.stream

    def stream(self: store.Store, key: str, buffers: Iterable[bytes | memoryview]) -> None:
        """Take the time over a shard."""
        time.sleep(float(os.environ.get("TEST_SAVE_S", "2")))
        while not os.path.exists(os.environ.get("TEST_SAVE_GATE", "/")):
            time.sleep(0.01)
        quick_stream(self, key, buffers)

    store.Store.stream = stream
