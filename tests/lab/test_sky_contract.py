"""SkyPilot's engine keeps the contract of engines, on a cluster whose nodes are this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.sky_engine import SkyEngine
from tests.engine_contract import EngineContract, Place
from tests.lab.runs import LONGEST_S, running_store
from trainer.store import open_store

pytestmark = pytest.mark.lab


class TestSkyEngine(EngineContract):
    @pytest.fixture(scope="class")
    def store(self) -> Iterator[str]:
        from sky.server import common

        with running_store() as url:
            # SkyPilot remembers whom it would ask when it was first imported, which other tests do.
            common.get_server_url.cache_clear()
            yield url

    @pytest.fixture
    def place(self, store: str, tmp_path: Path) -> Place:
        return Place(SkyEngine(open_store(store)), store, tmp_path, LONGEST_S,
                     {"infra": "slurm/ldlm", "cpus": "1+"})
