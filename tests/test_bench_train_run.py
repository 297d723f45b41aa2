"""The trainer's own step under the benchmark: tiny encoders of the real kinds, on a CPU."""

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from tests.tiny_profiles import ENCODERS, tiny_profiles  # noqa: E402
from trainer.bench_floor import Rates  # noqa: E402
from trainer.bench_models import shape_of  # noqa: E402
from trainer.bench_train_cases import Scope, TrainCase, config_of  # noqa: E402
from trainer.bench_train_encoder import GivenStates, random_encoder  # noqa: E402
from trainer.bench_train_floor import flops_of_step  # noqa: E402
from trainer.bench_train_job import as_first_rank, build_step, end_step, take_step  # noqa: E402
from trainer.bench_train_run import TrainEffort, run_cases  # noqa: E402

CPU = torch.device("cpu")
RATES = Rates(read_bytes_per_s=1e10, flops_per_s={"fp32": 1e11}, read_how="")


@pytest.fixture(scope="module", autouse=True)
def _tiny_profiles() -> Iterator[None]:
    with tiny_profiles(), as_first_rank(1):
        yield


def case(profile: str = "tiny-dense", scope: Scope = "joint", **changes: Any) -> TrainCase:
    values = {"length": 16, "micro_batch": 2, "num_micro_batches": 2, "weights": "bf16"} | changes
    return TrainCase(profile=profile, scope=scope, **values)


@pytest.mark.parametrize(("profile", "scope"), [
    ("tiny-dense", "joint"), ("tiny-dense", "trainables"), ("tiny-mixture", "joint"),
    ("tiny-mixture", "encoder")])
def test_a_case_is_timed_and_taken_apart(profile: str, scope: Scope) -> None:
    found, = run_cases([case(profile, scope)], RATES, TrainEffort(3, 1e9, 0), CPU)
    assert found.left_out is None and found.fast is not None and found.fast.num_steps == 3
    assert found.fast.tokens_per_s == pytest.approx(64 / found.fast.seconds_median)
    assert found.share_of_matrix_rate == pytest.approx(found.flops / found.fast.seconds_median / 1e11)
    assert found.floor_s == pytest.approx(sum(work.floor_s for work in found.work.values()))
    assert found.linear_attention == (None if scope == "trainables" else "torch")
    if scope == "encoder":
        assert found.parts_s is None and list(found.work) == ["encoder"] and not found.losses
        return
    parts = ["encoder", "latent_encoder", "latent_decoder", "token_decoder", "self_conditioning", "denoiser",
             "backward", "clipping", "optimizer", "average", "rest"]
    assert list(found.parts_s) == parts and min(found.parts_s.values()) >= 0
    assert list(found.losses) == ["total", "hidden", "token", "diffusion"]
    assert all(0 < loss < 20 for loss in found.losses.values())
    assert 0 <= found.data_wait_share < 1


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_useful_operations_are_those_that_a_step_takes(zero_stage: int) -> None:
    told = case(scope="trainables", zero_stage=zero_stage)
    config = config_of(told)
    shape = shape_of(config)
    job = build_step(told, GivenStates(shape, config, CPU), 0, CPU)
    engine = weakref.ref(job.engine)
    # Attention as plain products, which torch counts the same on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        take_step(job, 0)
    flops = flops_of_step(config, shape, 1, "trainables")
    # 4 positions of each of 4 sequences, 96 rows of 16: forwards, and two products backwards.
    head = 2 * 4 * 4 * 96 * 16
    assert flops["vocabulary_head"] == 3 * head
    bins = 2 * 4 * config.diffusion.time_bins  # losses by bins of time: a product by form only
    # The logits are written into room that is there already (`out=`), which torch does not count.
    assert sum(flops.values()) - head + bins == pytest.approx(counter.get_total_flops(), rel=1e-9)
    end_step(job)
    del job
    gc.collect()
    assert engine() is None  # the next case needs its memory


@pytest.mark.parametrize("profile", ENCODERS)
def test_a_random_encoder_is_the_true_one_cut_at_its_layer_and_says_finite_things(profile: str) -> None:
    config = config_of(case(profile))
    encoder = random_encoder(config.token_encoder, 0, CPU)
    states = encoder.hidden_states(torch.arange(32).reshape(2, 16))
    assert encoder.identity.kept_blocks == 4 and states.shape == (2, 16, 32)  # hidden_states[-3] of 6 blocks
    assert states.isfinite().all() and states.std() > 0.1
    again = random_encoder(config.token_encoder, 0, CPU).hidden_states(torch.arange(32).reshape(2, 16))
    assert torch.equal(states, again)
