"""Is a rented machine what is paid for, and can it do the work."""

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launcher.gpu_kinds import GPU_KINDS
from trainer.contract import Env
from trainer.machine import (
    MachineError,
    check_clock,
    check_hardware,
    check_machine,
    is_model,
    key_files,
    visible_gpus,
)

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
A100 = "NVIDIA A100-SXM4-80GB"


@pytest.mark.parametrize(("name", "model", "same"), [
    ("NVIDIA GeForce RTX 5090", "RTX5090", True),
    ("NVIDIA GeForce RTX 5090 Laptop GPU", "RTX5090", False),
    ("NVIDIA GeForce RTX 4090", "RTX5090", False),
    ("NVIDIA GeForce RTX 4090 D", "RTX4090", False),
    ("NVIDIA GeForce RTX 4090 D", "RTX4090-D", True),
    ("NVIDIA GeForce RTX 4080 SUPER", "RTX4080-S", True),
    ("NVIDIA A100-SXM4-80GB", "A100-80GB", True),
    ("NVIDIA A100-SXM4-40GB", "A100-80GB", False),
    ("NVIDIA A100-SXM4-40GB", "A100", True),
    ("NVIDIA A100 80GB PCIe", "A100-80GB", True),
    ("NVIDIA H100 80GB HBM3", "H100", True),
    ("NVIDIA H100 80GB HBM3", "H100-SXM", True),
    ("NVIDIA H100 NVL", "H100-SXM", False),
    ("NVIDIA H200", "H100", False),
    ("NVIDIA GH200 480GB", "H200", False),
    ("NVIDIA L40S", "L4", False),
    ("NVIDIA L40S", "L40", False),
    ("NVIDIA L40S", "L40S", True),
    ("NVIDIA A10G", "A10", False),
    ("NVIDIA A100-SXM4-40GB", "A10", False),
    ("Tesla V100-SXM2-32GB", "V100-32GB", True),
    ("Tesla T4", "T4", True),
    ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada", True),
    ("NVIDIA RTX A6000", "RTXA6000", True),
])
def test_the_driver_s_name_of_a_card_is_told_from_that_of_another(name: str, model: str, same: bool) -> None:
    assert is_model(name, model) is same


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name on the PATH; write shell text into it."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program


def shows(program: Path, *rows: str) -> None:
    """nvidia-smi that prints these rows."""
    program.write_text("#!/bin/sh\ncat <<'ROWS'\n" + "\n".join(rows) + "\nROWS\n")


@pytest.fixture
def torch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stands in for the program that lets torch compute: shell text after `#!/bin/sh`."""
    def write(text: str) -> None:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    write("""echo '{"torch": "2.13.0", "cuda": "13.0", "problem": "", "built_for": [], "num_gpus": 2}'""")
    return write


def refusal(**wanted: str) -> str:
    with pytest.raises(MachineError) as caught:
        check_machine({f"LDLM_{name}": value for name, value in wanted.items()})
    return caught.value.problem


def test_a_machine_must_have_the_cards_that_are_paid_for(nvidia_smi: Path, torch_says) -> None:
    shows(nvidia_smi, *2 * [f"{A100}, 81920, 81000, 580.95.05"])
    assert visible_gpus()[1] == (A100, 80.0, 81000 / 1024, "580.95.05")

    check_machine({})
    check_machine({Env.GPU: "", Env.GPU_MEMORY: "", Env.DISK: ""})
    check_machine({Env.GPU: "A100-80GB:2", Env.GPU_MEMORY: "79.1"})
    check_machine({Env.GPU: "A100-80GB"})
    for wanted in ("H100:2", "A100-80GB:4"):
        assert refusal(GPU=wanted) == f"the plan pays for {wanted}, this machine has {A100}, {A100}"


def test_cards_that_are_hidden_from_cuda_are_none(
        nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed would be told to use what torch does not find."""
    shows(nvidia_smi, f"{A100}, 81920, 81000, 580.95.05")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.parametrize("program", ["#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n", "not a program"])
def test_a_driver_that_does_not_answer_is_no_card(nvidia_smi: Path, program: str) -> None:
    nvidia_smi.write_text(program)
    assert refusal(GPU="RTX5090:1") == "the plan pays for RTX5090:1, this machine has no GPU"


def test_a_driver_in_which_even_sigkill_waits_is_no_card_and_holds_nobody_up(
        nvidia_smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 30\n")
    monkeypatch.setattr("trainer.machine._DRIVER_S", 2)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)  # as if it were in the kernel

    assert visible_gpus() == []

    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it was there still


def test_a_card_with_less_memory_or_with_another_program_on_it_is_refused(nvidia_smi, torch_says) -> None:
    shows(nvidia_smi, f"{A100}, 40960, 40900, 580.95.05")
    assert refusal(GPU="A100:1", GPU_MEMORY_GIB="79.1") == (
        f"its {A100} has 40.0 GiB, the plan counts on 79.1")
    shows(nvidia_smi, f"{A100}, 81920, 51200, 580.95.05")
    assert refusal(GPU="A100:1", GPU_MEMORY_GIB="79.1") == (
        f"of the 79.1 GiB of its {A100} only 50.0 are free: another program uses it")


def test_memory_that_the_driver_does_not_name_is_not_asked_for(nvidia_smi: Path, torch_says) -> None:
    shows(nvidia_smi, "NVIDIA GB10, [N/A], [N/A], 580.95.05")
    check_machine({Env.GPU: "GB10:1", Env.GPU_MEMORY: "110"})


