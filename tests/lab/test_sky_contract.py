"""SkyPilot's engine keeps the contract of engines, on a cluster whose nodes are this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.sky_engine import SkyEngine
from tests.engine_contract import EngineContract, Place
from tests.lab.runs import LAB, LONGEST_S, server_environment
from tests.s3_server import running_s3_server
from trainer.store import open_store

pytestmark = pytest.mark.lab


class TestSkyEngine(EngineContract):
    @pytest.fixture(scope="class")
    def store(self) -> Iterator[str]:
        if not (LAB / "env.sh").exists():
            pytest.skip("the lab is not up: make lab")
        with pytest.MonkeyPatch.context() as patch, running_s3_server() as server:
            for name, value in server_environment().items():
                patch.setenv(name, value)
            server.make_bucket("lab")
            yield server.url("lab", "runs")

    @pytest.fixture
    def place(self, store: str, tmp_path: Path) -> Place:
        return Place(SkyEngine(open_store(store)), store, tmp_path, LONGEST_S,
                     {"infra": "slurm/ldlm", "cpus": "1+"})
