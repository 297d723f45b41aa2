"""The benchmark takes scores from training and everything else from the checkpoint."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load  # noqa: E402

from tests.tiny_ldlm import VOCABULARY  # noqa: E402
from tests.tiny_ldlm import tiny_config as small_config  # noqa: E402
from tests.tiny_ldlm import tiny_model as small_model  # noqa: E402
from tests.trainer_runs import TrainerRun, tiny_config, write_text  # noqa: E402
from trainer import bench_trained  # noqa: E402
from trainer.averaged_weights import load_averaged_weights  # noqa: E402
from trainer.bench_device import _NUMBERS, GpuState  # noqa: E402
from trainer.bench_paths import Eager, FastPaths  # noqa: E402
from trainer.bench_result import CaseResult  # noqa: E402
from trainer.bench_run import run_cases  # noqa: E402
from trainer.bench_trained import Circumstances, measure  # noqa: E402
from trainer.contract import ExitCode, Name, Outcome  # noqa: E402
from trainer.generate import Generator, Prompt, load_generator  # noqa: E402
from trainer.run_folder import RunOutcome  # noqa: E402


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    run = TrainerRun(tiny_config(text, steps=4, precision="bf16"), tmp_path_factory.mktemp("run") / "store")
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return run


@pytest.mark.parametrize("sampling", [{}, {"solver": "ancestral", "grid": "warped"}],
                         ids=["ddim, uniform", "ancestral, warped"])
def test_it_samples_as_the_recipe_says_and_repeats_the_scores_of_training(
        sampling: dict[str, str], trained: TrainerRun, text: Path) -> None:
    few = {"steps": 2, "num_samples": 2, "bench_generations": 2}
    run = TrainerRun(tiny_config(text, steps=4, precision="bf16", sampling=few | sampling), trained.store)

    code, output = run.finish("bench", LDLM_PRICE_USD_PER_HOUR="0.36")

    assert code == 0, output
    result = run.folder.read_json("bench/result.json")
    evaluation = run.folder.read_json("evaluation/result.json")
    assert result["step"] == 4 and len(result["samples"]) == 2
    assert result["scores"] == evaluation["scores"]
    assert result["reconstructions"] == evaluation["reconstructions"]
    speed, whole = result["throughput"], run.folder.read_json("bench/report.json")
    assert (speed["tokens"], speed["prompt_tokens"], speed["prompted_tokens_per_s"]) == (16, 0, None)
    case, = whole["cases"]
    assert whole["source"] == "run, step 4" and case["case"]["model"] == {"name": "run", "length": 16}
    assert (case["case"]["steps"], case["fast"]["num_generations"]) == (2, 2)
    assert speed["tokens_per_s"] == case["fast"]["tokens_per_s"] > 0
    assert speed["reference_tokens_per_s"] == case["reference"]["tokens_per_s"] > 0
    assert speed["same_tokens"] >= 0.99 and speed["latents_error"] < 1e-3
    # $0.36 an hour is $0.0001 a second
    assert float(speed["usd_per_million_tokens"]) == pytest.approx(100 / speed["tokens_per_s"], abs=1e-6)


def test_a_model_that_reads_prompts_is_timed_with_the_longest_one_too() -> None:
    config = small_config({"prompt": True}, sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)

    _, found = measure(generator, "run", 4, Circumstances(limit=lambda: None))

    assert found.prompt_tokens == 4 and (found.prompted_tokens_per_s or 0) > 0  # half of 8 tokens


def test_a_device_of_several_formats_is_timed_in_each_and_the_usual_one_is_the_headline(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_trained, "_modes", lambda device: ("fp32", "bf16"))
    config = small_config(sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)

    report, found = measure(generator, "run", 4, Circumstances(limit=lambda: None))

    assert [case.case.mode for case in report.cases] == ["fp32", "bf16"]
    assert all(case.fast and case.check and case.reference for case in report.cases)
    assert set(report.rates.flops_per_s) == {"fp32", "bf16"}
    assert found.dtype == "fp32" and report.cases[0].fast
    assert found.tokens_per_s == report.cases[0].fast.tokens_per_s


def test_a_fast_path_that_computes_something_else_leaves_the_reference_s_speed(
        monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(Eager):
        def tokens(self, num: int, seed: int, prompt: Prompt | None = None) -> torch.Tensor:
            return super().tokens(num, seed, prompt) + 1

    monkeypatch.setattr(FastPaths, "at", lambda self, generator, mode: Off(generator))
    config = small_config(sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)

    report, found = measure(generator, "run", 4, Circumstances(lambda: None, Decimal("0.36")))

    assert report.cases[0].fast is None and found.dtype == "fp32" and found.tokens_per_s > 0
    assert (found.same_tokens, found.latents_error, found.usd_per_million_tokens) == (0, 0, None)
    assert found.warnings == (
        "run, 3 steps, 8 tokens, batch 1, fp32: 0.0% of tokens are the same, fewer than 99%",)


def test_what_breaks_behind_the_headline_does_not_take_it_along(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FastPaths.at

    def at(self: FastPaths, own: Generator, mode: str) -> object:
        if mode == "bf16":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED\nand more")
        return plain(self, own, mode)

    monkeypatch.setattr(FastPaths, "at", at)
    monkeypatch.setattr(bench_trained, "_modes", lambda device: ("fp32", "bf16"))
    config = small_config({"prompt": True}, sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)

    report, found = measure(generator, "run", 4, Circumstances(limit=lambda: None))

    case, = report.cases
    assert case.fast and found.tokens_per_s == case.fast.tokens_per_s and found.prompted_tokens_per_s is None
    assert found.warnings == report.problems == (
        "broken off behind run, 3 steps, 8 tokens, batch 1, fp32: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED",)


def test_a_headline_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(self: FastPaths, own: Generator, mode: str) -> object:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(FastPaths, "at", at)
    config = small_config(sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(generator, "run", 4, Circumstances(limit=lambda: None))


def test_a_headline_of_a_card_whose_clocks_were_held_down_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def hot(*arguments: object) -> Iterator[CaseResult]:
        state = GpuState(name="NVIDIA GeForce RTX 5090", driver_version="580", pstate="P0", throttled=(
            "power cap", "hardware thermal slowdown"), other_processes=0, **dict.fromkeys(_NUMBERS))
        yield from (found.model_copy(update={"loaded": state}) for found in run_cases(*arguments))

    monkeypatch.setattr(bench_trained, "run_cases", hot)
    config = small_config(sampling={"steps": 3, "bench_generations": 2})
    generator = Generator(config, small_model(config).eval(), None, VOCABULARY, end_of_text_id=3)

    _, found = measure(generator, "run", 4, Circumstances(limit=lambda: None))

    assert found.warnings == ("run, 3 steps, 8 tokens, batch 1, fp32: clocks were held down by power cap, "
                              "hardware thermal slowdown",)


def test_a_warped_grid_follows_the_density_that_training_ended_with(trained: TrainerRun, text: Path) -> None:
    manifest, weights = load_averaged_weights(trained.folder, say=lambda _: None)
    name = f"checkpoints/step-00000004/a{manifest.attempt}-rest.safetensors"
    saved = load(trained.folder.read_bytes(name))["timesteps/probabilities"]

    warped = tiny_config(text, sampling={"grid": "warped"})
    generator = load_generator(warped, manifest, weights, torch.device("cpu"))

    assert len(saved.unique()) > 1
    assert generator.warp is not None and torch.equal(generator.warp.probabilities, saved)
    assert generator.num_tokens == 30522  # of MiniLM's tokenizer, which has no padded rows


def test_it_ends_itself_when_its_own_time_is_over_with_what_it_has(trained: TrainerRun, text: Path) -> None:
    without_end = {"steps": 2, "num_samples": 1, "bench_generations": 10**9}
    run = TrainerRun(tiny_config(text, steps=4, precision="bf16", sampling=without_end), trained.store)

    code, output = run.finish("bench", LDLM_BENCH_HOURS="0.008", LDLM_MAX_COST_USD="1000")

    assert code == 0, output
    assert "the benchmark was cut short: its own time is over (limits.bench_hours)" in output
    assert run.folder.read_json("bench/result.json")["throughput"]["num_generations"] > 0


def test_it_does_not_begin_when_its_time_is_over(trained: TrainerRun, text: Path) -> None:
    run = TrainerRun(trained.config, trained.store)

    code, output = run.finish("bench", LDLM_BENCH_HOURS="0.0000001")

    assert code == ExitCode.BROKEN, output
    assert "the benchmark has had its time" in output and "ldlm bench RUN" in output
    assert "Traceback" not in output


def test_a_run_that_has_not_ended_has_no_benchmark_yet(trained: TrainerRun, tmp_path: Path) -> None:
    run = TrainerRun(trained.config, tmp_path / "store")
    for found in trained.folder.store.objects("run"):
        if "/checkpoints/" in found.key:
            run.folder.store.put(found.key, trained.folder.store.get(found.key))

    code, output = run.finish("bench")

    assert code == ExitCode.BROKEN, output
    assert "the training of this run has not ended: it has left no scores" in output
    assert "Traceback" not in output and json.loads(run.folder.read_bytes("attempts/1/end.json"))


def test_what_a_limit_kept_from_scoring_is_benchmarked_without_scores(trained: TrainerRun,
                                                                      tmp_path: Path) -> None:
    """Its last machine came up after the deadline; what an earlier end has scored is of fewer steps."""
    run = TrainerRun(trained.config, tmp_path / "store")
    for found in trained.folder.store.objects("run"):
        if "/checkpoints/" in found.key:
            run.folder.store.put(found.key, trained.folder.store.get(found.key))
    run.folder.write(Name.OUTCOME, RunOutcome(outcome=Outcome.LIMIT, at=datetime.now(UTC), step=4, reason=""))
    earlier = trained.folder.read_json(Name.EVALUATION) | {"step": 2}
    run.folder.write_bytes(Name.EVALUATION, json.dumps(earlier).encode())

    code, output = run.finish("bench")

    assert code == 0, output
    result = run.folder.read_json("bench/result.json")
    assert (result["step"], result["scores"], result["reconstructions"]) == (4, {}, [])
    assert result["throughput"]["tokens_per_s"] > 0 and len(result["samples"]) == 1
    assert "training ended before it could score step 4" in output
