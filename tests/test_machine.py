"""Is a rented machine what is paid for: by the driver's names of its cards."""

from pathlib import Path

import pytest

from trainer.contract import ExitCode
from trainer.machine import MachineError, check_machine, is_model


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


def test_a_machine_must_have_the_cards_that_are_paid_for(nvidia_smi: Path) -> None:
    nvidia_smi.write_text("#!/bin/sh\nprintf 'NVIDIA A100-SXM4-80GB\\nNVIDIA A100-SXM4-80GB\\n'\n")

    check_machine("")
    check_machine("A100-80GB:2")
    check_machine("A100-80GB")
    for wanted in ("H100:2", "A100-80GB:4"):
        with pytest.raises(MachineError) as caught:
            check_machine(wanted)
        assert f"the plan pays for {wanted}, this machine has NVIDIA A100-SXM4-80GB, NVIDIA A100" in str(
            caught.value)
        assert caught.value.node_exit_code not in list(ExitCode)  # another machine may do


@pytest.mark.parametrize("program", ["#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n", "not a program"])
def test_a_driver_that_does_not_answer_is_no_card(nvidia_smi: Path, program: str) -> None:
    nvidia_smi.write_text(program)
    with pytest.raises(MachineError, match="this machine has no GPU"):
        check_machine("RTX5090:1")
