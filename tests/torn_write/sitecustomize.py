"""Put on PYTHONPATH by a test: rank 1 dies by SIGKILL in the middle of writing its shard of step 8.

The half that was written stands under the shard's final name, as on a store without atomic writes.
"""

import os
import signal
import sys

if os.environ.get("RANK") == "1" and "trainer.rank" in " ".join(sys.orig_argv):
    from collections.abc import Iterable
    from pathlib import Path
    from urllib.parse import urlsplit

    import trainer.store as store

    whole_stream = store.Store.stream

    def stream(self: store.Store, key: str, buffers: Iterable[bytes | memoryview]) -> None:
        """Write everything but the shard of step 8."""
        if "step-00000008" not in key:
            whole_stream(self, key, buffers)
            return
        data = b"".join(buffers)
        path = Path(urlsplit(self.url).path) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    store.Store.stream = stream
