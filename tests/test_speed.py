"""Guessed speeds against everything that was measured on a GPU, and what must make training slower."""

from decimal import Decimal

import pytest
from launch_examples import NOW, TWO_CORES

from launcher.estimate import Done
from launcher.fit import fit
from launcher.gpu_kinds import GPU_KINDS, GpuKind
from launcher.offers import cloud_offer, make_offer
from launcher.plan import make_plan
from launcher.plan_sizes import CommunicationPlan, plan_sizes
from launcher.recipe import Candidate, load_recipe
from launcher.speed import MicroBatchTime, Speed, micro_batch_time, packing_s, training_speed
from trainer.contract import Document
from trainer.encoder_shape import encoder_shape

H100 = GPU_KINDS["H100"]


def speed_of(name: str, gpu: str, *overrides: str) -> Speed:
    """The guess for a recipe on one rented machine."""
    offer = cloud_offer(Candidate(infra="vast", gpu=gpu), NOW)
    config = load_recipe(name, overrides).train
    return training_speed(config, encoder_shape(config.token_encoder.name), offer, offer.num_gpus, ())


def time_of(name: str, *overrides: str, kind: GpuKind = H100, ranks: int = 1) -> MicroBatchTime:
    config = load_recipe(name, overrides).train
    return micro_batch_time(config, encoder_shape(config.token_encoder.name), kind, ranks, ranks)


# recipes/LOG.md: the whole trainer, eager, bf16; batches as in tests/test_gpu_training.py.
@pytest.mark.parametrize(("name", "tokens_per_s", "changes"), [
    ("paper-gpt2", 43_400, ["micro_batch_size=8", "global_batch_size=16"]),
    ("qwen3.5-0.8b", 22_800, ["global_batch_size=64", "zero_stage=2"]),
    ("qwen3.5-2b", 21_100, ["micro_batch_size=64", "global_batch_size=64"]),
    ("qwen3.5-2b", 11_200, ["micro_batch_size=32", "global_batch_size=64", "model.prompt=true",
                            "token_encoder.weights=fp8", "token_encoder.placement=host"]),
    ("home-3090", 26_000, ["global_batch_size=64"]),
    ("qwen3.6-35b-a3b", 3_000, ["micro_batch_size=2", "global_batch_size=4", "activation_checkpointing=true",
                                "token_encoder.weights=nf4"]),
    ("home-5090", 10_400, ["global_batch_size=16"]),
    ("seed-35b-a3b", 3_300, ["micro_batch_size=32", "global_batch_size=64", "zero_stage=2",
                             "token_encoder.weights=nf4"]),
    ("qwen3.6-27b", 4_600, ["micro_batch_size=4", "global_batch_size=4", "token_encoder.weights=nf4"]),
    ("smoke", 4_000, ["precision=bf16"]),
])
def test_a_guess_for_the_h100_is_within_its_factors_of_what_one_reached(name, tokens_per_s, changes):
    guess = speed_of(name, "H100:1", *(f"train.{change}" for change in changes))
    low, high = guess.factors
    assert low <= guess.tokens_per_s / tokens_per_s <= high


# recipes/LOG.md: forward and backward of the trained parts alone; with checkpointing, and without.
@pytest.mark.parametrize(("name", "sequences", "plain_s", "checkpointed_s"), [
    ("qwen3.6-35b-a3b", 8, 0.098, 0.140), ("seed-35b-a3b", 16, 0.045, 0.102), ("seed-27b", 4, 0.041, 0.088),
])
def test_the_trained_parts_alone_are_guessed_within_a_factor_of_two(name, sequences, plain_s, checkpointed_s):
    for measured_s, checkpointing in ((plain_s, "false"), (checkpointed_s, "true")):
        guess = time_of(name, f"train.micro_batch_size={sequences}",
                        f"train.activation_checkpointing={checkpointing}")
        assert 0.5 <= guess.trained_s / measured_s <= 2.0


def test_float32_uses_the_peak_of_float32_and_only_for_what_is_trained():
    half, full = time_of("paper-gpt2"), time_of("paper-gpt2", "train.precision=fp32")
    assert full.trained_s > 2 * half.trained_s
    assert full.encoder_s == half.encoder_s
    assert "of 67 TFLOP/s" in speed_of("paper-gpt2", "H100:1", "train.precision=fp32").source


