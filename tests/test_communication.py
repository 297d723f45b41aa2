"""Real ranks: losses are those of one rank, and what their collectives send is what a plan says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.communicating_ranks import CASES, NUM_RANKS, config_of  # noqa: E402
from tests.random_encoders import save_model  # noqa: E402
from tests.trainer_runs import ROOT  # noqa: E402
from trainer.communication import communication_bytes  # noqa: E402
from trainer.encoder_shape import encoder_shape  # noqa: E402

# What a rank sends of the bytes that its collective is given, with n ranks: the least that makes the sum, or
# the whole, known to all (Chan et al., Collective communication, 2007, table 1).
SENT = {"c10d::allreduce_": lambda n: 2 * (n - 1) / n, "c10d::_allgather_base_": lambda n: (n - 1) / n}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every number of ranks has seen of each case, in N.json."""
    made = tmp_path_factory.mktemp("ranks")
    save_model(made / "encoder", "gpt2")
    subprocess.run([sys.executable, "-m", "tests.communicating_ranks", str(made)], cwd=ROOT, check=True)
    return made


def seen_by(folder: Path, num_ranks: int, case: str) -> dict[str, Any]:
    return json.loads((folder / f"{num_ranks}.json").read_text())[case]


@pytest.mark.parametrize("case", CASES)
def test_two_and_four_ranks_lose_what_one_does(folder: Path, case: str) -> None:
    alike = "stage 1, bf16" if "bf16" in case else "stage 1"
    expected = seen_by(folder, 1, alike)["losses"]
    assert len({tuple(row) for row in expected}) == len(expected)  # it learns: steps have been taken
    for num_ranks in NUM_RANKS:
        for found, row in zip(seen_by(folder, num_ranks, case)["losses"], expected, strict=True):
            # Of float32 sums in another order; in bf16 they may tip a weight over, which is one of 8 bits.
            assert found == pytest.approx(row, rel=1e-3 if "bf16" in case else 1e-5), num_ranks


@pytest.mark.parametrize("num_ranks", NUM_RANKS)
@pytest.mark.parametrize("case", CASES)
def test_a_rank_sends_what_the_plan_says(folder: Path, case: str, num_ranks: int) -> None:
    config = config_of(folder, case)
    plan = communication_bytes(config, encoder_shape(config.token_encoder.name), num_ranks, num_ranks)
    # On a CPU frozen blocks are float32, on a GPU bf16.
    planned = plan.gradients + plan.weights + 2 * plan.encoder
    sent = [size * SENT[name](num_ranks) for name, size in seen_by(folder, num_ranks, case)["collectives"]]
    assert sum(sent) == pytest.approx(planned, rel=0.01)
    assert (planned > 0) is (num_ranks > 1)


def test_what_the_plan_leaves_out_are_the_norms_of_parts_and_the_sums_over_bins_of_time(folder: Path) -> None:
    small = [tuple(seen) for seen in seen_by(folder, 2, "stage 1")["collectives"] if seen[1] < 1000]
    # Four parts in float32; losses and counts of ten bins in float64.
    assert small == [("c10d::allreduce_", 4 * 4), ("c10d::allreduce_", 2 * 10 * 8)]
