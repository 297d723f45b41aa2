"""Where kernels in Triton's language run."""

import shutil
from importlib.machinery import ModuleSpec

import pytest

torch = pytest.importorskip("torch")

from trainer.fast import devices  # noqa: E402

GPU, COMPILER = torch.device("cuda", 0), "/usr/bin/cc"


@pytest.mark.parametrize(("capability", "has_package", "compilers", "cc", "runs"), [
    ((9, 0), True, {"gcc"}, None, True), ((7, 0), True, {"clang"}, None, True),
    ((9, 0), True, set(), "cc", True), ((9, 0), True, set(), None, False),
    ((6, 1), True, {"gcc"}, None, False), ((9, 0), False, {"gcc"}, None, False)])
def test_they_need_a_newer_card_triton_and_a_c_compiler(
        capability: tuple[int, int], has_package: bool, compilers: set[str], cc: str | None, runs: bool,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(devices.importlib.util, "find_spec",
                        lambda name: ModuleSpec(name, None) if has_package else None)
    monkeypatch.setattr(shutil, "which", lambda name: COMPILER if name in compilers else None)
    monkeypatch.delenv("CC", raising=False)
    if cc:
        monkeypatch.setenv("CC", cc)
    assert devices.has_triton.__wrapped__(GPU) is runs
    assert devices.has_triton.__wrapped__(torch.device("cpu")) is False
