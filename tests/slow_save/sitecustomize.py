"""Put on PYTHONPATH by a test: every shard takes two seconds more to write."""

import os
import sys

if os.environ.get("RANK") and "trainer.train" in " ".join(sys.orig_argv):
    import time

    import trainer.store as store

    quick_put = store.Store.put

    def put(self: store.Store, key: str, data: bytes, *, create: bool = False) -> None:
        """Take two seconds over a shard."""
        if key.endswith(".pt"):
            time.sleep(2)
        quick_put(self, key, data, create=create)

    store.Store.put = put
