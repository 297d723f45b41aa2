"""What the frozen encoder reads at once changes no step."""

import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.tiny_profiles import tiny_profiles  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import random_encoder  # noqa: E402
from trainer.bench_train_job import as_first_rank, build_step, end_step, take_step  # noqa: E402
from trainer.step_inputs import states_in_turn  # noqa: E402

CPU = torch.device("cpu")


@dataclass
class Reader:
    """Its own states are the tokens themselves, in float64. Notes what it read, and which states are held."""

    read: list[list[int]] = field(default_factory=list)
    said: list[weakref.ref] = field(default_factory=list)

    def hidden_states(self, tokens_BL, dtype):
        assert dtype is None
        self.read.append(tokens_BL[:, 0].tolist())
        states = tokens_BL[..., None].numpy().astype(np.float64)
        self.said.append(weakref.ref(states))
        return torch.from_numpy(states)


def test_micro_batches_are_read_together_just_before_the_first_of_them_and_let_go_with_the_last() -> None:
    job = SimpleNamespace(config=SimpleNamespace(token_encoder=SimpleNamespace(micro_batch_size=6)),
                          encoder=Reader())
    batch = torch.arange(10).reshape(5, 2, 1)
    states, reader = states_in_turn(job, batch), job.encoder
    assert reader.read == []
    for micro, tokens_BL in enumerate(batch):
        found = next(states)
        assert found.dtype == torch.float32 and torch.equal(found, tokens_BL[..., None].float())
        assert reader.read == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]][:1 + micro // 3]
        assert [said() is None for said in reader.said] == [[False], [False], [True], [True, False],
                                                            [True, True]][micro]
    assert next(states, None) is None


def steps(encoder_micro_batch: int | None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses of three steps of five micro-batches of two, and the weights after them."""
    case = TrainCase(profile="tiny-mixture", scope="joint", length=16, micro_batch=2, num_micro_batches=5,
                     weights="bf16", encoder_micro_batch=encoder_micro_batch)
    losses = []
    job = build_step(case, random_encoder(config_of(case).token_encoder, 0, CPU), 0, CPU)
    for step in range(3):
        take_step(job, step)
        losses.append(torch.stack(list(job.losses.values())))
    weights = [parameter.detach().clone() for parameter in job.model.parameters()]
    end_step(job)
    return torch.stack(losses), weights


@pytest.mark.parametrize("at_once", [6, 64])
def test_losses_and_weights_are_those_of_an_encoder_that_goes_one_by_one(at_once: int) -> None:
    with tiny_profiles(), as_first_rank(1):
        (losses, weights), (expected, wanted) = steps(at_once), steps(None)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=0)
    assert not torch.equal(losses[0], losses[1])
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in zip(weights, wanted, strict=True))
