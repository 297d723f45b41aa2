"""The training benchmark among ranks that torchrun starts: one answer, all of them in each step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from trainer.bench_train_options import read_train_options  # noqa: E402

ROOT = Path(__file__).parents[1]
ON_TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
          "-m", "trainer.bench", "train"]


def test_two_ranks_that_share_an_encoder_give_one_answer(tmp_path: Path) -> None:
    out, kernels = tmp_path / "a.json", tmp_path / "kernels.json"
    done = subprocess.run(
        [*ON_TWO, "--preset", "smoke", "--length", "16", "--micro-batch", "1", "--micro-batches", "2",
         "--encoder-placement", "sharded", "--steps", "2", "--zero-stage", "2", "--reference",
         "--check-steps", "1",
         "--out", str(out), "--profile", str(kernels)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    words = "smoke joint step, 2 x 1 x 16 tokens, encoder bf16, split, ZeRO 2, 2 ranks"
    case, = json.loads(out.read_text())["cases"]
    assert (case["case"]["num_ranks"], case["case"]["ranks_are_real"]) == (2, True)
    assert case["case"]["placement"] == "sharded"
    assert case["fast"]["num_steps"] == case["reference"]["num_steps"] == 2
    # Both from the same seeds, by the same operations: only the order in which two ranks are heard is open.
    assert case["check"]["num_steps"] == 1 and max(case["check"]["errors"].values()) < 1e-5
    assert done.stdout.count(f"\n{words}\n") == done.stderr.count(f"1/1 {words}: ") == 1
    each = case["fast"]["tokens_per_s"]
    assert f"tokens/s    {each:,.0f} of each rank, {2 * each:,.0f} of all" in done.stdout
    # Gradients and weights of two ranks have met.
    assert any("allreduce" in kernel["name"].replace("_", "")
               for kernel in json.loads(kernels.read_text())["cases"][words]["kernels"])


@pytest.mark.parametrize(("started", "arguments", "words"), [
    ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2"}, ["--ranks", "8"], "torchrun has started real ones"),
    ({"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, [],
     "ranks of several nodes are not timed"),
    ({}, ["--encoder-placement", "sharded"], "--encoder-placement sharded wants ranks"),
    # Of another program: nobody would answer.
    ({"WORLD_SIZE": "2"}, ["--encoder-placement", "sharded"], "--encoder-placement sharded wants ranks")])
def test_ranks_are_imagined_or_started_and_never_both(
        started: dict[str, str], arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        read_train_options(["--preset", "smoke", *arguments])
    assert words in " ".join(capsys.readouterr().err.split())
