"""Machine code that comes with an export: found where it was made for, and nowhere else; and our own kernels,
compiled once on a machine."""

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer import compiled  # noqa: E402
from trainer.compiled import MadeFor, check_compiles, use_compiled  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402
from trainer.fast.persistent import compiling  # noqa: E402
from trainer.fast.persistent.shape import Shape  # noqa: E402
from trainer.local_cache import sha256_of  # noqa: E402
from trainer.manifest import StoredFile  # noqa: E402

HERE = MadeFor(device="NVIDIA H200", torch="2.11.0+cu130", python="3.12.3", machine="x86_64")
SMALL = Shape(1024, weight_slots=2, activation_slots=2, blocks_per_slot=1)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(compiled, "made_for_here", lambda: HERE)


def export_with_code(export: Path) -> list[StoredFile]:
    """What Triton 3.6 leaves of a kernel, one of our own beside it, and what the export is made for."""
    group = {name: f"/where/it/was/made/AB/{name}" for name in ("kernel.cubin", "kernel.json")}
    contents = {"model.safetensors": b"weights", "compiled/made-for.json": HERE.model_dump_json().encode(),
                "compiled/AB/kernel.cubin": b"\x7fELF", "compiled/AB/kernel.json": b"{}",
                "compiled/AB/__grp__kernel.json": json.dumps({"child_paths": group}).encode(),
                "compiled/CD/launcher.so": b"\x7fELF host", "compiled/ldlm/0a.cubin": b"\x7fELF ours"}
    for name, content in contents.items():
        (export / name).parent.mkdir(parents=True, exist_ok=True)
        (export / name).write_bytes(content)
    return [StoredFile(name=name, num_bytes=len(content), sha256=sha256_of(export / name))
            for name, content in contents.items()]


def test_what_was_made_for_here_is_copied_to_where_triton_looks(tmp_path: Path) -> None:
    files = export_with_code(tmp_path / "export")
    before = {path: path.read_bytes() for path in (tmp_path / "export").rglob("*") if path.is_file()}
    assert use_compiled(tmp_path / "export", files)
    folder = Path(os.environ["TRITON_CACHE_DIR"])
    assert folder.is_relative_to(tmp_path / "cache")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "made-for.json", "AB/kernel.cubin", "AB/kernel.json", "AB/__grp__kernel.json", "CD/launcher.so",
        "ldlm/0a.cubin"}
    assert (folder / "CD/launcher.so").read_bytes() == b"\x7fELF host"
    told = json.loads((folder / "AB/__grp__kernel.json").read_text())["child_paths"]
    assert told == {name: str(folder / "AB" / name) for name in ("kernel.cubin", "kernel.json")}
    assert all(path.read_bytes() == content for path, content in before.items())
    assert use_compiled(tmp_path / "export", files) and os.environ["TRITON_CACHE_DIR"] == str(folder)


@pytest.mark.parametrize("other", [
    HERE.model_copy(update={"device": "NVIDIA L40S"}), HERE.model_copy(update={"torch": "2.12.0+cu130"}),
    HERE.model_copy(update={"python": "3.11.9"}), None], ids=["device", "torch", "python", "no GPU"])
def test_what_was_made_for_elsewhere_is_passed_over(tmp_path, monkeypatch, other) -> None:
    files = export_with_code(tmp_path / "export")
    monkeypatch.setattr(compiled, "made_for_here", lambda: other)
    assert not use_compiled(tmp_path / "export", files)
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton") and not (tmp_path / "cache").exists()


def test_code_that_the_export_does_not_list_is_not_taken(tmp_path: Path) -> None:
    files = export_with_code(tmp_path / "export")
    (tmp_path / "export/compiled/EF").mkdir()
    (tmp_path / "export/compiled/EF/launcher.so").write_bytes(b"\x7fELF of somebody else")
    assert use_compiled(tmp_path / "export", files)
    assert not (Path(os.environ["TRITON_CACHE_DIR"]) / "EF").exists()
    without = [file for file in files if not file.name.startswith("compiled/")]
    assert not use_compiled(tmp_path / "export", without)


def test_where_nothing_is_compiled_it_is_refused_with_what_to_do(monkeypatch) -> None:
    assert check_compiles() == HERE
    monkeypatch.setattr(compiled, "made_for_here", lambda: None)
    with pytest.raises(ConfigError, match="no CUDA device here") as caught:
        check_compiles()
    assert caught.value.place == "--with-compiled" and caught.value.fix


def test_our_kernels_are_compiled_once_for_a_source_and_a_torch(tmp_path, monkeypatch) -> None:
    made: list[str] = []

    def compile_it(source: str, headers: dict[str, str]) -> bytes:
        made.append(source)
        return b"\x7fELF %d" % len(made)

    def cubin() -> bytes:
        compiling.cubin_of.cache_clear()  # as another process
        return compiling.cubin_of(SMALL)

    monkeypatch.setattr(compiling, "_compiled", compile_it)
    try:
        assert [cubin(), cubin()] == [b"\x7fELF 1"] * 2
        assert [path.suffix for path in (tmp_path / "triton/ldlm").iterdir()] == [".cubin"]
        monkeypatch.setattr(compiling, "_OPTIONS", (b"--gpu-architecture=sm_90a",))
        assert [cubin(), cubin()] == [b"\x7fELF 2"] * 2
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        assert cubin() == b"\x7fELF 3"
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))  # cannot be written
        assert [cubin(), cubin()] == [b"\x7fELF 4", b"\x7fELF 5"]
    finally:
        compiling.cubin_of.cache_clear()
