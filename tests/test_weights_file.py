"""What is read of a safetensors file is what the library reads of it."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from trainer import weights_file  # noqa: E402
from trainer.weights_file import read_tensors  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    chance = torch.Generator().manual_seed(0)
    tensors = {"wide": torch.randn(37, 53, generator=chance).bfloat16(), "scale": torch.tensor(2.5),
               "none": torch.empty(0, 4), "ids": torch.arange(7), "half": torch.randn(3, 5).half(),
               "density": torch.rand(10, dtype=torch.float64), "flags": torch.tensor([True, False, True]),
               "bytes": torch.arange(9, dtype=torch.uint8), "ints": torch.arange(5, dtype=torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors", {"written": "by a test"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("chunk_bytes", [2**25, 1_000])
def test_every_tensor_is_that_of_the_library(path, chunk_bytes, monkeypatch) -> None:
    monkeypatch.setattr(weights_file, "_CHUNK_BYTES", chunk_bytes)
    found, wanted = read_tensors(path, CPU), load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


def test_a_file_that_is_cut_off_or_none_is_refused(path) -> None:
    data = path.read_bytes()
    for torn in (data[:-1], data[:20], b"", b"\xff" * 100):
        path.write_bytes(torn)
        with pytest.raises(SafetensorError):
            read_tensors(path, CPU)


def test_a_file_that_shrinks_while_it_is_read_is_refused(path, monkeypatch) -> None:
    header = weights_file._empty

    def shrinking(path, device):
        yield from header(path, device)
        path.write_bytes(path.read_bytes()[:-8])

    monkeypatch.setattr(weights_file, "_empty", shrinking)
    with pytest.raises(EOFError):
        read_tensors(path, CPU)
