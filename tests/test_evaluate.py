"""Scores on held-out text do not depend on how many ranks share the work."""

import json
import math
import os
import socket
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import tiny_config, tiny_model  # noqa: E402
from torch import distributed as dist  # noqa: E402
from torch import multiprocessing  # noqa: E402

from trainer.evaluate import Evaluation, evaluate, reconstruct  # noqa: E402
from trainer.generate import decode  # noqa: E402

NUM_RANKS, BATCH_SIZE = 2, 2


class CountingEncoder:
    """Hidden states from a table; counts how often it is asked."""

    def __init__(self) -> None:
        self.num_calls, self.num_tokens = 0, 40
        self._table = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))

    def hidden_states(self, tokens_BL: "torch.Tensor") -> "torch.Tensor":
        self.num_calls += 1
        return self._table[tokens_BL]


def scores_of(num_rows: int) -> tuple[dict[str, float], int]:
    heldout_NL = np.random.default_rng(0).integers(0, 40, (num_rows, 8)).astype(np.uint32)
    encoder = CountingEncoder()
    scores = evaluate(tiny_model(tiny_config()).eval(), encoder, heldout_NL, seed=1, batch_size=BATCH_SIZE)
    return scores, encoder.num_calls


def evaluate_on_one_rank(rank: int, port: int, num_rows: int, results: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(scores_of(num_rows), results / f"{rank}.pt")
    dist.barrier()
    os._exit(0)


# 7 rows in batches of 2 are 4 for 2 ranks; 9 are 5, so one rank has a turn without rows.
@pytest.mark.parametrize("num_rows", [7, 9])
def test_two_ranks_score_what_one_does_and_ask_the_encoder_equally_often(
        num_rows: int, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    multiprocessing.spawn(evaluate_on_one_rank, (port, num_rows, tmp_path), nprocs=NUM_RANKS)

    expected, _ = scores_of(num_rows)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(NUM_RANKS)]
    for scores, _ in results:
        assert scores == pytest.approx(expected, rel=1e-5)
    assert {"reconstruction_accuracy", "diffusion_loss", "latent_variance", "latent_rank"} <= expected.keys()
    calls = [num_calls for _, num_calls in results]
    assert calls[0] == calls[1] == -(-num_rows // (BATCH_SIZE * NUM_RANKS))


def test_rows_of_the_embedding_that_are_no_tokens_do_not_spoil_the_scores() -> None:
    heldout_NL = np.full((3, 8), 5, dtype=np.uint32)
    encoder, model = CountingEncoder(), tiny_model(tiny_config()).eval()
    encoder.tokenizer = type("Words", (), {"decode": lambda self, ids: " ".join(map(str, ids.tolist()))})()
    encoder.num_tokens = 38
    with torch.no_grad():
        model.token_decoder.head.bias[5] += 1e3
        model.token_decoder.head.bias[38:] += 1e4
    scores = evaluate(model, encoder, heldout_NL, seed=1, batch_size=BATCH_SIZE)
    assert scores["reconstruction_accuracy"] == scores["reconstruction_accuracy_noisy"] == 1.0
    assert reconstruct(model, encoder, heldout_NL[:1]) == [("5 5 5 5 5 5 5 5",) * 2]


def test_a_row_of_the_embedding_that_is_no_token_is_never_generated() -> None:
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model.token_decoder.head.bias[38:] += 1e4
    z_BKD = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert (decode(model, z_BKD) >= 38).all()
    assert (decode(model, z_BKD, num_tokens=38) < 38).all()


def test_a_score_that_is_no_number_is_left_out_of_the_record() -> None:
    kept = Evaluation(step=1, scores={"a": 1.0, "b": math.nan, "c": math.inf}, reconstructions=[])
    assert json.loads(kept.model_dump_json())["scores"] == {"a": 1.0}