@pytest.mark.parametrize(("weights", "per_s"), [("fp8", 115e9), ("nf4", 137e9)])
def test_packed_weights_are_decoded_once_a_forward_pass_however_many_sequences_it_has(weights, per_s):
    # 38 of 40 blocks; nearly all of a block are matrices: 0.84 G weights (recipes/LOG.md).
    packed = time_of("qwen3.6-35b-a3b", f"train.token_encoder.weights={weights}")
    assert packed.decoding_s == pytest.approx(38 * 0.84e9 / per_s, rel=0.03)
    larger = time_of("qwen3.6-35b-a3b", f"train.token_encoder.weights={weights}", "train.micro_batch_size=16")
    assert larger.decoding_s == packed.decoding_s
    assert time_of("qwen3.6-35b-a3b").decoding_s == 0
    slower = time_of("qwen3.6-35b-a3b", f"train.token_encoder.weights={weights}", kind=GPU_KINDS["RTX4090"])
    assert slower.decoding_s > 3 * packed.decoding_s


@pytest.mark.parametrize("encoder", ["weights=fp8", "placement=host"])
def test_an_encoder_that_reads_four_micro_batches_at_once_decodes_and_moves_a_quarter(encoder):
    base = ("qwen3.6-35b-a3b", "train.micro_batch_size=2", f"train.token_encoder.{encoder}")
    alone, four = time_of(*base), time_of(*base, "train.token_encoder.micro_batch_size=8")
    assert 4 * four.decoding_s == alone.decoding_s and 4 * four.moving_s == alone.moving_s
    assert four.trained_s == alone.trained_s and alone.encoder_s / 4 <= four.encoder_s < alone.encoder_s
    # As long as it takes for one of 8, which is as much.
    large = time_of("qwen3.6-35b-a3b", "train.micro_batch_size=8", f"train.token_encoder.{encoder}")
    assert 4 * four.encoder_s == pytest.approx(large.encoder_s)


def test_blocks_that_come_from_elsewhere_take_their_time_and_small_micro_batches_wait_for_it():
    asked = "train.token_encoder.placement="
    host = time_of("qwen3.6-27b", asked + "host", "train.micro_batch_size=1")
    # 46.3 GiB with 2.4 GiB of embeddings, at 20 GB/s.
    assert host.moving_s == pytest.approx((46.3 - 2.4) * 2**30 / 20e9, rel=0.01)
    assert host.total_s == pytest.approx(host.moving_s + host.trained_s)
    sharded = {kind: time_of("qwen3.6-27b", asked + "sharded", kind=GPU_KINDS[kind], ranks=8).moving_s
               for kind in ("H100", "RTX4090")}
    assert sharded["RTX4090"] > 10 * sharded["H100"] > 0
    assert time_of("qwen3.6-27b", asked + "gpu").moving_s == 0


def test_a_step_of_many_micro_batches_is_faster_than_many_steps():
    small = speed_of("paper-gpt2", "H100:1", "train.micro_batch_size=8", "train.global_batch_size=8")
    large = speed_of("paper-gpt2", "H100:1", "train.micro_batch_size=8", "train.global_batch_size=512")
    assert large.tokens_per_s > 1.4 * small.tokens_per_s


def scaling(*overrides: str, kind: str = "H100", nodes: int = 1) -> CommunicationPlan | None:
    """Of seed-27b on eight GPUs of each node, its encoder split over them."""
    recipe = load_recipe("seed-27b", ["train.token_encoder.placement=sharded", *overrides])
    offer = cloud_offer(Candidate(infra="gcp", gpu=f"{kind}:8", num_nodes=nodes), NOW)
    shape = encoder_shape(recipe.train.token_encoder.name)
    assert shape is not None
    return plan_sizes(fit(recipe, shape, offer), shape, offer, 20_000.0, None).communication


