"""A run goes on with another number of ranks, or another stage of ZeRO, from the same checkpoints."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402

STEPS = 50
# Of float32 sums in another order; the specification's bound.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "prose.txt")


def config_of(text: Path, **changes: object):
    return tiny_config(text, **{"steps": STEPS, "evaluate_every_steps": STEPS, "global_batch_size": 8,
                                # Sums of another number of ranks differ in their last bit, and so large a
                                # learning rate as that of other tests makes more of it with every step.
                                "optimizer": {"learning_rate": 1e-4, "warmup_steps": 2, "ema_decay": 0.9},
                                "checkpoint": {"every_steps": 10}} | changes)


@pytest.fixture(scope="module")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerRun:
    """Fifty steps on one rank that nobody interrupts."""
    run = TrainerRun(config_of(text), tmp_path_factory.mktemp("straight") / "store", num_ranks=1)
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return run


def losses(run: TrainerRun) -> dict[int, dict[str, float]]:
    """Every row of losses that the run has left, the newest attempt's where there are two."""
    rows = {}
    for attempt in range(1, len(run.folder.attempts()) + 1):
        rows |= run.losses(attempt)
    return {step: {name: float.fromhex(value) for name, value in row.items()} for step, row in rows.items()}


def train_to(run: TrainerRun, step: int) -> str:
    """One attempt, from the newest checkpoint to the one of a step. Returns what it printed."""
    run.config = run.config.model_copy(update={"steps": step})
    run.folder.store.delete(["run/outcome.json"])
    code, output = run.finish()
    assert code == ExitCode.FINISHED, output
    return output


@pytest.mark.parametrize("ranks", [(8, 4, 1, 2), (1, 4), (2, 1)])
def test_losses_stay_those_of_the_uninterrupted_run_on_any_number_of_ranks(
        ranks: tuple[int, ...], straight: TrainerRun, text: Path, tmp_path: Path) -> None:
    run = TrainerRun(config_of(text), tmp_path / "store")
    for index, run.num_ranks in enumerate(ranks):
        step = STEPS if index + 1 == len(ranks) else 10 * (index + 1)
        output = train_to(run, step)
        if index:
            assert f"resumed from step {10 * index} of {step}" in output
    expected, found = losses(straight), losses(run)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, row in expected.items():
        assert found[step] == pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE), step


@pytest.mark.parametrize("stages", [(1, 2), (2, 1)])
def test_stages_of_zero_share_checkpoints(stages: tuple[int, int], straight: TrainerRun, text: Path,
                                          tmp_path: Path) -> None:
    run = TrainerRun(config_of(text, zero_stage=stages[0]), tmp_path / "store")
    train_to(run, 20)
    run.config = config_of(text, zero_stage=stages[1])
    assert f"resumed from step 20 of {STEPS}" in train_to(run, STEPS)
    for step, row in losses(straight).items():
        assert losses(run)[step] == pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE), step
