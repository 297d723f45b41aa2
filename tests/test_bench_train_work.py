"""The plain reference beside which the trainer's own step is timed."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from transformers.models.qwen3_5 import modeling_qwen3_5  # noqa: E402

from tests.tiny_profiles import tiny_profiles  # noqa: E402
from trainer import norms, token_loss  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import random_encoder  # noqa: E402
from trainer.bench_train_work import Encoding, plainly  # noqa: E402

CASE = TrainCase(profile="tiny-dense", scope="encoder", length=16, micro_batch=2, num_micro_batches=1,
                 weights="bf16")


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_profiles():
        yield


def test_kernels_for_linear_attention_and_blocks_of_our_own_are_gone_in_the_reference_and_back_afterwards(
        monkeypatch: pytest.MonkeyPatch) -> None:
    device, own = torch.device("cpu"), modeling_qwen3_5.torch_chunk_gated_delta_rule

    def kernel(*arguments, **named):
        mixed, state = own.__wrapped__(*arguments, **named)
        return 1.5 * mixed, state

    encoder = random_encoder(config_of(CASE).token_encoder, 0, device)
    work = Encoding(CASE, encoder, 0, device)
    wanted = work.outputs(1)
    kernel.__wrapped__ = own.__wrapped__
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", kernel)
    first = encoder.trunk.layers[0]
    first.forward = lambda hidden, **others: hidden
    fast = work.outputs(1)
    assert work.errors(fast, wanted)["hidden states"] > 0.01
    with plainly(encoder):
        assert work.errors(work.outputs(1), wanted) == {"hidden states": 0.0}
    assert work.errors(work.outputs(1), fast) == {"hidden states": 0.0}


def test_what_is_compiled_runs_as_it_is_written_in_the_reference() -> None:
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: 2 * x, backend=backend)
    with plainly(None):
        assert doubled(torch.ones(1)) == 2 and not calls
    assert doubled(torch.ones(1)) == 2 and calls


def test_norms_and_the_vocabulary_loss_are_torchs_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "suits", lambda x, gain: True)
    monkeypatch.setattr(token_loss, "has_triton", lambda device: True)

    def have_kernels() -> tuple[bool, bool]:
        return norms.suits(torch.ones(2, 3, 64), torch.ones(64)), token_loss.has_triton(torch.device("cuda"))

    with plainly(None):
        assert have_kernels() == (False, False)
    assert have_kernels() == (True, True)


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_is_compared_where_no_step_is_asked_for(num: int) -> None:
    device = torch.device("cpu")
    work = Encoding(CASE, random_encoder(config_of(CASE).token_encoder, 0, device), 0, device)
    assert len(work.outputs(num)) == num
