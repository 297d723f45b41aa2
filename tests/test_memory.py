"""GPU memory by hand where that is possible, else by how it moves. Activations: tests/test_sizes_torch.py."""

import pytest

from trainer.config import TrainConfig
from trainer.encoder_shape import encoder_shape
from trainer.memory import GIB, Memory, host_bytes_of_encoder, memory_per_gpu
from trainer.profiles import PROFILES
from trainer.sizes import encoder_bytes, num_trained


def config_of(profile: str = "qwen3.6-27b", **over: object) -> TrainConfig:
    base = {"profile": profile, "steps": 1, "data": {"source": "python-docs"},
            "checkpoint": {"every_steps": 1}}
    return TrainConfig.model_validate({**base, **over})


def memory(config: TrainConfig, world_size: int = 1, per_node: int = 1) -> Memory:
    shape = encoder_shape(config.token_encoder.name)
    assert shape is not None
    return memory_per_gpu(config, shape, world_size, per_node)


def parameters(config: TrainConfig) -> int:
    return num_trained(config, encoder_shape(config.token_encoder.name))


def test_what_stays_is_what_deepspeed_allocates():
    # bf16: weights 2 bytes; master 4 and moments 8, shared out; so is the average; gradients float32.
    for world_size in (1, 4):
        config = config_of("paper-gpt2", micro_batch_size=1, global_batch_size=4)
        number, parts = parameters(config), memory(config, world_size).parts
        assert parts["weights"] == 2 * number
        assert parts["average"] == pytest.approx(4 * number / world_size)
        assert parts["optimizer"] >= 12 * number / world_size
        assert parts["gradients"] >= 4 * number


def test_stage_2_shares_gradients_too():
    one, two = (memory(config_of("seed-27b", zero_stage=stage), 8, 8) for stage in (1, 2))
    number = parameters(config_of("seed-27b"))
    assert one.allocated_bytes - two.allocated_bytes > 3 * number
    assert one.parts["weights"] == two.parts["weights"]


def test_more_ranks_need_less_each():
    sizes = [memory(config_of(), world_size).allocated_bytes for world_size in (1, 2, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing():
    few, many = (memory(config_of("paper-gpt2", micro_batch_size=size)) for size in (8, 16))
    assert many.parts["activations"] == pytest.approx(2 * few.parts["activations"])
    spared = memory(config_of("paper-gpt2", micro_batch_size=16, activation_checkpointing=True))
    assert spared.allocated_bytes < many.allocated_bytes / 1.5


def test_the_parts_of_the_fullest_moment_add_up():
    found = memory(config_of())
    assert found.moment == "backward pass"
    assert found.allocated_bytes == sum(found.parts.values())
    assert found.allocated_bytes < found.needed_bytes
    assert found.fits(found.needed_bytes / GIB)
    assert not found.fits(found.needed_bytes / GIB - 0.1)


def test_logits_are_never_there_all_at_once():
    # All float32 logits of 64 x 1,024 positions over 248,320 ids would be 60 GiB, a quarter of them 15.
    found = memory(config_of(micro_batch_size=64, activation_checkpointing=True))
    assert found.parts["token loss"] < 2 * GIB


@pytest.mark.parametrize("micro_batch_size", [1, None])
@pytest.mark.parametrize("profile", PROFILES)
def test_scores_need_less_than_a_step(profile, micro_batch_size):
    # By hand: logits of one text; one block of the widest kind, with its hidden states; sums over latents
    # and their covariance in float64, with the copies that eigenvalues take.
    config = config_of(profile, zero_stage=2)
    batch = micro_batch_size or config.micro_batch_size
    config = config.model_copy(update={"micro_batch_size": batch, "global_batch_size": 8 * batch})
    shape, model = encoder_shape(config.token_encoder.name), config.model
    length, latents, value = config.data.sequence_length, config.num_latents, 2
    logits = value * length * shape.vocab_size
    forward = batch * (12 * length * shape.hidden_size + 16 * latents * model.latent_width
                       + value * 14 * max(length, latents) * model.width)
    sums = 8 * (6 * model.latent_width**2 + 3 * (batch + 1) * latents * model.latent_width)
    found = memory(config, 8, 8)
    stays = {"weights", "average", "token encoder", "libraries"}
    beside = sum(size for name, size in found.parts.items() if name not in stays)
    beside -= 12 * parameters(config) / 8  # master weights and moments
    assert logits + forward + sums < beside


@pytest.mark.parametrize("weights", ["bf16", "fp8", "nf4"])
def test_an_encoder_on_the_gpu_takes_its_weights_and_one_decoded_block(weights):
    config = config_of("qwen3.6-35b-a3b", token_encoder={"weights": weights})
    held = memory(config).parts["token encoder"]
    stored = encoder_bytes(config, encoder_shape("Qwen/Qwen3.6-35B-A3B"))
    block = 0 if weights == "bf16" else 1.7e9 + 64 * 2**20
    assert held == pytest.approx(stored + block, rel=0.01)


def test_elsewhere_the_encoder_leaves_two_blocks_on_the_gpu():
    shape = encoder_shape("Qwen/Qwen3.6-27B")
    stays = 2 * shape.embedding_parameters + 2 * 2 * max(shape.block_parameters(i) for i in range(62))
    host = config_of(token_encoder={"placement": "host"})
    assert memory(host).parts["token encoder"] == stays
    assert host_bytes_of_encoder(host, shape) == pytest.approx(46.3 * GIB - 2 * shape.embedding_parameters,
                                                               rel=0.01)
    sharded = memory(config_of(token_encoder={"placement": "sharded"}), 4, 4).parts["token encoder"]
    assert sharded == pytest.approx(stays + host_bytes_of_encoder(host, shape) / 4, abs=10)
    assert host_bytes_of_encoder(config_of(), shape) == 0


def test_an_encoder_on_the_next_gpu_is_counted_there():
    apart = memory(config_of("qwen3.6-35b-a3b", token_encoder={"placement": "next_gpu", "weights": "nf4"}))
    beside = memory(config_of("qwen3.6-35b-a3b", token_encoder={"weights": "nf4"}))
    assert "token encoder" not in apart.parts
    assert apart.encoder_gpu["token encoder"] == beside.parts["token encoder"]
    assert apart.needed_bytes < beside.needed_bytes


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="global_batch_size is 512"):
        memory(config_of(), 3)


def test_an_encoder_that_reads_more_at_once_holds_their_states_in_bf16_and_works_on_as_many():
    def reading(size: int | None, **over: object) -> Memory:
        return memory(config_of(token_encoder={"micro_batch_size": size, "placement": "next_gpu"}, **over))

    one, four = reading(None), reading(32)
    assert four.moment == one.moment == "backward pass"
    assert four.allocated_bytes - one.allocated_bytes == 2 * 32 * 1024 * 5120
    assert four.encoder_gpu["activations"] == 4 * one.encoder_gpu["activations"]
    assert reading(8) == one
    # No more than there is in a step.
    assert reading(64, global_batch_size=32) == reading(32, global_batch_size=32)
