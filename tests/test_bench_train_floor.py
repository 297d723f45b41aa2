"""The least time of a training step, by hand for a small shape."""

import pytest

pytest.importorskip("torch")

from trainer.bench_floor import Rates  # noqa: E402
from trainer.bench_train_cases import TrainCase, config_of  # noqa: E402
from trainer.bench_train_floor import flops_of_step, work_of_step  # noqa: E402
from trainer.bench_train_run import as_trained_tokens_per_s, predicted_bytes  # noqa: E402
from trainer.encoder_shape import encoder_shape  # noqa: E402
from trainer.memory import memory_per_gpu  # noqa: E402
from trainer.sizes import flops_per_token, trained_parameters  # noqa: E402

RATES = Rates(read_bytes_per_s=4e12, flops_per_s={"fp32": 5e13, "bf16": 8e14, "fp8": 1.5e15}, read_how="")
CASE = TrainCase(profile="qwen3.6-27b", scope="joint", length=1024, micro_batch=8, num_micro_batches=4,
                 weights="bf16")
SHAPE = encoder_shape("Qwen/Qwen3.6-27B")


def test_the_parts_of_a_step_add_up_to_the_arithmetic_that_a_plan_counts():
    config = config_of(CASE)
    found = flops_of_step(config, SHAPE, 1, "joint")
    assert list(found) == ["encoder", "self_conditioning", "trainables", "vocabulary_head"]
    assert sum(found.values()) == pytest.approx(4 * 8 * 1024 * flops_per_token(config, SHAPE).total)
    # 768 wide, 248,320 ids, a quarter of the positions; forwards, and two products backwards.
    assert found["vocabulary_head"] == 4 * 8 * 256 * 6 * 768 * 248_320
    for scope, parts in (("encoder", [*found][:1]), ("trainables", [*found][1:])):
        assert flops_of_step(config, SHAPE, 1, scope) == {part: found[part] for part in parts}


def test_each_part_takes_the_longer_of_reading_and_arithmetic():
    config = config_of(CASE)
    work = work_of_step(config, SHAPE, 1, "joint", RATES)
    parameters = trained_parameters(config, SHAPE)
    total = sum(parameters.values())
    # 62 of 64 blocks, which have 24.35 B parameters; rows of the embedding are looked up.
    assert work["encoder"].num_bytes == pytest.approx(4 * 2 * 24.35e9 * 62 / 64, rel=0.01)
    assert work["encoder"].compute_s == pytest.approx(work["encoder"].flops / 8e14)
    assert work["vocabulary_head"].num_bytes == 4 * 3 * 2 * parameters["vocabulary_head"]
    assert work["self_conditioning"].num_bytes == 4 * 2 * parameters["denoiser"]
    # float32: gradient twice; weights, two moments and average read and written; weights in bf16 written.
    assert work["optimizer"].num_bytes == (2 * 4 + 2 * 4 * 4 + 2) * total
    assert work["optimizer"].passes == 1 and work["optimizer"].floor_s == work["optimizer"].read_s


def test_an_encoder_in_fp8_reads_half_the_bytes_and_is_set_beside_the_rate_of_what_it_multiplies_in():
    plain = work_of_step(config_of(CASE), SHAPE, 1, "encoder", RATES)["encoder"]
    held = CASE.model_copy(update={"weights": "fp8"})
    decoded = work_of_step(config_of(held), SHAPE, 1, "encoder", RATES)["encoder"]
    assert decoded.compute_s == plain.compute_s
    assert decoded.num_bytes / plain.num_bytes == pytest.approx(0.5, abs=0.01)
    case = held.model_copy(update={"products": "fp8"})
    quantised = work_of_step(config_of(case), SHAPE, 1, "encoder", RATES)["encoder"]
    assert quantised.compute_s / plain.compute_s == pytest.approx(8e14 / 1.5e15)
    assert quantised.num_bytes / plain.num_bytes == pytest.approx(0.5, abs=0.01)
    without = RATES.model_copy(update={"flops_per_s": {"fp32": 5e13, "bf16": 8e14}})
    assert work_of_step(config_of(case), SHAPE, 1, "encoder", without)["encoder"].compute_s == plain.compute_s


def test_of_several_ranks_each_moves_its_share_of_the_optimizers_state():
    alone = work_of_step(config_of(CASE), SHAPE, 1, "joint", RATES)
    case = CASE.model_copy(update={"num_ranks": 8})
    shared = work_of_step(config_of(case), SHAPE, 8, "joint", RATES)
    total = sum(trained_parameters(config_of(case), SHAPE).values())
    assert shared["optimizer"].num_bytes == pytest.approx(40 * total / 8 + 2 * total)
    assert {part: work for part, work in shared.items() if part != "optimizer"} == {
        part: work for part, work in alone.items() if part != "optimizer"}


def test_memory_is_what_a_plan_says_of_as_much_as_there_is():
    told = memory_per_gpu(config_of(CASE), SHAPE, 1)
    assert predicted_bytes(CASE, SHAPE) == told.allocated_bytes
    alone = predicted_bytes(CASE.model_copy(update={"scope": "trainables"}), SHAPE)
    assert alone == told.allocated_bytes - told.parts["token encoder"]
    encoder = predicted_bytes(CASE.model_copy(update={"scope": "encoder"}), SHAPE)
    assert told.parts["token encoder"] < encoder < told.allocated_bytes


@pytest.mark.parametrize("scope", ["joint", "encoder"])
def test_of_an_encoder_that_two_ranks_share_each_holds_half_and_two_blocks_on_their_way(scope: str):
    whole = CASE.model_copy(update={"num_ranks": 2, "ranks_are_real": True, "scope": scope})
    split = whole.model_copy(update={"placement": "sharded"})
    block = 2 * 24.35e9 / 64  # bytes
    less = predicted_bytes(whole, SHAPE) - predicted_bytes(split, SHAPE)
    assert less == pytest.approx(62 / 2 * block - 2 * block, rel=0.02)


def test_the_end_of_a_step_counts_once_whatever_the_number_of_micro_batches():
    parts = {"encoder": 2.0, "backward": 1.6, "clipping": 0.1, "optimizer": 0.2, "average": 0.1}
    # 4 micro-batches take 3.6 s and their end 0.4 s; the profile's step has 64.
    assert as_trained_tokens_per_s(CASE, 4.0, parts) == pytest.approx(512 * 1024 / (64 * 0.9 + 0.4))


def test_an_encoder_that_reads_two_micro_batches_at_once_reads_its_weights_half_as_often():
    case = CASE.model_copy(update={"encoder_micro_batch": 16})
    alone, two = (work_of_step(config_of(one), SHAPE, 1, "joint", RATES) for one in (CASE, case))
    assert (alone["encoder"].passes, two["encoder"].passes) == (4, 2)
    assert two["encoder"].num_bytes == alone["encoder"].num_bytes / 2
    assert two["encoder"].flops == alone["encoder"].flops and two["trainables"] == alone["trainables"]
