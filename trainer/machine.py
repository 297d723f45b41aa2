"""Is this machine what the plan pays for? No torch."""

import re
import shutil
import socket
import subprocess

from trainer.contract import LdlmError

# Words in a driver's name that make another, slower card of a model.
_WEAKER = {"LAPTOP", "MOBILE", "D"}


class MachineError(LdlmError):
    """The machine is not what the plan pays for. Another one may be."""

    node_exit_code = 1


def check_machine(gpu: str) -> None:
    """Compare the GPUs here with what the plan pays for, e.g. `RTX5090:1`; empty: none are needed.

    Raises:
        MachineError: Another model, or fewer. SkyPilot has rented the wrong Vast host before.
    """
    if not gpu:
        return
    model, _, count = gpu.partition(":")
    found = visible_gpus()
    if sum(is_model(name, model) for name in found) < int(count or 1):
        raise MachineError(f"the plan pays for {gpu}, this machine has {', '.join(found) or 'no GPU'}",
                           place=socket.gethostname(), fix="nothing: the engine takes another machine")


def is_model(name: str, model: str) -> bool:
    """True when a GPU that the driver calls `name` is what SkyPilot calls `model`.

    `A100-80GB` is an `NVIDIA A100-SXM4-80GB`, but an `L4` is no `L40S`, and an `RTX5090` is no
    `NVIDIA GeForce RTX 5090 Laptop GPU`: each part must stand in the name as whole words (of the later
    parts, a beginning is enough: `RTX4080-S` is an `RTX 4080 SUPER`).
    """
    chip, *details = model.upper().split("-")
    name = name.upper()
    if set(re.findall(r"[A-Z0-9]+", name)) & _WEAKER and not set(details) & _WEAKER:
        return False
    if any(part.startswith("SXM") for part in details) and not re.search("PCIE|NVL", name):
        details = [part for part in details if not part.startswith("SXM")]  # `NVIDIA H100 80GB HBM3` is one
    return _stands_in(name, chip, whole=True) and all(_stands_in(name, part, whole=False) for part in details)


def _stands_in(name: str, part: str, *, whole: bool) -> bool:
    letters = r"[^A-Z0-9]*".join(map(re.escape, part))
    return re.search(rf"(?<![A-Z0-9]){letters}{'(?![A-Z0-9])' if whole else ''}", name) is not None


def visible_gpus() -> list[str]:
    """Names of the GPUs that the driver shows, e.g. `NVIDIA GeForce RTX 5090`."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                               capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is none
        return []
    names = [line.strip() for line in asked.stdout.splitlines()]
    return list(filter(None, names)) if asked.returncode == 0 else []
