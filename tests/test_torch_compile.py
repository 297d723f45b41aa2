"""Trained blocks as torch compiles them, traced and differentiated as on a GPU: how often, to what end."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tiny_ldlm import VOCABULARY, TableEncoder, tiny_config, tiny_model  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from tests.tiny_profiles import tiny_profiles  # noqa: E402
from trainer import job  # noqa: E402
from trainer.bench_models import shape_of  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import GivenStates  # noqa: E402
from trainer.bench_train_job import as_first_rank, build_step, end_step, take_step  # noqa: E402
from trainer.model import LatentDiffusionLM, draw_noise  # noqa: E402
from trainer.torch_compile import compiled  # noqa: E402

CPU = torch.device("cpu")
TWO_LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "denoiser_layers": 2, "token_decoder_layers": 2}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Everything before kernels are written, which takes a C++ compiler minutes."""
    counter, compiles = CompileCounterWithBackend("aot_eager"), torch.compile

    def without_kernels(function: Any, options: dict[str, bool], **settings: Any) -> Any:
        assert options == {"deterministic": True}
        return compiles(function, backend=counter, **settings)

    monkeypatch.setattr(torch, "compile", without_kernels)
    compiled.cache_clear()
    torch._dynamo.reset()
    yield counter
    compiled.cache_clear()


def numbers(model: LatentDiffusionLM, step: int) -> list[float]:
    """Loss and gradients of a step; how many samples are self-conditioned is left to chance."""
    tokens_BL = torch.arange(64).reshape(8, 8) % VOCABULARY
    noise = draw_noise(model.config, 0, step, range(8), "cpu")
    model.zero_grad()
    found = model(tokens_BL, TableEncoder().hidden_states(tokens_BL), noise, 1.0, noise.uniform_B)
    if torch.is_grad_enabled():
        found.total.backward()
    return [found.total.item(), *(float(weight.grad.norm()) for weight in model.parameters()
                                  if weight.grad is not None)]


@pytest.mark.parametrize("recompute", [False, True])
def test_each_kind_of_block_is_compiled_once_and_computes_the_same(compiler, recompute: bool) -> None:
    model = tiny_model(tiny_config(TWO_LAYERS, micro_batch_size=8, activation_checkpointing=recompute))
    wanted = [numbers(model, step) for step in range(4)]
    chosen = {int(draw_noise(model.config, 0, step, range(8), "cpu").self_conditioned_B.sum())
              for step in range(4)}
    assert len(chosen) > 1
    model.compile_for_training()
    assert [numbers(model, step) for step in range(4)] == wanted
    assert compiler.frame_count == 3  # blocks of Perceivers, token decoder and denoiser
    with torch.no_grad():
        numbers(model.eval(), 4)
    numbers(model, 5)  # gradients of a model that is measured
    assert compiler.frame_count == 3


def case(**changes: Any) -> TrainCase:
    return TrainCase(profile="tiny-dense", scope="trainables", length=16, micro_batch=2, num_micro_batches=2,
                     weights="bf16", **changes)


def losses(told: TrainCase, states: GivenStates) -> list[list[float]]:
    """Of three steps under DeepSpeed."""
    step_job, found = build_step(told, states, 0, CPU), []
    for step in range(3):
        take_step(step_job, step)
        found.append([float(loss) for loss in step_job.losses.values()])
    end_step(step_job)
    return found


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_deepspeeds_steps_are_the_same(compiler, zero_stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_profiles(), as_first_rank(1):
        plain, compiled = case(zero_stage=zero_stage), case(zero_stage=zero_stage, compiles=True)
        config = config_of(plain)
        states = GivenStates(shape_of(config), config, CPU)
        wanted = losses(plain, states)
        assert losses(compiled, states) == wanted and compiler.frame_count == 0  # there is no Triton here
        monkeypatch.setattr(job, "has_triton", lambda device: True)
        assert losses(compiled, states) == wanted and compiler.frame_count == 3
