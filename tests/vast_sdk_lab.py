"""Lets the SkyPilot of this process reach the fake of Vast, by Vast's own SDK."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.fake_vast import VastServer

KEY = "the-key"


@contextmanager
def reached_by_skypilot(fake: VastServer, home: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home with the account's key, and what our plugin takes the place of, put back afterwards."""
    from sky.adaptors import vast
    from sky.provision import vast as provisioner
    from sky.provision.vast import utils
    from vastai import VastAI

    threading.Thread(target=fake.serve_forever, daemon=True).start()
    patch.setenv("HOME", str(home))
    (home / ".config/vastai").mkdir(parents=True)
    (home / ".config/vastai/vast_api_key").write_text(KEY)
    sdk = VastAI(api_key=KEY, server_url=f"http://127.0.0.1:{fake.server_port}")
    patch.setattr(vast, "_vast_sdk", sdk)
    for name in ("launch", "list_instances", "remove"):
        patch.setattr(utils, name, getattr(utils, name))
    patch.setattr(provisioner, "run_instances", provisioner.run_instances)
    yield
    fake.shutdown()
    fake.server_close()
