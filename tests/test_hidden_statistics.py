"""What normalises hidden states, against numpy on all of them at once."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import distributed as dist  # noqa: E402
from torch import multiprocessing  # noqa: E402

from tests.random_encoders import save_model  # noqa: E402
from trainer.config import TokenEncoderConfig  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.hidden_statistics import HiddenStatistics, measure_statistics  # noqa: E402
from trainer.token_encoder import TokenEncoder, load_token_encoder  # noqa: E402


def load(folder: Path, **settings: object) -> TokenEncoder:
    return load_token_encoder(TokenEncoderConfig(name=str(folder), **settings), "cpu")  # type: ignore[arg-type]


def some_rows(num: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 16, (num, 8)).astype(np.uint32)


def states(encoder: TokenEncoder, rows_NL: np.ndarray, first: int = 0) -> np.ndarray:
    return encoder.hidden_states(torch.from_numpy(rows_NL.astype(np.int64)))[:, first:].flatten(0, 1).numpy()


def test_statistics_are_those_of_each_channel_over_all_rows(tmp_path: Path) -> None:
    encoder, rows_NL = load(save_model(tmp_path, "gpt2")), some_rows()
    hidden = states(encoder, rows_NL)
    found = measure_statistics(encoder, rows_NL, "channel", batch_size=7)
    assert np.allclose(found.mean_D, hidden.mean(0), atol=1e-5)
    assert np.allclose(found.std_D, hidden.std(0), atol=1e-5)
    found = measure_statistics(encoder, rows_NL, "scalar", batch_size=7)
    assert np.allclose(found.mean_D, np.full(32, hidden.mean()), atol=1e-5)
    assert np.allclose(found.std_D, np.full(32, hidden.std()), atol=1e-5)


def test_without_a_prefix_the_first_position_does_not_count(tmp_path: Path) -> None:
    encoder, rows_NL = load(save_model(tmp_path, "gpt2"), prefix_token=False), some_rows()
    hidden = states(encoder, rows_NL, first=1)
    found = measure_statistics(encoder, rows_NL)
    assert np.allclose(found.mean_D, hidden.mean(0), atol=1e-5)
    assert np.allclose(found.std_D, hidden.std(0), atol=1e-5)


@pytest.mark.parametrize("kind", ["channel", "scalar"])
def test_extremes_show_massive_activations(kind: str, tmp_path: Path) -> None:
    encoder, rows_NL = load(save_model(tmp_path, "qwen")), some_rows()
    hidden = states(encoder, rows_NL)
    axis = 0 if kind == "channel" else None
    normalised = np.abs((hidden - hidden.mean(axis)) / hidden.std(axis))
    found = measure_statistics(encoder, rows_NL, kind, clip=2.0, batch_size=9)
    assert found.largest == pytest.approx(normalised.max(), rel=1e-4)
    assert found.clipped == pytest.approx((normalised > 2).mean(), abs=1e-3) and found.clipped > 0


def test_each_row_is_read_once_and_of_many_positions_some_are_kept(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.hidden_statistics._KEPT_POSITIONS", 64)
    encoder, rows_NL, num_read = load(save_model(tmp_path, "gpt2")), some_rows(), []
    hidden = states(encoder, rows_NL)
    plain = encoder.hidden_states
    monkeypatch.setattr(encoder, "hidden_states", lambda rows: (num_read.append(len(rows)), plain(rows))[1])
    found = measure_statistics(encoder, rows_NL, clip=1.0, batch_size=7)
    assert num_read == [7] * 7 + [1]
    # 400 positions: every 7th of them, wherever batches begin.
    kept = np.abs((hidden[::7] - hidden.mean(0)) / hidden.std(0))
    assert found.clipped == pytest.approx((kept > 1).mean(), abs=1e-3)


def test_hidden_states_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "gpt2")
    tensors = load_file(folder / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if "h.1.mlp.c_fc.weight" in name).fill_(torch.nan)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="not all finite"):
        measure_statistics(load(folder), some_rows())


def measure_on_one_rank(rank: int, world_size: int, port: int, folder: Path, is_collective: bool) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    encoder, calls = load(folder / "model"), []
    encoder.is_collective = is_collective
    plain = encoder.hidden_states
    encoder.hidden_states = lambda tokens: (calls.append(1), plain(tokens))[1]
    found = measure_statistics(encoder, some_rows(), "channel", 2.0, batch_size=7)
    torch.save((found, len(calls)), folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize(("is_collective", "calls"), [(False, [3, 3, 2]), (True, [3, 3, 3])])
def test_ranks_share_the_rows_and_find_what_one_finds_to_the_bit(
        is_collective: bool, calls: list[int], tmp_path: Path) -> None:
    expected = measure_statistics(load(save_model(tmp_path / "model", "qwen")), some_rows(), "channel", 2.0,
                                  batch_size=7)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    multiprocessing.spawn(measure_on_one_rank, (3, port, tmp_path, is_collective), nprocs=3)
    results: list[tuple[HiddenStatistics, int]] = [
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(3)]
    for found, _ in results:
        assert torch.equal(found.mean_D, expected.mean_D) and torch.equal(found.std_D, expected.std_D)
        assert (found.largest, found.clipped) == (expected.largest, expected.clipped)
    assert [num for _, num in results] == calls
