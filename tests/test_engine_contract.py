"""The local engine keeps the contract of engines; SkyPilot's does in the lab (tests/lab/test_slurm.py)."""

from pathlib import Path

import pytest
from engine_contract import EngineContract, Place

from launcher.local_engine import LocalEngine


class TestLocalEngine(EngineContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        (tmp_path / "work").mkdir()
        return Place(LocalEngine(), f"file://{tmp_path}/store", tmp_path / "work", longest_s=60)
