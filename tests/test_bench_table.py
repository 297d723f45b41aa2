"""What a person reads of a benchmark, whole."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

torch = pytest.importorskip("torch")

from trainer.bench_cases import Case, Model  # noqa: E402
from trainer.bench_device import Device, GpuState, Software  # noqa: E402
from trainer.bench_first import FirstText  # noqa: E402
from trainer.bench_floor import PartWork, Rates  # noqa: E402
from trainer.bench_parts import Parts  # noqa: E402
from trainer.bench_result import CaseResult, Check, Report  # noqa: E402
from trainer.bench_table import screen  # noqa: E402
from trainer.bench_timing import Timed  # noqa: E402

STATE = GpuState(
    name="NVIDIA H200", driver_version="580.159.04", pstate="P0", clock_sm_mhz=1980, clock_sm_max_mhz=1980,
    clock_memory_mhz=3201, clock_memory_max_mhz=3201, power_w=690, power_limit_w=700, temperature_c=60,
    busy_percent=100, memory_mib=143771, memory_used_mib=9000, throttled=("power cap",), other_processes=0)


def case(batch: int) -> Case:
    return Case(model=Model(name="seed-35b-a3b", length=64), steps=10, batch=batch, mode="bf16")


def timed(seconds: float, batch: int) -> Timed:
    return Timed(num_generations=50, seconds_p10=0.9 * seconds, seconds_median=seconds,
                 seconds_p90=1.25 * seconds, tokens_per_s=64 * batch / seconds)


MEASURED = CaseResult(
    case=case(1), check=Check(latents_error=0.00512, same_tokens=0.984, problem=None),
    reference=timed(0.02, 1), fast=timed(0.002, 1), floor_s=0.0014, fraction_of_limit=0.7, ratio=10.0,
    work={"denoiser": PartWork(passes=10, num_bytes=4.02e9, flops=2.6e11, read_s=0.001, compute_s=0.0003),
          "vocabulary_head": PartWork(passes=1, num_bytes=1e9, flops=6.5e10, read_s=0.0004, compute_s=8e-5)},
    usd_per_million_tokens=Decimal("0.031250"), projected_rtx5090_tokens_per_s=13019.0,
    published_tokens_per_s=3040, parts=Parts(denoiser=0.0012, attention=0.0001, decoders=0.0004, head=0.0004),
    autoregressive=timed(0.064, 1), loaded=STATE,
    fast_path=("fast path: one CUDA graph a batch size of compiled bf16",),
    way="persistent kernels")
FAILED = CaseResult(case=case(64), left_out="latents are off",
                    check=Check(latents_error=0.02, same_tokens=0.5, problem="latents are off"))
NO_ROOM = CaseResult(case=case(256), left_out="does not fit into memory")


def report_of(*cases: CaseResult, price: str) -> Report:
    return Report(
        at=datetime(2026, 11, 29, tzinfo=UTC), source="random weights", seed=0, projects=True,
        device=Device(name="NVIDIA H200", is_rtx5090=False, memory_gib=140, before=STATE,
                      warnings=("asked for RTX 5090, this is NVIDIA H200",)),
        software=Software(python="3.12.3", torch="2.11.0", triton="3.6.0", cuda="13.0", sm="sm_90",
                          built_for=("sm_90",), git_sha="0" * 40),
        rates=Rates(read_bytes_per_s=4.4e12, flops_per_s={"bf16": 7.9e14, "fp32": 5.1e13},
                    read_how="a kernel that only reads 4 GiB"),
        price_usd_per_hour=Decimal(price), cases=cases,
        first_texts=(FirstText(name="seed-35b-a3b", is_fast=True, mode="bf16", parts_s={
            "python": 0.25, "imports": 3.0, "first text": 1.5, "next text": 0.002}),))


def test_the_screen_of_a_gpu() -> None:
    report = report_of(MEASURED, FAILED, NO_ROOM, price="3.60")
    assert max(map(len, screen(report))) <= 80
    assert "\n".join(screen(report)) == """\
NVIDIA H200; torch 2.11.0; random weights
fast path: one CUDA graph a batch size of compiled bf16
measured now: reads 4.400 TB/s (a kernel that only reads 4 GiB); products bf16
  790.00 TFLOP/s, fp32 51.00 TFLOP/s
driver 580.159.04, clocks at most 1,980 MHz, memory 3,201 MHz, 700 W, sm_90

seed-35b-a3b: median tokens/s, share of the limit, distance from reference
  steps tokens batch  mode reference      fast  ratio limit    error   same
     10     64     1  bf16     3,200    32,000  10.0x   70%  0.00512  98.4%
     10     64    64  bf16 latents are off
     10     64   256  bf16 does not fit into memory

  milliseconds of a generation; $ per million tokens at $3.60/h
  steps tokens batch  mode       p10    median       p90   of     path   $/M tok
     10     64     1  bf16     1.800     2.000     2.500   50  kernels  0.031250

  share of the time; the denoiser's attention and the head were timed alone
  steps tokens batch  mode  denoiser attention  decoders      head
     10     64     1  bf16     60.0%      5.0%     20.0%     20.0%

  floor of seed-35b-a3b, 10 steps, 64 tokens, batch 1, bf16: 1.400 ms
  part             passes        MB       GFLOP    read us  compute us
  denoiser             10   4,020.0      260.00    1,000.0       300.0
  vocabulary head       1   1,000.0       65.00      400.0        80.0

seed-35b-a3b: first text of a new process after 4.75 s, by the fast path
  seconds: python 0.25, imports 3.00, first text 1.50, next text 0.00

! seed-35b-a3b, 10 steps, 64 tokens, batch 1, bf16: clocks were held down by
  power cap
! seed-35b-a3b, 10 steps, 64 tokens, batch 1, bf16: 32.0 times an autoregressive
  transformer of as many parameters in bf16, 1,000 tokens/s
! seed-35b-a3b, 10 steps, 64 tokens, batch 1, bf16: the published code runs
  3,040 tokens/s on such a card, the reference 1.05 times that, the fast path
  10.5 times
! seed-35b-a3b, 10 steps, 64 tokens, batch 64, bf16: latents are off
! seed-35b-a3b, 10 steps, 64 tokens, batch 256, bf16: does not fit into memory
! asked for RTX 5090, this is NVIDIA H200
! this is not an RTX 5090 figure
! PROJECTION for an RTX 5090, by bandwidth alone (1.79 TB/s), not measured:
  seed-35b-a3b, 10 steps, 64 tokens, batch 1, bf16: ~13,019 tokens/s, had it
  such kernels"""


def test_the_longest_names_and_figures_have_eighty_columns() -> None:
    """As much as options allow, an hour a generation, and the export of a run with a long name."""
    long = Case(model=Model(name="run-of-" * 10, length=999_999), steps=10_000, batch=65_535, mode="bf16")
    slow = timed(3_600, 1)
    found = screen(report_of(MEASURED.model_copy(update={
        "case": long, "fast": slow.model_copy(update={"num_generations": 9_999}), "reference": slow,
        "usd_per_million_tokens": Decimal("277777777.777778")}), price="1E6"))
    assert [line for line in found if len(line) > 80] == []
    assert any("3,240,000 3,600,000 4,500,000 9999" in line for line in found)
    assert any(line.endswith(" 277777778") for line in found)
    assert any(line.endswith("; $ per million tokens at $1000000/h") for line in found)
