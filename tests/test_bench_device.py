"""What is said of the device: a driver that is a script, words as the driver 580 prints them."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_device import GpuState, gpu_state, look_at, software  # noqa: E402

FIELDS = ("name,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.draw,"
          "power.limit,temperature.gpu,utilization.gpu,memory.total,memory.used")
H200 = "NVIDIA H200, 580.159.04, P0, 345, 1980, 3201, 3201, 76.63, 700.00, 27, 0, 143771, 0"
HOME = "NVIDIA GeForce RTX 5090, 580.82, P8, 180, 3090, 405, 14001, [N/A], 575.00, 41, 37, 32607, 3211"
CPU = torch.device("cpu")


class NvidiaSmi:
    """A program of that name on the PATH that knows some queries, and calls all other fields invalid."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "nvidia-smi").write_text(f"""#!/bin/sh
[ "$2" = "--format=csv,noheader,nounits" ] || exit 2
printf %s "$3" > {folder}/asked
answer="{folder}/$(printf %s "$1" | tr -c 'a-z=._-' '_')"
[ -f "$answer" ] && exec cat "$answer"
echo "Field \\"${{1#*=}}\\" is not a valid field to query."
echo
exit 2
""")
        (folder / "nvidia-smi").chmod(0o755)

    def answers(self, query: str, *lines: str) -> None:
        name = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz=._-" else "_" for letter in query)
        (self._folder / name).write_text("".join(f"{line}\n" for line in lines))

    @property
    def asked_about(self) -> str:
        return (self._folder / "asked").read_text()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaSmi:
    program = NvidiaSmi(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_an_idle_card_is_read_whole(smi: NvidiaSmi) -> None:
    smi.answers(f"--query-gpu={FIELDS}", H200)
    smi.answers("--query-gpu=clocks_event_reasons.active", "0x0000000000000001")
    smi.answers("--query-compute-apps=pid")
    state = gpu_state()
    assert state == GpuState(
        name="NVIDIA H200", driver_version="580.159.04", pstate="P0", clock_sm_mhz=345, clock_sm_max_mhz=1980,
        clock_memory_mhz=3201, clock_memory_max_mhz=3201, power_w=76.63, power_limit_w=700, temperature_c=27,
        busy_percent=0, memory_mib=143771, memory_used_mib=0, throttled=(), other_processes=0)
    assert smi.asked_about == "--id=0"
    assert look_at(CPU, state, None).warnings == ()


def test_what_holds_its_clocks_down_is_named_by_an_older_driver_too(
        smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.answers(f"--query-gpu={FIELDS}", H200)
    smi.answers("--query-gpu=clocks_throttle_reasons.active", "0x0000000000000064")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    state = gpu_state()
    assert state is not None
    assert state.throttled == ("power cap", "software thermal slowdown", "hardware thermal slowdown")
    assert smi.asked_about == "--id=3"


def test_a_busy_card_is_said(smi: NvidiaSmi) -> None:
    smi.answers(f"--query-gpu={FIELDS}", HOME)
    alone = gpu_state()
    smi.answers("--query-compute-apps=pid", "4711", "4712")
    shared = gpu_state()
    assert alone is not None and alone.power_w is None
    assert look_at(CPU, alone, None).warnings == (
        "this GPU was busy before the benchmark began: 37 %, 3,211 MiB in use",)
    assert look_at(CPU, shared, None).warnings == ("2 other processes compute on this GPU",)


@pytest.mark.parametrize("row", ["", "NVIDIA H200, 580.159.04", "No devices were found"])
def test_a_driver_that_says_something_else_says_nothing(smi: NvidiaSmi, row: str) -> None:
    smi.answers(f"--query-gpu={FIELDS}", row)
    assert gpu_state() is None


def test_a_card_that_is_hidden_from_this_process_is_not_asked_about(
        smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi.answers(f"--query-gpu={FIELDS}", HOME)
    assert gpu_state() is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_state() is None


def test_without_a_driver_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_state() is None


@pytest.mark.parametrize(("name", "is_one"), [
    ("NVIDIA GeForce RTX 5090", True), ("NVIDIA GeForce RTX 5090 Laptop GPU", False),
    ("NVIDIA GeForce RTX 5090 D", False), ("NVIDIA H200", False)])
def test_only_an_rtx_5090_is_one(name: str, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.bench_device.device_name", lambda device: name)
    found = look_at(CPU, None, "RTX 5090")
    assert found.is_rtx5090 is is_one
    assert found.warnings == (() if is_one else (f"asked for RTX 5090, this is {name}",))


def test_versions_of_what_computes() -> None:
    found = software(CPU)
    assert (found.torch, found.cuda, found.sm, found.built_for) == (torch.__version__, None, None, ())
