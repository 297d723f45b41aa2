"""The way to a first text on a GPU: weights through page-locked buffers, and kernels that an export brought.

Run with `pytest -m gpu -s tests/test_gpu_first.py`; it prints the seconds of each part.
"""

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from trainer import bench_first, weights_file  # noqa: E402
from trainer.bench_cases import Model  # noqa: E402
from trainer.bench_first import COMPILED, FirstText, first_texts_of_profile  # noqa: E402
from trainer.bench_models import profile_config, random_generator  # noqa: E402
from trainer.compiled import made_for_here, use_compiled  # noqa: E402
from trainer.local_cache import sha256_of  # noqa: E402
from trainer.manifest import StoredFile  # noqa: E402
from trainer.weights_file import read_tensors  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("chunk_bytes", [2**25, 4_000])
def test_weights_come_to_the_gpu_as_they_lie_in_the_file(tmp_path, monkeypatch, chunk_bytes) -> None:
    monkeypatch.setattr(weights_file, "_CHUNK_BYTES", chunk_bytes)
    chance = torch.Generator().manual_seed(0)
    tensors = {str(index): torch.randn(100 + index, 64, generator=chance) for index in range(50)}
    save_file(tensors | {"ids": torch.arange(7)}, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path / "model.safetensors", torch.device("cuda"))
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        assert found[name].is_cuda and torch.equal(found[name].cpu(), tensor)


@pytest.mark.parametrize("preset", ["smoke", "seed-35b-a3b"])
def test_kernels_that_came_with_an_export_are_not_compiled_again(
        preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(COMPILED, "")
    export, installed = tmp_path / "export", []

    def starts(start) -> list[FirstText]:
        (export / "compiled").mkdir(parents=True)
        found = [start(True, export / "compiled")]
        here = made_for_here()
        assert here is not None
        (export / "compiled" / "made-for.json").write_text(here.model_dump_json())
        assert use_compiled(export, _listed(export))
        folder = Path(os.environ[COMPILED])
        installed.append({file.name for file in _listed(folder)})
        found.append(start(True, folder))
        installed.append({file.name for file in _listed(folder)})
        return found

    monkeypatch.setattr(bench_first, "_first_texts", starts)
    generator = random_generator(profile_config(Model(name=preset, length=64)), 0, torch.device("cuda"))
    for found in first_texts_of_profile(generator, preset, "bf16"):
        print(preset, f"{found.total_s:.2f} s", found.parts_s)
    before, after = installed
    assert before == after and any(name.endswith(".cubin") for name in before)


def _listed(folder: Path) -> list[StoredFile]:
    return [StoredFile(name=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size,
                       sha256=sha256_of(path)) for path in folder.rglob("*") if path.is_file()]
