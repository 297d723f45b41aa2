"""What makes the trained parts fast, on a GPU: `pytest -m gpu -s tests/test_gpu_trained.py`."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from trainer import wide_heads  # noqa: E402
from trainer.bench_models import shape_of  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import GivenStates  # noqa: E402
from trainer.bench_train_job import as_first_rank, build_step, end_step, take_step  # noqa: E402
from trainer.bench_train_result import MOST_ERROR  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
GPU = torch.device("cuda")


def test_wide_heads_read_and_learn_as_by_exact_attention() -> None:
    """As seed-27b's: 8 heads of 640 channels, 64 positions."""
    generator = torch.Generator(GPU).manual_seed(0)
    inputs = [torch.randn(4, 64, 8, 640, generator=generator, device=GPU).bfloat16().transpose(1, 2)
              .requires_grad_() for _ in range(3)]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    assert wide_heads.suits(*inputs[:2])
    found, wanted = wide_heads.attended(*inputs), F.scaled_dot_product_attention(*exact)
    weight = torch.randn(found.shape, generator=generator, device=GPU).bfloat16()
    pairs = zip([found, *torch.autograd.grad(found, inputs, weight)],
                [wanted, *torch.autograd.grad(wanted, exact, weight.double())], strict=True)
    assert all((mine.double() - theirs).norm() < 1e-2 * theirs.norm() for mine, theirs in pairs)


def losses(told: TrainCase, states: GivenStates, num_steps: int) -> torch.Tensor:
    """(steps, losses) of one run from its start."""
    job, taken = build_step(told, states, 0, GPU), []
    for step in range(num_steps):
        take_step(job, step)
        taken.append(torch.stack(list(job.losses.values())))
    end_step(job)
    return torch.stack(taken).double().cpu()


@pytest.mark.parametrize("profile", ["qwen3.5-2b", "seed-35b-a3b"])
def test_compiled_blocks_train_as_plain_ones_and_twice_to_the_same_bits(profile: str) -> None:
    plain = TrainCase(profile=profile, scope="trainables", length=64, micro_batch=4, num_micro_batches=2,
                      weights="bf16")
    counters.clear()
    with as_first_rank(1):
        config = config_of(plain)
        states = GivenStates(shape_of(config), config, GPU)
        wanted = losses(plain, states, 50)
        compiled = plain.model_copy(update={"compiles": True})
        found = losses(compiled, states, 50)
        assert torch.equal(losses(compiled, states, 50), found)
    graphs = counters["stats"]["unique_graphs"]
    error = float(((found - wanted) / wanted).abs().max())
    print(f"\n{profile}: {graphs} graphs, greatest difference of a loss in 50 steps {error:.4f}")
    assert error < MOST_ERROR["bf16"] and graphs <= 4  # of blocks
