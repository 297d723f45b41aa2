"""A run goes on with another number of ranks, or another stage of ZeRO, from the same checkpoints."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.trainer_runs import TrainerRun, tiny_config, write_text  # noqa: E402
from trainer.contract import ExitCode  # noqa: E402

STEPS = 50
# Ranks and stage up to each step: fewer, more, then the other stage, and back.
LEGS = {10: (8, 1), 20: (4, 1), 30: (1, 1), 40: (2, 1), 45: (2, 2), STEPS: (2, 1)}
# Of float32 sums in another order; the specification's bound.
TOLERANCE = 1e-5


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "prose.txt")


def config_of(text: Path, **changes: object):
    return tiny_config(text, **{"steps": STEPS, "evaluate_every_steps": STEPS, "global_batch_size": 8,
                                # Sums of another number of ranks differ in their last bit, and so large a
                                # learning rate as that of other tests makes more of it with every step.
                                "optimizer": {"learning_rate": 1e-4, "warmup_steps": 2, "ema_decay": 0.9},
                                "checkpoint": {"every_steps": 10}} | changes)


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


def test_losses_stay_those_of_one_rank_that_nobody_interrupts_on_any_number_of_ranks_in_any_stage(
        text: Path, tmp_path: Path) -> None:
    straight = TrainerRun(config_of(text), tmp_path / "straight" / "store", num_ranks=1)
    train_to(straight, STEPS)
    run, before = TrainerRun(config_of(text), tmp_path / "store"), 0
    for step, (run.num_ranks, stage) in LEGS.items():
        run.config = config_of(text, zero_stage=stage)
        output = train_to(run, step)
        assert (f"resumed from step {before} of {step}" in output) == (before > 0)
        before = step
    expected, found = losses(straight), losses(run)
    assert found.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, row in expected.items():
        assert found[step] == pytest.approx(row, rel=TOLERANCE, abs=TOLERANCE), step
