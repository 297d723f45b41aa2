"""Is this machine what the plan pays for, and can it do the work? Before anything is fetched. No torch.

An image with the wrong driver, a card that somebody else uses, a disk that is too small: found here they
cost a minute of rent, found later hours.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from trainer.contract import Env, ExitCode, LdlmError
from trainer.cuda import TORCH, cuda_of_torch, oldest_driver
from trainer.local_cache import cache_folder
from trainer.run_folder import Traffic
from trainer.seen_machine import SeenGpu, SeenMachine

_BILLED_BY_THE_BOOT = {"vast", "azure", "gcp"}  # where a machine is one run's, from its start to its end
# Words in a driver's name that make another, slower card of a model.
_WEAKER = {"LAPTOP", "MOBILE", "D"}
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version",
               "--format=csv,noheader,nounits")
_ALL, _FREE = 0.97, 0.90  # of a card's memory that must be there, and be free (guess: a desktop takes 1 GiB)
_DRIVER_S = 60
_PROBE_S = 180  # torch from a cold disk takes half a minute
# What would let somebody on a machine spend its user's money or read their data, from home. All that SkyPilot
# copies where it is let, but settings that hold no key (tests/test_sky_keys.py asks it), and then our own.
_KEY_FILES = (
    ".aws/credentials", ".azure/msal_token_cache.json", ".cache/huggingface/token",
    ".cloudflare/r2.credentials", ".config/cudo/cudo.yml", ".config/doctl/config.yaml",
    ".config/gcloud/access_tokens.db", ".config/gcloud/application_default_credentials.json",
    ".config/gcloud/credentials.db", ".config/gcloud/legacy_credentials", ".config/mithril/config.yaml",
    ".config/vastai/vast_api_key", ".coreweave/cw.credentials", ".fluidstack/api_key", ".hyperbolic/api_key",
    ".ibm/credentials.yaml", ".kube/config", ".lambda_cloud/lambda_keys", ".nebius/NEBIUS_IAM_TOKEN.txt",
    ".nebius/credentials.json", ".oci/config", ".oci/s3.credentials", ".paperspace/config.json",
    ".prime/config.json", ".runpod/config.toml", ".scp/scp_credential", ".seeweb_cloud/seeweb_keys",
    ".shadeform/api_key", ".vastdata/vastdata.credentials", ".verda/config.json", ".vsphere/credential.yaml",
    ".yotta/credentials",
    ".vast_api_key", ".azure/accessTokens.json", ".sky/.sky_key")
_CLOCK_S = 60  # cents of a bill, and far from the 15 minutes at which S3 refuses requests (guess)


class MachineError(LdlmError):
    """The machine is not what the plan pays for. Another one may be, where the engine rents it."""

    node_exit_code = ExitCode.BAD_CONFIG


class Gpu(NamedTuple):
    """One card, as its driver names it. Memory in GiB; None where the driver does not say."""

    name: str
    memory_gib: float | None
    free_gib: float | None
    driver: str


def check_machine(wanted: Mapping[str, str]) -> SeenMachine:
    """Compare what is here with what the plan pays for. What it does not say is not asked for.

    Args:
        wanted: Of `Env.GPU` (`RTX5090:1`), `Env.GPU_MEMORY` and `Env.DISK`, as the task has them.

    Returns:
        What was found.

    Raises:
        MachineError: Another model, fewer cards, less memory, a torch that cannot use them, a full disk.
    """
    mine = check_hardware(wanted)
    if not mine:
        return SeenMachine(torch=_torch_version())
    found = _check_torch(mine, int(wanted[Env.GPU].partition(":")[2] or 1))
    return SeenMachine(torch=found["torch"], cuda=found["cuda"], gpus=tuple(
        SeenGpu(name=card.name, memory_gib=card.memory_gib, driver=card.driver) for card in mine))


def check_hardware(wanted: Mapping[str, str]) -> list[Gpu]:
    """The part of `check_machine` that needs no torch. Returns the cards that the plan pays for."""
    if free := wanted.get(Env.DISK):
        _check_disk(float(free))
    if not (gpu := wanted.get(Env.GPU)):
        return []
    cards, (model, _, count) = visible_gpus(), gpu.partition(":")
    mine = cards_of(cards, model)
    if len(mine) < int(count or 1):
        there = ", ".join(card.name for card in cards) or "no GPU"
        raise _wrong(f"the plan pays for {gpu}, this machine has {there}")
    for card in mine:
        _check_memory(card, float(wanted.get(Env.GPU_MEMORY) or 0))
    if mine and _torch_version() is None:  # else it says itself what it cannot do
        _check_driver(mine[0])
    return mine


def check_set_up(note: Path) -> None:
    """Refuse a machine whose set-up has had its time.

    Args:
        note: Where `trainer/set_up.py` says so.

    Raises:
        MachineError: It has not come to an end.
    """
    if note.exists():
        raise _wrong(note.read_text(errors="replace"))


def key_files(home: Path) -> tuple[str, ...]:
    """Files below a home folder that hold keys of a cloud: on a rented machine there should be none."""
    return tuple(name for name in _KEY_FILES if (home / name).exists())


def _torch_version() -> str | None:
    """Without the seconds that importing it takes."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def cards_of(cards: Sequence[Gpu], model: str) -> list[Gpu]:
    """Those that are of a model, by SkyPilot's name of it."""
    return [card for card in cards if is_model(card.name, model)]