def test_what_eight_gpus_send_takes_its_share_of_a_step():
    told = scaling()
    assert told and told.num_ranks == 8
    low, high = told.efficiency_range
    assert 0 < low < told.efficiency < high < 1
    # Half and twice as long for the same bytes, beside the same work.
    waits = [1 / efficiency - 1 for efficiency in (low, told.efficiency, high)]
    assert waits == pytest.approx([2 * waits[1], waits[1], waits[1] / 2], rel=0.02)
    # Gradients and weights at 200 GB/s, in a step that takes a model's tokens over its speed.
    config = load_recipe("seed-27b").train
    step_s = config.tokens_per_step / speed_of("seed-27b", "H100:8",
                                               "train.token_encoder.placement=sharded").tokens_per_s
    assert 1 - told.efficiency == pytest.approx(
        (told.gradient_bytes + told.weight_bytes) / 200e9 / step_s, rel=0.02)


def test_slow_links_and_networks_leave_less():
    batch = "train.global_batch_size=1024"
    nvlink, pcie, network = scaling(batch), scaling(batch, kind="RTXPRO6000"), scaling(batch, nodes=2)
    assert nvlink and pcie and network
    assert pcie.efficiency < nvlink.efficiency and network.efficiency < nvlink.efficiency
    assert network.encoder_bytes * 2 == nvlink.encoder_bytes  # half as many micro-batches, on each node alone


def test_one_gpu_tells_nobody_anything():
    recipe = load_recipe("qwen3.5-0.8b")
    offer = cloud_offer(Candidate(infra="gcp", gpu="H100:1"), NOW)
    shape = encoder_shape(recipe.train.token_encoder.name)
    assert shape is not None
    assert plan_sizes(fit(recipe, shape, offer), shape, offer, 20_000.0, None).communication is None


def setup_s(name: str, *overrides: str, done: Done | None = None) -> float:
    """Seconds of set-up on the recipe's first hardware."""
    recipe = load_recipe(name, ["limits.max_cost_usd=99999", *overrides])
    (offer, bench) = (make_offer(found[0], TWO_CORES, NOW)
                      for found in (recipe.hardware.train, recipe.hardware.bench))
    plan = make_plan(recipe, encoder_shape(recipe.train.token_encoder.name),
                     {Document.TRAIN: (offer,), Document.BENCH: (bench,)}, (), NOW, "run-1", done)
    return float(plan.parts[0].hours.mid) * 3600


def test_set_up_holds_what_was_measured_of_smoke():
    assert setup_s("smoke") == pytest.approx(15, abs=1)  # recipes/LOG.md, two CPU cores


def test_statistics_are_counted_at_a_runs_first_start_only_and_by_the_encoders_own_speed():
    few, many = (f"train.token_encoder.statistics_tokens={count}" for count in (100_000, 2_100_000))
    took_s = (setup_s("qwen3.6-35b-a3b", many) - setup_s("qwen3.6-35b-a3b", few)) / 2
    # A million tokens of 4.9 GFLOP on an H200 of 989 TFLOP/s, of which a quarter is reached at best.
    assert 1e6 * 4.9e9 / (989e12 * 0.25) * 0.99 <= took_s <= 60
    resumed = Done(step=100, spent_usd=Decimal(1), has_trained=False)
    assert setup_s("qwen3.6-35b-a3b", many, done=resumed) == setup_s("qwen3.6-35b-a3b", few, done=resumed)


def test_at_home_set_up_is_longer_than_its_constant_where_65_gb_are_read_and_packed():
    assert setup_s("home-5090") > 65e9 / 3.5e9 + 27  # disks at home read 3.5 GB/s at best


def test_packing_on_a_cpu_takes_as_long_as_it_did():
    # recipes/LOG.md: nf4 of a whole 35B-A3B about 20 minutes on two cores, a block of 0.84 G weights 32 s.
    config = load_recipe("home-5090").train
    shape = encoder_shape(config.token_encoder.name)
    assert packing_s(config, shape, None) / 60 == pytest.approx(20, rel=0.1)
    assert 0 < packing_s(config, shape, "RTX5090") < packing_s(config, shape, None) / 20
    plain = load_recipe("home-5090", ["train.token_encoder.weights=bf16"]).train
    assert packing_s(plain, shape, None) == packing_s(plain, shape, "RTX5090") == 0
