"""Which device a benchmark ran on, in what state, and with which programs. No figure is worth more."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from trainer.machine import is_model

_ASK_S = 60
_TEXT = ("name", "driver_version", "pstate")
_NUMBERS = {
    "clock_sm_mhz": "clocks.sm", "clock_sm_max_mhz": "clocks.max.sm", "clock_memory_mhz": "clocks.mem",
    "clock_memory_max_mhz": "clocks.max.mem", "power_w": "power.draw", "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu", "busy_percent": "utilization.gpu", "memory_mib": "memory.total",
    "memory_used_mib": "memory.used"}
# Of NVML (nvmlClocksEventReasons); an idle GPU and clocks that a person has set are no throttling.
_THROTTLED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal slowdown",
              0x40: "hardware thermal slowdown", 0x80: "power brake"}
# The driver's newer and older name for the same word.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
_BUSY_PERCENT, _BUSY_MIB = 5, 1024  # a desktop on the same card takes less (guess)
RTX5090 = "RTX5090"


class GpuState(BaseModel):
    """What the driver says of the card; None where it does not.

    Attributes:
        throttled: What slows its clocks at this moment.
        other_processes: That compute on it, besides this one.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    driver_version: str
    pstate: str
    clock_sm_mhz: float | None
    clock_sm_max_mhz: float | None
    clock_memory_mhz: float | None
    clock_memory_max_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None
    busy_percent: float | None
    memory_mib: float | None
    memory_used_mib: float | None
    throttled: tuple[str, ...]
    other_processes: int


class Software(BaseModel):
    """Versions; `sm` is the card's kind, and `built_for` the kinds that this torch has code for."""

    model_config = ConfigDict(frozen=True)
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    sm: str | None
    built_for: tuple[str, ...]
    git_sha: str | None


class Device(BaseModel):
    """The device of a whole benchmark.

    Attributes:
        before: Before this process has touched it; None on a CPU, or without nvidia-smi.
        warnings: What makes its figures worth less, in words.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    is_rtx5090: bool
    memory_gib: float | None
    before: GpuState | None
    warnings: tuple[str, ...]


def device_name(device: torch.device) -> str:
    """What ran the benchmark, as its driver calls it; a CPU with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def look_at(device: torch.device, before: GpuState | None, expected: str | None) -> Device:
    """What the device is, and what speaks against its figures.

    Args:
        device: Of this run.
        before: From `gpu_state`, asked before CUDA was touched.
        expected: A model by its name, such as `RTX 5090`; None: any will do.
    """
    name = device_name(device)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return Device(name=name, is_rtx5090=is_model(name, RTX5090),
                  memory_gib=memory / 2**30 if memory else None, before=before,
                  warnings=tuple(_warnings(name, before, expected)))


def _warnings(name: str, before: GpuState | None, expected: str | None) -> list[str]:
    found = []
    if expected and not is_model(name, expected.replace(" ", "")):
        found.append(f"asked for {expected}, this is {name}")
    if before and before.other_processes:
        found.append(f"{before.other_processes} other processes compute on this GPU")
    elif before and ((before.busy_percent or 0) > _BUSY_PERCENT or (before.memory_used_mib or 0) > _BUSY_MIB):
        found.append(f"this GPU was busy before the benchmark began: {before.busy_percent or 0:.0f} %, "
                     f"{before.memory_used_mib or 0:,.0f} MiB in use")
    return found


def software(device: torch.device, git_sha: str | None = None) -> Software:
    """Versions of what computes; the commit is this checkout's where none is told."""
    is_cuda = device.type == "cuda"
    return Software(
        python=platform.python_version(), torch=torch.__version__, triton=_version("triton"),
        cuda=torch.version.cuda if is_cuda else None,
        sm="sm_{}{}".format(*torch.cuda.get_device_capability(device)) if is_cuda else None,
        built_for=tuple(torch.cuda.get_arch_list()) if is_cuda else (), git_sha=git_sha or _git_sha())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    """Of the checkout that this file lies in, `-dirty` behind it where files differ; None without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    sha, changes = _said([*git, "rev-parse", "HEAD"]), _said([*git, "status", "--porcelain"])
    if sha is None or changes is None:
        return None
    return f"{sha.strip()}-dirty" if changes else sha.strip()


def gpu_state() -> GpuState | None:
    """Ask the driver about the first card that this process may use; None where it may use none, and without
    a driver that answers."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    fields = ",".join([*_TEXT, *_NUMBERS.values()])
    row = _row(fields)
    if row is None or len(row) != len(_TEXT) + len(_NUMBERS):
        return None
    numbers = {name: _number(cell) for name, cell in zip(_NUMBERS, row[len(_TEXT):], strict=True)}
    return GpuState(**dict(zip(_TEXT, row, strict=False)), **numbers, throttled=_throttled(),
                    other_processes=_other_processes())


def state_during(work: Callable[[], object],
                 agreed: Callable[[bool], bool] = lambda is_so: is_so) -> GpuState | None:
    """The card as its driver sees it while some work is done again and again, at least once.

    Args:
        work: Of all ranks alike.
        agreed: What all take for an answer that may be different on each.
    """
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(gpu_state)
        work()
        while not agreed(asked.done()):
            work()
        return asked.result()


def _throttled() -> tuple[str, ...]:
    for field in _REASONS:
        row = _row(field)
        if row and row[0].startswith("0x"):
            bits = int(row[0], 16)
            return tuple(words for bit, words in _THROTTLED.items() if bits & bit)
    return ()


def _other_processes() -> int:
    """Within a container the driver may name none, or name them by numbers of the host."""
    pids = [line.strip() for line in (_said(_smi("--query-compute-apps=pid")) or "").splitlines()]
    return sum(pid.isdigit() and int(pid) != os.getpid() for pid in pids)


def _row(fields: str) -> list[str] | None:
    """Cells of one query; None where the driver does not answer or does not know a field."""
    said = _said(_smi(f"--query-gpu={fields}"))
    lines = (said or "").splitlines()
    return [cell.strip() for cell in lines[0].split(",")] if lines else None


def _smi(query: str) -> list[str]:
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    return ["nvidia-smi", query, "--format=csv,noheader,nounits", f"--id={first}"]


def _said(command: list[str]) -> str | None:
    if not shutil.which(command[0]):
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None  # `[N/A]`, `[Not Supported]`