def _check_memory(card: Gpu, gib: float) -> None:
    if card.memory_gib is not None and card.memory_gib < _ALL * gib:
        raise _wrong(f"its {card.name} has {card.memory_gib:.1f} GiB, the plan counts on {gib:g}")
    if card.free_gib is not None and card.free_gib < _FREE * gib:
        raise _wrong(f"of the {gib:g} GiB of its {card.name} only {card.free_gib:.1f} are free: another "
                     "program uses it")


def _check_driver(card: Gpu) -> None:
    """Compare the driver with what the CUDA of the torch that would be installed here takes."""
    pip = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True,
                         check=False).stdout  # its files and its environment
    cuda, first = cuda_of_torch(pip), re.match(r"\d+", card.driver)
    needed = oldest_driver(cuda)
    if first and int(first[0]) < needed:
        raise _wrong(f"its {card.name} has driver {card.driver}, torch {TORCH} of CUDA {cuda[0]}.{cuda[1]} "
                     f"takes {needed} or newer: set the candidate's image, or its torch_index to an older "
                     "CUDA")


def _check_torch(cards: Sequence[Gpu], count: int) -> dict[str, Any]:
    """Let the installed torch compute on every card, in a process that may die of it. Returns its answer."""
    card = f"its {cards[0].name}, driver {cards[0].driver}"
    try:
        done = _asked([sys.executable, "-m", "trainer.gpu_probe"], _PROBE_S)
    except subprocess.TimeoutExpired:
        raise _wrong(f"torch did not compute on {card}, within {_PROBE_S} s") from None
    if done.returncode != 0:
        raise _wrong(f"torch died on {card}, with {done.returncode}: {done.stderr.strip()[-200:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    problem = found["problem"]
    if not problem and found["num_gpus"] < count:
        problem = f"it sees {found['num_gpus']} of {count}"
    if problem:
        torch = (f"torch {found['torch']} (CUDA {found['cuda'] or 'none'}, "
                 f"for {' '.join(found['built_for']) or '-'})")
        raise _wrong(f"{torch} cannot compute on {card}: {problem}")
    return dict(found)


def _check_disk(gib: float) -> None:
    caches = cache_folder().parent  # the Hub's files are beside ours
    folder = next(found for found in (caches, *caches.parents) if found.exists())
    free = shutil.disk_usage(folder).free / 2**30
    if free >= gib:
        return
    # Set-up, or an attempt before this one, may have brought it here; uv's copies of a file are one file.
    sizes = {(found.st_dev, found.st_ino): found.st_size for home in (caches, Path(sys.prefix))
             for path in home.rglob("*") if path.is_file() and not path.is_symlink()
             for found in (path.stat(),)}
    if free + sum(sizes.values()) / 2**30 < gib:
        raise _wrong(f"{free:.1f} GiB are free in {folder}, what the run installs and fetches takes {gib:g}")


def check_clock(here: datetime, at_the_store: datetime) -> None:
    """Compare this machine's clock with the store's: the bill is made of both.

    Args:
        here: When something was written, by this machine.
        at_the_store: When the store says that it was.

    Raises:
        MachineError: They are more than a minute apart.
    """
    ahead_s = (here - at_the_store).total_seconds()
    if abs(ahead_s) > _CLOCK_S:
        where = "ahead of" if ahead_s > 0 else "behind"
        raise _wrong(f"its clock is {abs(ahead_s):.0f} s {where} the store's")


def booted_at(environ: Mapping[str, str]) -> datetime | None:
    """When this machine, or its container, was started; None where that is not when its bill begins.

    Args:
        environ: Of this process: SkyPilot says in it which cloud this is.
    """
    if cluster_info(environ).get("cloud") not in _BILLED_BY_THE_BOOT:
        return None
    return datetime.fromtimestamp(psutil.Process(1).create_time(), UTC)


def cluster_info(environ: Mapping[str, str]) -> dict[str, str]:
    """Where SkyPilot says that this machine is, in small letters: `cloud`, `region` and `zone` as far as it
    knows them."""
    try:
        told = json.loads(environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
    except ValueError:
        return {}
    return {key: str(value).lower() for key, value in told.items() if value} if isinstance(told, dict) else {}


def traffic() -> Traffic:
    """What has gone over this machine's network since it was started."""
    cards = [count for name, count in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return Traffic(received_bytes=sum(count.bytes_recv for count in cards),
                   sent_bytes=sum(count.bytes_sent for count in cards))


def _wrong(problem: str) -> MachineError:
    return MachineError(problem, place=socket.gethostname(),
                        fix="where machines are rented, another one is taken by itself; else change this "
                            "one, or the recipe's hardware")


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


def visible_gpus() -> list[Gpu]:
    """The GPUs that the driver shows; none without one, where it hangs, or where all are hidden from CUDA."""
    if not shutil.which("nvidia-smi") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    try:
        asked = _asked(_NVIDIA_SMI, _DRIVER_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines()]
    return [Gpu(row[0], _gib(row[1]), _gib(row[2]), row[3]) for row in rows if len(row) == 4
            ] if asked.returncode == 0 else []


def _asked(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """What a program says that may hang for good: in a driver that does not answer, even SIGKILL waits.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It is left behind.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()  # `subprocess.run` would wait for its end
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _gib(mib: str) -> float | None:
    return int(mib) / 1024 if mib.isdigit() else None  # `[N/A]` where memory is the host's
