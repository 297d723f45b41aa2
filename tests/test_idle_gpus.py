"""A GPU that is paid for and does nothing is named in the heartbeat."""

import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from trainer.contract import Document, Env
from trainer.idle_gpus import IdleGpus, Load, ask_loads
from trainer.metrics import Before, PhaseClock, Progress, Recorder
from trainer.run_folder import Heartbeat, RunFolder
from trainer.store import local_store_url, open_store

H100 = "NVIDIA H100 80GB HBM3"
PAID = {Env.GPU: "H100:2"}


class NvidiaSmi:
    """A program of that name on the PATH, which answers this query alone, as the driver 580 words it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir()
        path.touch(0o755)

    def answers(self, *rows: str, code: int = 0) -> None:
        """Print rows; keep which cards were asked about."""
        self._path.write_text("""#!/bin/sh
[ "$1 $2" = "--query-gpu=index,name,utilization.gpu --format=csv,noheader,nounits" ] || exit 2
cat <<'ROWS'
""" + "\n".join(rows) + f"\nROWS\nprintf %s \"$3\" > {self._path.parent}/asked\nexit {code}\n")

    @property
    def asked_about(self) -> str:
        return (self._path.parent / "asked").read_text()


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NvidiaSmi:
    program = NvidiaSmi(tmp_path / "bin" / "nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return program


class Watched:
    """Two cards that are paid for, and a clock."""

    def __init__(self, program: NvidiaSmi, environ: dict[str, str] = PAID) -> None:
        self.now_s = 1000.0
        self.gpus = IdleGpus(environ, lambda: self.now_s)
        self._program = program

    def after(self, seconds: float, *percents: int | str, name: str = H100) -> dict[int, float]:
        """What is found when the driver gives these figures so much later: seconds by number."""
        self.now_s += seconds
        self._program.answers(*(f"{number}, {name}, {percent}" for number, percent in enumerate(percents)))
        self.gpus.look()
        return {gpu.number: gpu.idle_s for gpu in self.gpus.found()}


def test_the_driver_s_rows_are_read(nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi.answers(f"0, {H100}, 97", "1, NVIDIA H100 80GB HBM3 MIG 1g.10gb, [N/A]")
    assert ask_loads({}) == [Load(0, H100, 97), Load(1, f"{H100} MIG 1g.10gb", None)]
    assert nvidia_smi.asked_about == ""
    ask_loads({"CUDA_VISIBLE_DEVICES": "2,3"})
    assert nvidia_smi.asked_about == "--id=2,3"


def test_a_driver_that_fails_says_nothing(nvidia_smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi.answers("Unable to determine the device handle for GPU0000:01:00.0: Unknown Error", code=15)
    assert ask_loads({}) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask_loads({}) == []


def test_a_card_without_work_for_two_minutes_is_named_until_it_works(nvidia_smi: NvidiaSmi) -> None:
    watched = Watched(nvidia_smi)
    assert watched.after(0, 98, 0) == {}
    assert watched.after(60, 98, 0) == {}
    assert watched.after(60, 98, 0) == {1: 120.0}
    assert watched.after(30, 0, 1) == {1: 150.0}
    assert watched.after(15, 99, 40) == {}
    assert watched.after(15, 99, 0) == {}


def test_what_the_driver_does_not_tell_and_what_is_not_paid_for_is_not_named(nvidia_smi: NvidiaSmi) -> None:
    watched = Watched(nvidia_smi)
    watched.after(0, "[N/A]", "[N/A]")
    assert watched.after(600, "[N/A]", "[N/A]") == {}
    display = Watched(nvidia_smi)
    display.after(0, 0, name="NVIDIA T400 4GB")
    assert display.after(600, 0, name="NVIDIA T400 4GB") == {}


def test_a_driver_that_stops_answering_names_nothing_more(nvidia_smi: NvidiaSmi) -> None:
    watched = Watched(nvidia_smi)
    watched.after(0, 98, 98)
    nvidia_smi.answers(code=15)
    watched.now_s += 600
    watched.gpus.look()
    assert watched.gpus.found() == ()


def test_the_heartbeat_names_it(nvidia_smi: NvidiaSmi, tmp_path: Path) -> None:
    watched = Watched(nvidia_smi)
    watched.after(0, 98, 98)
    watched.after(720, 98, 0)
    folder = RunFolder(open_store(local_store_url(tmp_path / "store")), "run")
    attempt = folder.claim_attempt(Document.TRAIN, billed_from=datetime.now(UTC), host="h", offer="",
                                   price_usd_per_hour=Decimal(1))
    Recorder(folder, attempt, interval_s=3600, before=Before(), clock=PhaseClock(attempt.billed_from),
             progress=Progress(total_steps=12), idle_gpus=watched.gpus.found).close()

    (gpu,) = folder.read("attempts/1/heartbeat.json", Heartbeat).idle_gpus
    assert (gpu.number, gpu.name, gpu.idle_s) == (1, H100, 720.0)


@pytest.mark.parametrize(("gpu", "num_threads"), [("", 0), ("H100:1", 1)])
def test_the_driver_is_asked_beside_the_work_where_a_gpu_is_paid_for(
        nvidia_smi: NvidiaSmi, gpu: str, num_threads: int) -> None:
    nvidia_smi.answers(f"0, {H100}, 0")
    before = set(threading.enumerate())
    IdleGpus({Env.GPU: gpu}).watch()
    started = [thread for thread in set(threading.enumerate()) - before if thread.name == "idle gpus"]
    assert len(started) == num_threads and all(thread.daemon for thread in started)
