"""DeepSpeed with our clipping and averaging does what a plain loop of PyTorch does, part by part."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import multiprocessing, nn  # noqa: E402

from tests.trainer_runs import tiny_config  # noqa: E402
from trainer.average import WeightAverage  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.gradients import clip_by_part, flat_groups, parameter_groups  # noqa: E402
from trainer.job import deepspeed_config  # noqa: E402

STEPS, MICRO, ACCUMULATE, CLIP, EMA_DECAY = 4, 3, 2, 0.5, 0.3
Weights = dict[str, "torch.Tensor"]
CASES = [(stage, precision) for stage in (1, 2) for precision in ("fp32", "bf16")]


class TwoParts(nn.Module):
    """The gradient of `loud` is far above the clip, that of `quiet` below it; odd sizes need padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loud = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        self.quiet = nn.Sequential(nn.Linear(5, 11), nn.LayerNorm(11), nn.Linear(11, 3))

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        x = x.to(self.loud[0].weight.dtype)
        return 50 * self.loud(x).float().square().mean() + 0.01 * self.quiet(x).float().square().mean()

    def parts(self) -> dict[str, nn.Module]:
        return {"loud": self.loud, "quiet": self.quiet}


def config_for(stage: int, precision: str, world_size: int) -> TrainConfig:
    return tiny_config(Path("unused"), zero_stage=stage, precision=precision, micro_batch_size=MICRO,
                       global_batch_size=MICRO * ACCUMULATE * world_size)


def micro_batches(world_size: int, rank: int, step: int) -> Iterator["torch.Tensor"]:
    for micro in range(ACCUMULATE):
        seed = (step * ACCUMULATE + micro) * world_size + rank
        yield torch.randn(MICRO, 5, generator=torch.Generator().manual_seed(seed))


def adamw(groups: list[dict[str, Any]]) -> "torch.optim.AdamW":
    # eps of 1: a small one would divide the scale of the gradients, and so their clipping, out again.
    return torch.optim.AdamW(groups, lr=1e-1, betas=(0.9, 0.98), eps=1.0)


def weights_of(module: nn.Module) -> Weights:
    return {name: weight.detach().float().clone() for name, weight in module.named_parameters()}


