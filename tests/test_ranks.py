"""Which GPUs a rank takes."""

import os

import pytest

torch = pytest.importorskip("torch")

from trainer.contract import ConfigError  # noqa: E402
from trainer.ranks import Shared, own_devices, require_same  # noqa: E402


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


def test_a_node_with_other_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [("alpha", ["t1", "e1"]), ("alpha", ["t1", "e1"]), ("beta", ["t1", "e2"])]
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)

    def gather(seen: list[object], own: object) -> None:
        seen[:] = others

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    text, encoder = Shared("the text", "t1"), Shared("the token encoder", "e1")
    with pytest.raises(ConfigError) as raised:
        require_same({"data.source": text, "token_encoder.name": encoder})
    assert str(raised.value).startswith(
        "token_encoder.name: the token encoder on rank 2 (beta) is not the one on rank 0 (alpha)\n  fix: ")
    others.pop()
    require_same({"data.source": text, "token_encoder.name": encoder})
