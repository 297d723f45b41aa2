"""The training benchmark on a GPU: `pytest -m gpu -s tests/test_gpu_bench_train.py`; it prints its table."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from trainer import bench_train_command  # noqa: E402
from trainer.bench_result import read_report  # noqa: E402
from trainer.bench_train_result import TrainReport  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_everything_that_the_benchmark_measures_is_measured(tmp_path: Path) -> None:
    out, kernels = tmp_path / "train.json", tmp_path / "kernels.json"
    assert bench_train_command.main([
        "--preset", "qwen3.5-0.8b", "--micro-batches", "2", "--steps", "5", "--reference",
        "--check-steps", "10", "--out", str(out), "--profile", str(kernels)]) == 0

    report = read_report(out, TrainReport)

    result, = report.cases
    assert result.fast is not None and result.reference is not None and result.check is not None
    assert result.linear_attention == "fla" and 0 < result.floor_s < result.fast.seconds_median
    assert result.loaded is not None and (result.loaded.clock_sm_mhz or 0) > 0
    assert result.predicted_memory_gib == pytest.approx(result.peak_memory_gib, rel=0.1)
    assert sum(result.parts_s.values()) == pytest.approx(result.fast.seconds_median, rel=0.3)
    found, = json.loads(kernels.read_text())["cases"].values()
    assert found["wall_s"] == pytest.approx(result.fast.seconds_median, rel=0.5)
    assert found["groups"]["linear attention"] > 0 and found["groups"]["matrix products"] > 0