def train_with_deepspeed(rank: int, world_size: int, port: int, results: Path) -> None:
    """Every case on one rank; each leaves weights, norms and its share of the averages."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    import deepspeed

    from trainer.ranks import init_process_group

    init_process_group()
    for stage, precision in CASES:
        model, config = TwoParts(), config_for(stage, precision, world_size)
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=adamw(parameter_groups(model.parts(), weight_decay=0.1)),
            dist_init_required=False, config=deepspeed_config(config, world_size))
        average, norms, waits = WeightAverage(engine, EMA_DECAY), [], []
        deepspeed.get_accelerator().synchronize = lambda *_, told=waits: told.append(1)
        for step in range(STEPS):
            for batch in micro_batches(world_size, rank, step):
                engine.backward(engine(batch))
                if engine.is_gradient_accumulation_boundary():
                    norms.append({name: float(norm) for name, norm in clip_by_part(engine, CLIP).items()})
                engine.step()
            average.update(step)
        num_waits = len(waits)
        before = weights_of(engine.module)
        with average.applied() as module:
            applied = weights_of(module)
        result = {"weights": weights_of(engine.module), "before": before, "applied": applied,
                  "norms": norms, "share": average.values, "num_waits": num_waits}
        torch.save(result, results / f"{stage}-{precision}-{rank}.pt")
    os._exit(0)  # gloo's threads may hang at exit when a peer is gone first


def train_plainly(precision: str, world_size: int) -> tuple[Weights, list[dict[str, float]], Weights]:
    """The same steps in one process: float32 master weights, gradients averaged in float32."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    working, master = TwoParts().to(dtype), TwoParts()
    master.load_state_dict(working.state_dict())
    matrices = [weight for weight in master.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in master.parameters() if weight.ndim < 2]
    optimizer = adamw([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    norms, average = [], weights_of(master)
    for step in range(STEPS):
        for rank in range(world_size):
            for batch in micro_batches(world_size, rank, step):
                working.zero_grad()
                (working(batch) / ACCUMULATE).backward()
                for weight, source in zip(master.parameters(), working.parameters(), strict=True):
                    share = source.grad.float() / world_size
                    weight.grad = share if weight.grad is None else weight.grad + share
        norms.append({name: float(nn.utils.clip_grad_norm_(part.parameters(), CLIP))
                      for name, part in master.parts().items()})
        optimizer.step()
        optimizer.zero_grad()
        working.load_state_dict(master.state_dict())
        decay = [0.1, 2 / 11, 3 / 12, EMA_DECAY][step]  # (1 + s) / (10 + s), at most the one asked for
        average = {name: decay * average[name] + (1 - decay) * weight
                   for name, weight in weights_of(master).items()}
    return weights_of(working), norms, average


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """World size, and where every case of it has left its result."""
    results = tmp_path_factory.mktemp("results")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    multiprocessing.spawn(train_with_deepspeed, (request.param, port, results), nprocs=request.param)
    return request.param, results


def joined(shares: list[list["torch.Tensor"]]) -> Weights:
    """Weights by name, out of the flat vectors of all ranks, which may be padded at their end."""
    model, whole = TwoParts(), {}
    for index, group in enumerate(flat_groups(model, model.parts())):
        vector = torch.cat([share[index] for share in shares])
        for name, shape in group.items():
            count = torch.Size(shape).numel()
            whole[name], vector = vector[:count].reshape(shape), vector[count:]
    return whole


def assert_close(found: Weights, expected: Weights, precision: str) -> None:
    # A float32 sum in another order; where it tips a bf16 weight over, that is one of its 8 bits.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision == "fp32" else {"rtol": 2**-7, "atol": 1e-4}
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], **tolerance, msg=name)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_each_part_is_clipped_by_its_own_norm_as_in_plain_pytorch(
        trained: tuple[int, Path], stage: int, precision: str) -> None:
    world_size, results = trained
    weights, norms, _ = train_plainly(precision, world_size)
    for rank in range(world_size):
        found = torch.load(results / f"{stage}-{precision}-{rank}.pt")
        for norm, expected in zip(found["norms"], norms, strict=True):
            assert norm == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 2e-2)
            assert expected["loud"] > CLIP > expected["quiet"]
        assert_close(found["weights"], weights, precision)


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_the_average_is_kept_in_shares_and_lent_to_the_model_and_taken_back_to_the_bit(
        trained: tuple[int, Path], stage: int, precision: str) -> None:
    world_size, results = trained
    _, _, average = train_plainly(precision, world_size)
    ranks = [torch.load(results / f"{stage}-{precision}-{rank}.pt") for rank in range(world_size)]
    shares = [rank["share"] for rank in ranks]
    whole = joined(shares)
    assert_close(whole, average, precision)
    assert max(sum(map(torch.numel, share)) for share in shares) < 1.2 * sum(
        map(torch.numel, average.values())) / world_size
    for rank in ranks:
        assert all(torch.equal(rank["before"][name], weight) for name, weight in rank["weights"].items())
        rounded = {name: weight.to(torch.bfloat16).float() if precision == "bf16" else weight
                   for name, weight in whole.items()}
        assert all(torch.equal(rank["applied"][name], weight) for name, weight in rounded.items())


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_no_step_waits_for_an_idle_device(trained: tuple[int, Path], stage: int, precision: str) -> None:
    # By itself DeepSpeed does, twice in a micro-batch from the third step on, to print a speed.
    assert torch.load(trained[1] / f"{stage}-{precision}-0.pt")["num_waits"] == 0