def test_a_torch_that_cannot_use_the_cards_is_told_with_all_that_explains_it(nvidia_smi, torch_says) -> None:
    shows(nvidia_smi, "NVIDIA GeForce RTX 5090, 32607, 32100, 580.86.10")
    torch_says("""echo '{"torch": "2.6.0", "cuda": "12.4", "num_gpus": 1, "built_for": ["sm_80", "sm_90"],
"problem": "cuda:0: no kernel image is available"}' | tr -d '\\n'""")
    assert refusal(GPU="RTX5090:1") == (
        "torch 2.6.0 (CUDA 12.4, for sm_80 sm_90) cannot compute on its NVIDIA GeForce RTX 5090, driver "
        "580.86.10: cuda:0: no kernel image is available")
    torch_says("""echo '{"torch": "2", "cuda": "13.0", "num_gpus": 1, "built_for": [], "problem": ""}'""")
    check_machine({Env.GPU: "RTX5090:1"})
    shows(nvidia_smi, *2 * ["NVIDIA GeForce RTX 5090, 32607, 32100, 580.86.10"])
    assert refusal(GPU="RTX5090:2").endswith("driver 580.86.10: it sees 1 of 2")
    torch_says("echo bus error >&2; exit 7")
    assert refusal(GPU="RTX5090:1") == (
        "torch died on its NVIDIA GeForce RTX 5090, driver 580.86.10, with 7: bus error")


@pytest.mark.parametrize(("driver", "index", "is_refused"), [
    ("580.65.06", None, False), ("575.57.08", None, True), ("535.216.01", None, True),
    ("535.216.01", "https://wheels.example/whl/cu126", False),
    ("470.57.02", "https://wheels.example/whl/cu126", True),
    ("535.216.01", "https://wheels.example/simple", True)])
def test_a_driver_must_run_the_torch_that_is_to_be_installed(
        nvidia_smi, monkeypatch, driver, index, is_refused):
    """Before its gigabytes are fetched: here no torch is installed. The index is what pip itself reads."""
    monkeypatch.setattr("trainer.machine._torch_version", lambda: None)
    if index:
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index)
    shows(nvidia_smi, f"NVIDIA H100 80GB HBM3, 81559, 81000, {driver}")
    if not is_refused:
        check_hardware({Env.GPU: "H100:1"})
        return
    with pytest.raises(MachineError) as caught:
        check_hardware({Env.GPU: "H100:1"})
    of, needed = ("12.6", 525) if "cu126" in str(index) else ("13.0", 580)
    assert caught.value.problem == (
        f"its NVIDIA H100 80GB HBM3 has driver {driver}, torch 2.13.0 of CUDA {of} takes {needed} or "
        "newer: set the candidate's image, or its torch_index to an older CUDA")


def test_a_torch_that_is_installed_is_asked_itself(nvidia_smi, torch_says, monkeypatch) -> None:
    monkeypatch.setattr("trainer.machine._torch_version", lambda: "2.13.0+cu126")
    shows(nvidia_smi, "NVIDIA H100 80GB HBM3, 81559, 81000, 535.216.01")
    check_machine({Env.GPU: "H100:1"})


def test_the_torch_that_is_installed_here_says_itself_that_it_has_no_gpu(nvidia_smi: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    shows(nvidia_smi, "NVIDIA GeForce RTX 5090, 32607, 32100, 580.86.10")
    said = refusal(GPU="RTX5090:1")
    assert said.startswith(f"torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}, for -) cannot")
    assert "CUDA" in said.rpartition("driver 580.86.10: ")[2]


@pytest.mark.gpu
def test_a_machine_with_gpus_passes_as_what_it_is() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    name = visible_gpus()[0].name
    model = next(kind for kind in GPU_KINDS if is_model(name, kind))
    check_machine({Env.GPU: f"{model}:{torch.cuda.device_count()}",
                   Env.GPU_MEMORY: str(GPU_KINDS[model].memory_gib)})


def test_what_was_found_is_told(nvidia_smi: Path, torch_says) -> None:
    shows(nvidia_smi, "NVIDIA GeForce RTX 3060, 12288, 12000, 580.95.05")
    found = check_machine({Env.GPU: "RTX3060:1"})
    assert found.model_dump() == {
        "gpus": ({"name": "NVIDIA GeForce RTX 3060", "memory_gib": 12.0, "driver": "580.95.05"},),
        "torch": "2.13.0", "cuda": "13.0", "key_files": None}
    assert check_machine({}).gpus == ()


def test_keys_of_clouds_in_a_home_folder_are_named_and_nothing_else(tmp_path: Path) -> None:
    for name in (".config/vastai/vast_api_key", ".aws/credentials", ".aws/config", ".config/gcloud/logs/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert key_files(tmp_path) == (".aws/credentials", ".config/vastai/vast_api_key")


def test_a_disk_must_hold_what_is_fetched_or_hold_it_already(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "made" / "yet"))
    check_machine({Env.DISK: "0.001"})
    assert (f"GiB are free in {tmp_path}, what the run installs and fetches takes 1e+06"
            in refusal(DISK_GIB="1000000"))
    kept = tmp_path / "not" / "made" / "yet" / "huggingface" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    more = f"{shutil.disk_usage(tmp_path).free / 2**30 + 100:.0f}"
    kept.touch()
    assert "GiB are free" in refusal(DISK_GIB=more)
    with kept.open("wb") as sparse:
        sparse.truncate(200 * 2**30)
    check_machine({Env.DISK: more})


def test_a_clock_that_is_wrong_would_make_a_wrong_bill() -> None:
    check_clock(NOON + timedelta(seconds=59), NOON)
    check_clock(NOON - timedelta(seconds=59), NOON)
    with pytest.raises(MachineError, match="its clock is 61 s ahead of the store's"):
        check_clock(NOON + timedelta(seconds=61), NOON)
    with pytest.raises(MachineError, match="its clock is 3600 s behind the store's"):
        check_clock(NOON - timedelta(hours=1), NOON)
