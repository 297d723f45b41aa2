"""The whole benchmark command on a GPU: `pytest -m gpu -s tests/test_gpu_bench.py`; it prints its tables."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer import bench_command  # noqa: E402
from trainer.bench_result import read_report  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_everything_that_the_benchmark_measures_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert bench_command.main([
        "--preset", "qwen3.5-0.8b", "--steps", "4", "--batch", "1", "--batch", "16", "--generations", "10",
        "--no-compile", "--parts", "--autoregressive", "--first-text", "--project", "rtx5090", "--price", "1",
        "--out", str(out)]) == 0

    report = read_report(out)

    assert report.device.before is not None and report.software.sm in report.software.built_for
    assert report.rates.read_bytes_per_s > 1e11 and report.rates.flops_per_s["bf16"] > 1e13
    assert report.rates.read_how == "a kernel that only reads 4 GiB"
    for result in report.cases:
        assert result.fast is not None and result.reference is not None and result.check is not None
        assert result.check.latents_error < 0.01 and result.fraction_of_limit is not None
        assert 0 < result.fraction_of_limit < 1
        assert result.loaded is not None and (result.loaded.clock_sm_mhz or 0) > 0
        assert result.parts is not None and 0 < result.parts.head < result.fast.seconds_median
        assert result.autoregressive is not None and result.autoregressive.tokens_per_s > 0
    assert report.device.is_rtx5090 is ("RTX 5090" in report.device.name)
    assert [found.is_fast for found in report.first_texts] == [True, True, False]
    assert [found.was_compiled for found in report.first_texts] == [False, True, True]
