"""Which GPUs a rank takes."""

import os

import pytest

torch = pytest.importorskip("torch")

from trainer.contract import ConfigError  # noqa: E402
from trainer.ranks import own_devices  # noqa: E402


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A node with four GPUs; the list holds which one was made current."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize(("rank", "gpus_per_rank", "expected"), [
    (0, 1, [0]), (3, 1, [3]), (0, 2, [0, 1]), (1, 2, [2, 3])])
def test_ranks_share_out_the_gpus_in_order_and_train_on_their_first(
        four_gpus: list[int], monkeypatch: pytest.MonkeyPatch, rank: int, gpus_per_rank: int,
        expected: list[int]) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert own_devices(gpus_per_rank) == [torch.device("cuda", index) for index in expected]
    assert four_gpus == [expected[0]]
    assert os.environ["LOCAL_RANK"] == str(expected[0])  # where DeepSpeed puts its engine


def test_too_few_gpus_are_told_with_a_way_out(four_gpus: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="takes 2 GPUs from number 4, but the node has 4") as raised:
        own_devices(2)
    assert "placement: gpu" in str(raised.value)


def test_without_a_gpu_everything_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_devices(2) == [torch.device("cpu")] * 2
