"""The table of the training benchmark, word for word."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("torch")

from trainer.bench_device import Device, Software  # noqa: E402
from trainer.bench_floor import PartWork, Rates  # noqa: E402
from trainer.bench_train_cases import TrainCase  # noqa: E402
from trainer.bench_train_profile import Ran, summed  # noqa: E402
from trainer.bench_train_result import Check, StepTimes, TrainCaseResult, TrainReport  # noqa: E402
from trainer.bench_train_table import screen  # noqa: E402

CASE = TrainCase(profile="qwen3.6-35b-a3b", scope="joint", length=1024, micro_batch=32, num_micro_batches=2,
                 weights="fp8", zero_stage=2)
RESULT = TrainCaseResult(
    case=CASE, fast=StepTimes(num_steps=6, seconds_p10=1.55, seconds_median=1.6, seconds_p90=1.7,
                              tokens_per_s=40_960),
    reference=StepTimes(num_steps=3, seconds_p10=3.9, seconds_median=4.0, seconds_p90=4.1,
                        tokens_per_s=16_384), ratio=2.5,
    check=Check(num_steps=50, errors={"total": 0.012, "hidden": 0.001, "token": None, "diffusion": 0.15},
                problem="losses are off by more than 10.0% of the reference's: token nan%, diffusion 15.00%"),
    work={"encoder": PartWork(passes=2, num_bytes=6.2e10, flops=3.2e14, read_s=0.0155, compute_s=0.4),
          "optimizer": PartWork(passes=1, num_bytes=2e10, flops=0, read_s=0.005, compute_s=0)},
    flops=4.6e14, floor_s=0.405, share_of_matrix_rate=0.359, as_trained_tokens_per_s=41_200,
    parts_s={"encoder": 0.8, "backward": 0.6, "rest": 0.2}, data_wait_share=0.021, peak_memory_gib=100,
    predicted_memory_gib=115, losses={"total": 14.2}, linear_attention="fla")
REPORT = TrainReport(
    at=datetime(2026, 11, 29, tzinfo=UTC), seed=0,
    device=Device(name="NVIDIA H200", is_rtx5090=False, memory_gib=140, before=None, warnings=("warm",)),
    software=Software(python="3.12", torch="2.11", triton=None, cuda="13.0", sm="sm_90", built_for=("sm_90",),
                      git_sha=None),
    libraries={"transformers": "5.17.0", "causal-conv1d": None},
    rates=Rates(read_bytes_per_s=4.4e12, flops_per_s={"bf16": 8e14, "fp8": 1.5e15}, read_how="a kernel"),
    cases=(RESULT, TrainCaseResult(case=CASE.model_copy(update={"micro_batch": 64}),
                                   left_out="does not fit into memory")))
KERNELS = {CASE: summed([Ran("nvjet_tst", 0, 0.9), Ran("chunk_fwd_o", 1.0, 1.5)])}


def test_the_whole_answer():
    assert "\n".join(screen(REPORT, KERNELS)) == """\
NVIDIA H200; torch 2.11, transformers 5.17.0; random weights
measured now: reads 4.400 TB/s (a kernel); products bf16 800.00 TFLOP/s, fp8
  1,500.00 TFLOP/s

qwen3.6-35b-a3b joint step, 2 x 32 x 1024 tokens, encoder fp8, ZeRO 2
  tokens/s    40,960
  useful      287.5 TFLOP/s, 35.9% of the matrix rate; 25.3% of the limit
  step        1,600.0 ms (1,550.0 to 1,700.0, 6 steps)
  reference   16,384 tokens/s plainly: this is 2.50 times as fast
  off by      total 1.200%, hidden 0.100%, token no number, diffusion 15.000% at
              most in 50 steps
  as trained  ~41,200 tokens/s (projection by parts)
  memory      100.00 GiB, predicted 115.00 (+15.0%)
  data wait   2.10%
  losses      total 14.2000
  linear att. fla

  floor              passes        GB     TFLOP   read ms  compute ms
  encoder                 2     62.00   320.000     15.50      400.00
  optimizer               1     20.00     0.000      5.00        0.00
  in all                                                      405.00 ms

  measured                  ms   share
  encoder               800.00   50.0%
  backward              600.00   37.5%
  rest                  200.00   12.5%

  kernels                       ms   share
  matrix products           900.00   60.0%
  linear attention          500.00   33.3%
  idle gaps                 100.00    6.7%

   calls        ms  kernel
       1    900.00  nvjet_tst
       1    500.00  chunk_fwd_o

qwen3.6-35b-a3b joint step, 2 x 64 x 1024 tokens, encoder fp8, ZeRO 2
  does not fit into memory

! qwen3.6-35b-a3b joint step, 2 x 32 x 1024 tokens, encoder fp8, ZeRO 2: losses
  are off by more than 10.0% of the reference's: token nan%, diffusion 15.00%
! qwen3.6-35b-a3b joint step, 2 x 32 x 1024 tokens, encoder fp8, ZeRO 2: text
  was waited for 2.1% of the time
! qwen3.6-35b-a3b joint step, 2 x 32 x 1024 tokens, encoder fp8, ZeRO 2: a plan
  would be +15% off in its memory
! qwen3.6-35b-a3b joint step, 2 x 64 x 1024 tokens, encoder fp8, ZeRO 2: does
  not fit into memory
! a random router uses all experts about alike; a trained one does not, and
  experts of unequal size take longer
! warm"""
    assert not REPORT.is_good


def test_speeds_of_real_ranks_are_of_each_and_a_rate_in_fp8_is_beside_that_in_bf16():
    case = CASE.model_copy(update={"products": "fp8", "num_ranks": 2, "ranks_are_real": True})
    result = RESULT.model_copy(update={"case": case})
    said = "\n".join(screen(REPORT.model_copy(update={"cases": (result,)}), {}))
    assert "tokens/s    40,960 of each rank, 81,920 of all\n" in said
    assert "as trained  ~41,200 tokens/s of each rank (projection by parts)\n" in said
    assert "useful      287.5 TFLOP/s, 35.9% of the matrix rate in bf16; 25.3% of the\n" in said
