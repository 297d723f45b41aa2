"""A process that uploads a shard and is killed in the middle: what it leaves in a store, no listing shows."""

import signal
import subprocess
import sys
from pathlib import Path

from trainer.store import open_store
from trainer.unfinished_uploads import unfinished_uploads

_UPLOAD = """
import sys, time
from trainer.store import open_store
def parts():
    yield from [b"x" * 2**20] * 40
    time.sleep(60)
open_store(sys.argv[1]).stream(sys.argv[2], parts())
"""


def begun_upload(address: str, key: str) -> "subprocess.Popen[bytes]":
    """One that has sent some parts and still runs."""
    store, run = open_store(address), key.partition("/")[0]
    process = subprocess.Popen([sys.executable, "-c", _UPLOAD, address, key], cwd=Path(__file__).parents[1])
    while not any(upload.num_bytes and upload.key.split("#")[0].endswith(key)
                  for upload in unfinished_uploads(store, run)):
        assert process.poll() is None
    return process


def killed_upload(address: str, key: str) -> None:
    """One that was killed by SIGKILL."""
    process = begun_upload(address, key)
    process.send_signal(signal.SIGKILL)
    process.wait()
