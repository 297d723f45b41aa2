"""A tiny encoder to mirror, places to do it in, and what tests of writing and of fetching share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from obstore.store import MemoryStore

from trainer import transfers
from trainer.config import TokenEncoderConfig
from trainer.store import Store
from trainer.token_encoder import load_token_encoder

NAME = "tiny/model"


def silent(_line: str) -> None:
    pass


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where `tiny/model` is a folder; weights that are fetched land beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfers, "_RANGE_BYTES", 1000)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go where no folder has the model's name, as on another machine."""
    (tmp_path / "elsewhere").mkdir()
    return lambda: monkeypatch.chdir(tmp_path / "elsewhere")


def config(**settings: object) -> TokenEncoderConfig:
    return TokenEncoderConfig.model_validate({"name": NAME, **settings})


def remote_store() -> Store:
    """A store that is not on this disk."""
    return Store("memory://remote", "memory://remote", MemoryStore())


def states(encoder_config: TokenEncoderConfig, store: Store | None = None) -> torch.Tensor:
    tokens = torch.randint(3, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    return load_token_encoder(encoder_config, "cpu", store=store, say=silent).hidden_states(tokens)
