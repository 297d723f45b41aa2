"""`python -m trainer.bench train` whole, on a CPU: what it writes, says and answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.tiny_profiles import tiny_profiles  # noqa: E402
from trainer import bench_train_command, bench_train_run  # noqa: E402
from trainer.bench_floor import Rates  # noqa: E402
from trainer.bench_result import read_report  # noqa: E402
from trainer.bench_train_options import cases_of, read_train_options  # noqa: E402
from trainer.bench_train_result import TrainReport  # noqa: E402
from trainer.bench_train_work import Training  # noqa: E402
from trainer.contract import ConfigError  # noqa: E402

SMALL = ("--preset", "tiny-dense", "--micro-batches", "1", "--steps", "2")


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    rates = Rates(read_bytes_per_s=1e10, flops_per_s={"fp32": 1e11}, read_how="not at all")
    with tiny_profiles(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_train_command, "measure_rates", lambda device, modes: rates)
        yield


def test_the_command_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kernels = tmp_path / "train.json", tmp_path / "kernels.json"
    assert bench_train_command.main([*SMALL, "--reference", "--check-steps", "2", "--out", str(out),
                                     "--profile", str(kernels), "--git-sha", "abc"]) == 0
    told, said = json.loads(out.read_text()), capsys.readouterr()
    assert (told["kind"], told["version"]) == ("ldlm training benchmark", 1)
    assert told["software"]["git_sha"] == "abc"
    case, = told["cases"]
    words = "tiny-dense joint step, 1 x 2 x 16 tokens, encoder bf16, ZeRO 1"
    assert case["case"] == {"profile": "tiny-dense", "scope": "joint", "length": 16, "micro_batch": 2,
                            "num_micro_batches": 1, "weights": "bf16", "products": "bf16",
                            "zero_stage": 1, "num_ranks": 1, "ranks_are_real": False,
                            "placement": "gpu", "compiles": False, "encoder_micro_batch": None}
    assert case["fast"]["num_steps"] == case["reference"]["num_steps"] == 2
    assert case["ratio"] == pytest.approx(case["reference"]["seconds_median"]
                                          / case["fast"]["seconds_median"])
    # The same operations on a CPU: the same losses, and gradients.
    gradients = [f"gradient of {part}" for part in ("latent encoder", "latent decoder", "token decoder",
                                                    "denoiser")]
    assert case["check"] == {"num_steps": 2, "problem": None,
                             "errors": dict.fromkeys([*case["losses"], *gradients], 0.0)}
    assert list(json.loads(kernels.read_text())["cases"]) == [words]
    assert f"1/1 {words}: " in said.err and f"\n{words}\n" in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_losses_that_are_not_the_references_end_with_1_and_are_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Off(Training):
        count = 0

        def outputs(self, num: int) -> dict[str, torch.Tensor]:
            Off.count += 1
            return {name: losses_N * (1.01 if Off.count == 1 and name == "token" else 1)
                    for name, losses_N in super().outputs(num).items()}

    monkeypatch.setattr(bench_train_run, "Training", Off)
    assert bench_train_command.main([*SMALL, "--reference", "--out", str(tmp_path / "a.json")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "losses are off by more than 0.1% of the reference's: token 1.00%" in said
    result, = read_report(tmp_path / "a.json", TrainReport).cases
    assert result.check is not None and result.check.errors["token"] == pytest.approx(0.01)


def test_a_wrong_way_back_shows_in_the_gradients_where_losses_say_nothing(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Doubled(Training):
        count = 0

        def __init__(self, *told):
            super().__init__(*told)
            Doubled.count += 1
            if Doubled.count == 1:
                for weight in self._job.model.denoiser.parameters():
                    weight.register_hook(lambda gradient: 2 * gradient)

    monkeypatch.setattr(bench_train_run, "Training", Doubled)
    assert bench_train_command.main([*SMALL, "--reference", "--check-steps", "1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "token 0.000%, diffusion 0.000%, gradient of latent encoder 0.000%" in said
    assert "gradient of denoiser 100.000% at most in 1 steps" in said


def test_products_in_fp8_of_other_weights_are_refused_with_what_to_type(
        capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench_train_command.main([*SMALL, "--encoder-products", "fp8"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: --encoder-products fp8 wants --encoder-weights fp8\n")


def test_an_encoder_reads_several_micro_batches_at_once_beside_one_that_reads_each(
        capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["--preset", "tiny-mixture", "--micro-batches", "4", "--steps", "1"]
    assert bench_train_command.main([*typed, "--encoder-micro-batch", "2", "--encoder-micro-batch", "8"]) == 0
    said = capsys.readouterr()
    assert "\ntiny-mixture joint step, 4 x 2 x 16 tokens, encoder bf16, ZeRO 1\n" in said.out
    assert "\ntiny-mixture joint step, 4 x 2 x 16 tokens, encoder bf16, 8 at a time, ZeRO 1\n" in said.out
    assert said.err.count("random weights after") == 1
    assert bench_train_command.main([*typed, "--encoder-micro-batch", "16"]) == 3
    assert "give a multiple of 2, and --micro-batches 8 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_train_command.main([*typed, "--encoder-only", "--encoder-micro-batch", "8"])
    assert capsys.readouterr().err.endswith("is of the joint step: give --micro-batch\n")


def test_what_was_timed_is_kept_when_its_reference_is_interrupted(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(encoder: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_train_run, "plainly", interrupted)
    out = tmp_path / "a.json"
    assert bench_train_command.main([*SMALL, "--reference", "--out", str(out)]) == 130
    assert capsys.readouterr().err.endswith(f"interrupted; cases that were done are in {out}\n")
    result, = read_report(out, TrainReport).cases
    assert result.fast is not None and result.reference is None


def test_a_regression_ends_with_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = tmp_path / "first.json"
    assert bench_train_command.main([*SMALL, "--trainables-only", "--out", str(first)]) == 0
    told = json.loads(first.read_text())
    for name in ("seconds_p10", "seconds_median", "seconds_p90"):
        told["cases"][0]["fast"][name] /= 1000
    first.write_text(json.dumps(told))
    capsys.readouterr()
    assert bench_train_command.main([*SMALL, "--trainables-only", "--against", str(first)]) == 1
    assert "SLOWER: tiny-dense trainables, 1 x 2 x 16 tokens, ZeRO 1: 0.00 times" in capsys.readouterr().out
    told["device"]["name"] = "NVIDIA H200"
    first.write_text(json.dumps(told))
    assert bench_train_command.main([*SMALL, "--trainables-only", "--against", str(first)]) == 1
    assert "cannot be compared with the earlier result: measured on NVIDIA H200" in capsys.readouterr().out


def test_a_result_of_generation_is_none_of_training(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = tmp_path / "generation.json"
    earlier.write_text('{"kind": "ldlm generation benchmark", "version": 1}')
    assert bench_train_command.main([*SMALL, "--against", str(earlier)]) == 3
    assert "is no result of this benchmark: kind: Input should be 'ldlm training" in capsys.readouterr().err


def test_the_first_of_eight_ranks_holds_its_share_and_waits_for_nobody(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    assert bench_train_command.main([*SMALL, "--ranks", "8", "--zero-stage", "2", "--trainables-only",
                                     "--compile", "--reference", "--out", str(out)]) == 0
    result, = read_report(out, TrainReport).cases
    assert str(result.case) == "tiny-dense trainables, 1 x 2 x 16 tokens, ZeRO 2, rank 0 of 8, compiled"
    assert result.fast is not None and result.parts_s is not None and not result.losses


def test_what_does_not_fit_is_said_and_the_rest_goes_on(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Tight(Training):
        def __init__(self, case, *rest):
            if case.micro_batch == 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            super().__init__(case, *rest)

    monkeypatch.setattr(bench_train_run, "Training", Tight)
    assert bench_train_command.main([*SMALL, "--micro-batch", "4", "--micro-batch", "2"]) == 1
    said = capsys.readouterr()
    words = " ".join(said.out.split())
    assert "1 x 4 x 16 tokens, encoder bf16, ZeRO 1: does not fit into memory" in words
    assert "2/2 tiny-dense joint step, 1 x 2 x 16 tokens" in said.err


def test_a_step_has_as_many_micro_batches_as_the_profile_has_at_most_eight() -> None:
    options = read_train_options(["--preset", "qwen3.6-27b", "--preset", "tiny-dense", "--micro-batch", "2",
                                  "--micro-batch", "256", "--encoder-only"])
    assert [str(case) for case in cases_of(options)] == [
        "qwen3.6-27b encoder, 8 x 2 x 1024 tokens, encoder bf16",
        "qwen3.6-27b encoder, 2 x 256 x 1024 tokens, encoder bf16",
        "tiny-dense encoder, 4 x 2 x 16 tokens, encoder bf16",
        "tiny-dense encoder, 1 x 256 x 16 tokens, encoder bf16"]


def test_the_help_has_eighty_columns(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        read_train_options(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_rank_that_cannot_begin_says_why_since_the_first_one_cannot(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def none_left(gpus_per_rank: int) -> list[torch.device]:
        raise ConfigError("the node has 1 GPU", place="rank 1", fix="start fewer ranks")

    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                        "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bench_train_command, "own_devices", none_left)
    assert bench_train_command.main(SMALL) == 3
    assert "error: rank 1: rank 1: the node has 1 GPU\n" in capsys.readouterr().err

    def interrupted(gpus_per_rank: int) -> list[torch.device]:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_train_command, "own_devices", interrupted)
    assert (bench_train_command.main(SMALL), capsys.readouterr().err) == (130, "")
